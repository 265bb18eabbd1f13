"""How a fused loss is computed: backend, memory, accuracy. The mathematics stays the same."""

from dataclasses import dataclass
from typing import Literal

import torch

from wavalign_fast.ops.inputs import check_type, finite_number, true_or_false, whole_number

Backend = Literal["auto", "cpu", "triton", "cuda", "reference"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "triton", "cuda", "reference")


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of every fused loss. A backend that cannot honour an option raises and names it.

    Args:
        backend: ``auto`` takes ``WAVALIGN_BACKEND`` if it is set, else the fastest backend that
            supports the tensors.
        memory_budget: bytes of vocabulary-sized buffers that may exist at once. ``None`` means
            512 MiB on the CPU and 2 GiB on a GPU; a GPU always may hold the logits of 256 rows. A
            smaller budget costs time and does not change a bit of a value.
        weight_grad_dtype: the least precise dtype in which the weight's gradient may be
            accumulated. The gradient itself has the weight's dtype.
        deterministic: a row gets the same bits whatever the batch around it. ``False`` permits a
            backend to trade that for speed: a GPU then runs one GEMM for each chunk, whatever its
            height, and computes log-probs that need no gradient without writing any logits.
        skip_tolerance: CPU only. The backward pass skips the vocabulary segments of a row that
            have the least probability mass, as long as their masses add up to at most this much.
            A speech row then reads little but the speech ids. With ``g = dL/dlogp`` of a row,
            ``h`` its hidden state and ``w`` the rows of the head, the error is bounded by
            ``|Δ dL/dh| <= |g| · skip_tolerance · max |w|`` for each row, and by
            ``|Δ dL/dW| <= skip_tolerance · Σ |g| |h|``, summed over the rows. Values stay exact,
            and so do gradients of an entropy.
        live_rows: GPU only. An upper bound on the number of positions that carry loss. With it
            the host need not sync even if the targets are on the GPU, and a CUDA graph can capture
            a step without computing the other positions. If more positions carry loss, the
            results are NaN. Targets on the CPU need no such bound.

    Raises:
        ValueError: a value outside its range; the message has the value and the range.
    """

    backend: Backend = "auto"
    memory_budget: int | None = None
    weight_grad_dtype: torch.dtype = torch.float32
    deterministic: bool = True
    skip_tolerance: float = 0.0
    live_rows: int | None = None

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
    """The options, or the defaults for ``None``.

    Raises:
        ValueError: for anything else.
    """
    if options is None:
        return LossOptions()
    check_type("options", options, LossOptions)
    return options
