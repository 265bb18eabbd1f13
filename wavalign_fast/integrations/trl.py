"""TRL's trainers (1.15 and later) over the fused head: change one import.

    from wavalign_fast.integrations.trl import FusedGRPOTrainer as GRPOTrainer

Every trainer of TRL scores tokens by ``model(..., fused_lm_head=True)``, an argument that
``add_fused_lm_head`` gives the model while the trainer is built. These classes put another function
in its place; losses, options and metrics stay TRL's code.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator
from typing import Any

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.integrations import trl_head
from wavalign_fast.ops import LossOptions

EXTRA = "pip install 'wavalign-fast[trl]'"

try:
    import trl
    from trl.trainer import utils
except ImportError as error:
    raise UserError(f"TRL's trainers need the package trl ({EXTRA}): {one_line(error)}") from error


def _check_release() -> None:
    """Refuses a release of TRL with another way to score tokens.

    Raises:
        UserError: the message has the version.
    """
    theirs = getattr(utils, "add_fused_lm_head", None)
    if theirs is None:
        raise UserError(f"trl: got {trl.__version__}, want 1.15 or later ({EXTRA})")
    known = inspect.signature(trl_head.add_fused_lm_head).parameters.keys()
    if unknown := inspect.signature(theirs).parameters.keys() - known:
        raise UserError(
            f"trl: got {trl.__version__}, whose add_fused_lm_head takes "
            f"{', '.join(sorted(unknown))}, want a release without"
        )


_check_release()


class _NoAdapter:
    """Nothing is an instance of it: TRL's refusal of an adapter on the head finds none."""


class FusedHeadMixin:
    """Goes before a trainer of TRL, or a subclass of one, in the bases of a class.

    Raises:
        UserError: when it is built, a model or an option that the fused head cannot honour.
    """

    loss_options: LossOptions | None = None
    """The backend and its limits; a subclass sets it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        mine = functools.partial(trl_head.add_fused_lm_head, options=self.loss_options)
        homes = (sys.modules[cls.__module__] for cls in type(self).__mro__)
        seams = {home for home in homes if hasattr(home, "add_fused_lm_head")}
        if not seams:
            bases = ", ".join(cls.__name__ for cls in type(self).__bases__)
            raise UserError(f"bases: got {bases}, want a trainer of TRL that scores tokens")
        with contextlib.ExitStack() as stack:
            for module in seams:
                stack.enter_context(_replaced(module, "add_fused_lm_head", mine))
                # An adapter on the head, which TRL refuses for the sake of its kernel, is trained.
                stack.enter_context(_replaced(module, "BaseTunerLayer", _NoAdapter))
            super().__init__(*args, **kwargs)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces a name of a module, if it has it, in this block."""
    if not hasattr(module, name):  # peft's, where peft is not installed
        yield
        return
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


class FusedGRPOTrainer(FusedHeadMixin, trl.GRPOTrainer):
    """``trl.GRPOTrainer`` over the fused head."""


class FusedRLOOTrainer(FusedHeadMixin, trl.RLOOTrainer):
    """``trl.RLOOTrainer`` over the fused head."""


class FusedSFTTrainer(FusedHeadMixin, trl.SFTTrainer):
    """``trl.SFTTrainer`` over the fused head.

    With label smoothing or ``compute_loss_func`` TRL itself builds logits for the loss.
    """


class FusedDPOTrainer(FusedHeadMixin, trl.DPOTrainer):
    """``trl.DPOTrainer`` over the fused head."""


class FusedKTOTrainer(FusedHeadMixin, trl.KTOTrainer):
    """``trl.KTOTrainer`` over the fused head."""
