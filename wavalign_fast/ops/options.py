"""How a fused loss is computed: backend, memory, accuracy. The mathematics stays the same."""

from dataclasses import dataclass
from typing import Literal

import torch

from wavalign_fast.ops.inputs import check_type, finite_number, true_or_false, whole_number

Backend = Literal["auto", "cpu", "triton", "cuda", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "triton", "cuda", "reference")


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of every fused loss. A path that cannot honour one raises and names it."""

    backend: Backend = "auto"
    """``auto`` takes ``WAVALIGN_BACKEND`` if set, else the fastest backend for the tensors."""
    memory_budget: int | None = None
    """Bytes that may hold vocabulary-sized buffers; ``None`` is 512 MiB on the CPU, 2 GiB on a GPU,
    where logits of 256 rows always may. A smaller budget costs time, never a bit of a value."""
    weight_grad_dtype: torch.dtype = torch.float32
    """The least precise type in which the weight's gradient may be accumulated. The gradient
    itself has the weight's dtype."""
    deterministic: bool = True
    """Same row, same bits, whatever the batch. ``False`` permits a backend to trade that for speed:
    on a GPU, products of the height that suits the library, and scores without a gradient that
    write no logits at all."""
    skip_tolerance: float = 0.0
    """How much of a row's softmax its gradient may leave out: the parts of the vocabulary with the
    least mass, together at most this much. A speech row then meets little but the speech ids.
    With ``g = dL/dlogp`` of a row, ``h`` its hidden state and ``w`` the head's rows:
    ``|Δ dL/dh| <= |g| · skip_tolerance · max |w|`` in each row, ``|Δ dL/dW| <= skip_tolerance ·
    Σ |g| |h|`` over the rows. Values stay exact, and so do gradients of an entropy."""
    live_rows: int | None = None
    """GPU only: at most so many positions carry loss. The host then waits for nothing even where
    the targets are on the GPU, and a step can be captured in a CUDA graph without multiplying the
    rest. Where more positions do, the results are NaN. Targets on the CPU need no such bound."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: got {self.backend!r}, want one of {', '.join(BACKENDS)}")
        if self.memory_budget is not None:
            whole_number("memory_budget", self.memory_budget, low=0, unit=" bytes")
        true_or_false("deterministic", self.deterministic)
        if self.weight_grad_dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"weight_grad_dtype: got {self.weight_grad_dtype}, want torch.float32 or "
                "torch.float64: no backend accumulates the weight's gradient in less"
            )
        if self.live_rows is not None:
            whole_number("live_rows", self.live_rows, low=0)
        tolerance = finite_number("skip_tolerance", self.skip_tolerance)
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"skip_tolerance: got {self.skip_tolerance}, want 0 <= value < 1")


def checked_options(options: LossOptions | None) -> LossOptions:
    """The options, by default all at their defaults; a ``ValueError`` for anything else."""
    if options is None:
        return LossOptions()
    check_type("options", options, LossOptions)
    return options
