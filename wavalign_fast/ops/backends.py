"""Which backends can be used here, and which one a call takes."""

import importlib.util
import os

import torch

from wavalign_fast.ops import cuda, extension
from wavalign_fast.ops.dtypes import KERNEL_DTYPES
from wavalign_fast.ops.notices import warn_once
from wavalign_fast.ops.options import BACKENDS, LossOptions, checked_options

_ENV_BACKEND = os.environ.get("WAVALIGN_BACKEND", "auto")
# Looked up once, at import: a traced call must not search for modules.
TRITON = importlib.util.find_spec("triton") is not None


def backend_status(device: torch.device | None = None) -> dict[str, str | None]:
    """For each backend ``None`` if it can be used here, else the reason why not.

    Args:
        device: the GPU to ask about; by default torch's current one.
    """
    return {name: status_of(name, device) for name in ("reference", "cpu", "triton", "cuda")}


def status_of(backend: str, device: torch.device | None = None) -> str | None:
    """``backend_status`` of one backend; the others are not looked up."""
    if backend == "cpu":
        found = extension.EXTENSION
        return found if isinstance(found, str) else None
    if backend == "triton":
        return _triton_status()
    return cuda.status(device) if backend == "cuda" else None


def _triton_status() -> str | None:
    if not TRITON:
        return "triton is not installed"
    if not torch.cuda.is_available() and not _interpreting():
        return "there is no GPU that this torch sees"
    return None


def _interpreting() -> bool:
    """Whether Triton's kernels run on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def choose_backend(options: LossOptions, hidden: torch.Tensor) -> str:
    """The backend of this call: the one asked for, or with ``auto`` the fastest.

    Raises:
        ValueError: the backend asked for cannot be used, or it cannot honour an option.
    """
    asked = _asked_backend(options)
    if asked == "auto":
        chosen = _fastest(hidden)
    else:
        chosen, reason = asked, _unusable(asked, hidden)
        if reason is not None:
            raise ValueError(f"backend {asked!r} cannot be used: {reason}")
    _refuse_unhonoured(chosen, options, hidden.dtype)
    return chosen


def takes_cuda_groups(rewards: torch.Tensor, options: LossOptions | None) -> bool:
    """Whether the CUDA kernels compute the statistics of these groups of rewards.

    They do where the backend asked for is ``cuda`` or ``auto`` and the rewards are on a GPU that
    the kernels were built for; in every other case plain torch does.
    """
    asked = _asked_backend(checked_options(options))
    return asked in ("auto", "cuda") and cuda.serves(rewards)


def _asked_backend(options: LossOptions) -> str:
    """The option, or ``WAVALIGN_BACKEND`` where the option is ``auto``."""
    asked = options.backend if options.backend != "auto" else _ENV_BACKEND
    if asked not in BACKENDS:
        raise ValueError(f"WAVALIGN_BACKEND: got {asked!r}, want one of {', '.join(BACKENDS)}")
    return asked


def _unusable(backend: str, hidden: torch.Tensor) -> str | None:
    """Why ``backend`` cannot take these tensors; ``None`` if it can."""
    if backend == "reference":
        return None
    on_cpu = hidden.device.type == "cpu"
    if on_cpu != (backend == "cpu") and not (backend == "triton" and _interpreting()):
        wanted = "the CPU" if backend == "cpu" else "a GPU"
        return f"the tensors are on {hidden.device}, want {wanted}"
    if hidden.dtype not in KERNEL_DTYPES:
        return f"hidden is {hidden.dtype}, want float32, bfloat16 or float16"
    return status_of(backend, hidden.device)


def _fastest(hidden: torch.Tensor) -> str:
    """The first of CUDA, Triton and C++ that can take these tensors, else plain torch."""
    if hidden.device.type == "meta":  # shapes only: nothing is computed
        return "reference"
    wanted = ("cpu",) if hidden.device.type == "cpu" else ("cuda", "triton")
    reasons = {}
    for backend in wanted:
        reason = _unusable(backend, hidden)
        if reason is None:
            return backend
        reasons[backend] = reason
    if hidden.dtype in KERNEL_DTYPES:
        why = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
        warn_once(f"wavalign_fast runs on plain PyTorch, slower and with full logits: {why}")
    return "reference"


HONOURED: dict[str, set[str]] = {
    "reference": set(),
    "cpu": {"memory_budget", "skip_tolerance"},
    "cuda": {"memory_budget", "live_rows"},
    "triton": {"memory_budget", "live_rows"},
}
"""For each backend the options that it honours, of those that not every backend does."""
NOT_EVERYWHERE = ("memory_budget", "live_rows", "skip_tolerance")
"""These options, in the order in which they are refused."""


def _refuse_unhonoured(backend: str, options: LossOptions, dtype: torch.dtype) -> None:
    if options.weight_grad_dtype == torch.float64 != dtype:
        raise ValueError(
            f"weight_grad_dtype: got torch.float64, but backend {backend!r} sums in float32 for "
            f"operands of {dtype}; want float64 operands on 'reference', or torch.float32"
        )
    for name in NOT_EVERYWHERE:
        value, default = getattr(options, name), getattr(LossOptions, name)
        if value != default and name not in HONOURED[backend]:
            raise ValueError(
                f"{name}: got {value}, but backend {backend!r} does not honour it; want {default}"
            )
