"""How each of the other implementations is imported and called."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import IGNORE_INDEX, Calls, Unsupported, dpo_from, group_advantages, grpo_from


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits as users compute them: the GEMM in the operands' dtype, the softmax in float32."""
    return F.linear(hidden, weight, bias).float()


def _torch_logp_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(_logits(hidden, weight, bias), dim=-1)  # [N, V]
    return -F.nll_loss(logp, targets, reduction="none"), -(logp.exp() * logp).sum(-1)


def _torch_logp(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> Tensor:
    return -F.cross_entropy(_logits(hidden, weight, bias), targets, reduction="none")


def _torch_ce(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> Tensor:
    return F.cross_entropy(_logits(hidden, weight, bias), targets)


TORCH = Calls(
    logp=_torch_logp,
    logp_entropy=_torch_logp_entropy,
    ce=_torch_ce,
    grpo=grpo_from(_torch_logp),
    dpo=dpo_from(_torch_logp),
)


@lru_cache
def torch_compile() -> Calls:
    """Compiles a function at its first call."""
    return Calls(**{name: torch.compile(call) for name, call in vars(TORCH).items()})


def torch_lce() -> Calls:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise RuntimeError(f"torch {torch.__version__} has no chunked linear_cross_entropy")
    # Its default chunk size makes it many times slower on a CPU.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)

    def loss(
        reduction: str, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        return F.linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, reduction=reduction, options=options
        )

    return Calls(logp=lambda *operands: -loss("none", *operands), ce=partial(loss, "mean"))


def trl() -> Calls:
    from trl.kernels import ChunkedLogProbFunction

    # Its backward pass imports this: a missing package should fail here.
    importlib.import_module("trl.trainer.utils")
    columns = 32768  # the vocabulary chunk of TRL's own head

    def call(
        outputs: tuple[str, ...], hidden: Tensor, weight: Tensor, targets: Tensor,
        bias: Tensor | None = None,
    ) -> Any:  # fmt: skip
        return ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, 1.0, columns, None, 1.0, outputs
        )

    return Calls(
        logp=lambda *operands: call((), *operands)[0],
        logp_entropy=lambda *operands: call(("entropy",), *operands)[:2],
    )


def _without_bias(call: Callable[..., Any]) -> Callable[..., Any]:
    def checked(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Any:
        if bias is not None:
            raise Unsupported("no bias")
        return call(hidden, weight, targets)

    return checked


def verl() -> Calls:
    # The package needs ray; this one file does not.
    package = importlib.util.find_spec("verl")
    if package is None or not package.submodule_search_locations:
        raise ImportError("No module named 'verl'")
    path = Path(package.submodule_search_locations[0], "utils/experimental/torch_functional.py")
    spec = importlib.util.spec_from_file_location("verl_torch_functional", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path.name} of verl")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile looks a function's module up
    spec.loader.exec_module(module)
    fused = module.FusedLinearForPPO()
    return Calls(
        logp=_without_bias(lambda *operands: fused(*operands)[0]),
        logp_entropy=_without_bias(fused),
    )


def verl_triton() -> Calls:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return Calls(
        logp=_without_bias(lambda *operands: linear_cross_entropy(*operands)[0]),
        logp_entropy=_without_bias(linear_cross_entropy),
    )


def liger_selective() -> Calls:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss, LigerFusedLinearGRPOLoss
    from liger_kernel.chunked_loss.fused_linear_ppo import LigerFusedLinearPPOBase

    def logp(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
        forward = LigerFusedLinearPPOBase.chunk_forward
        return forward(hidden[None], weight, targets[None], bias=bias)[0]

    def grpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor,
        *, old_logp: Tensor | None = None, clip: float = 0.2,
    ) -> Tensor:  # fmt: skip
        loss = LigerFusedLinearGRPOLoss(
            beta=0.0, loss_type="grpo", epsilon_low=clip, epsilon_high=clip, use_ref_model=False,
            compiled=False,
        )  # fmt: skip
        advantages = group_advantages(rewards)
        return loss(hidden, weight, ids, mask, advantages, old_per_token_logps=old_logp)[0]

    def dpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor,
        *, ref_logp: Tensor | None = None, beta: float = 0.1,
    ) -> Tensor:  # fmt: skip
        if ref_logp is not None:
            raise Unsupported("takes the reference's hidden states and head, not its log-probs")
        loss = LigerFusedLinearDPOLoss(beta=beta, use_ref_model=False, compiled=False)
        return loss(weight, hidden, torch.where(mask > 0, ids, IGNORE_INDEX))[0]

    return Calls(logp=logp, grpo=grpo, dpo=dpo)


def liger_scaled() -> Calls:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    apply = LigerFusedLinearScaledCrossEntropyFunction.apply

    def logp_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll, entropy = apply(hidden, weight, targets, return_entropy=True)
        return -nll, entropy

    return Calls(
        logp=_without_bias(lambda *operands: -apply(*operands)),
        logp_entropy=_without_bias(logp_entropy),
    )


def cce(impl: str) -> Calls:
    from cut_cross_entropy import linear_cross_entropy

    loss = partial(linear_cross_entropy, impl=impl)
    return Calls(
        logp=_without_bias(lambda *operands: -loss(*operands, reduction="none")),
        ce=_without_bias(loss),
    )
