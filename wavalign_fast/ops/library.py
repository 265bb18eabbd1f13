"""Loads the compiled kernels, teaches torch about their ops, and chooses the backend of a call."""

import importlib
import importlib.util
import os
import warnings
from typing import Any

import torch

from wavalign_fast.ops.options import BACKENDS, LossOptions

DEFAULT_MEMORY_BUDGET = 512 * 2**20
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ENV_BACKEND = os.environ.get("WAVALIGN_BACKEND", "auto")


def _load_extension() -> dict[str, Any] | str:
    """The compiled module's build information, or why it cannot be used."""
    if importlib.util.find_spec("wavalign_fast._C") is None:
        return "the C++ kernels were not built (no compiler at installation)"
    try:
        kernels = importlib.import_module("wavalign_fast._C")
    except ImportError as error:
        return f"the C++ kernels do not load: {error}"
    info: dict[str, Any] = kernels.build_info()
    built, running = (v.split("+")[0].rsplit(".", 1)[0] for v in (info["torch"], torch.__version__))
    if built != running:
        return f"the C++ kernels were built for torch {info['torch']}, this is {torch.__version__}"
    return info


# At import, once: a traced call must not load anything.
EXTENSION = _load_extension()
_said: set[str] = set()


def backend_status() -> dict[str, str | None]:
    """Every backend with ``None`` where it can be used here and else the reason why not."""
    later = "its kernels are not in this release"
    return {
        "reference": None,
        "cpu": EXTENSION if isinstance(EXTENSION, str) else None,
        "triton": later,
        "cuda": later,
    }


def empty_cache() -> int:
    """Gives the buffers that wait for the next call back to the system and returns their bytes.

    On the CPU a released weight gradient, and the probabilities kept for a backward pass, are not
    unmapped: the next call takes them over, which saves a fifth of its time on a large head. They
    are never more than what one step had in use, and this returns them, say before an evaluation
    that needs the memory.
    """
    if isinstance(EXTENSION, str):
        return 0
    released: int = importlib.import_module("wavalign_fast._C").release_recycled()
    return released


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=5)


def choose_backend(options: LossOptions, hidden: torch.Tensor) -> str:
    """The backend for this call: the one asked for, or an error that says what it lacks.

    Raises:
        ValueError: the backend or an option it was given cannot be honoured.
    """
    asked = options.backend if options.backend != "auto" else _ENV_BACKEND
    if asked not in BACKENDS:
        raise ValueError(f"WAVALIGN_BACKEND: got {asked!r}, want one of {', '.join(BACKENDS)}")
    if asked == "auto":
        return _choose_automatically(options, hidden)
    reason = backend_status()[asked]
    if asked == "cpu" and hidden.device.type != "cpu":
        reason = f"the tensors are on {hidden.device}"
    if asked == "cpu" and hidden.dtype not in KERNEL_DTYPES:
        reason = f"hidden is {hidden.dtype}, want float32, bfloat16 or float16"
    if reason is not None:
        raise ValueError(f"backend {asked!r} cannot be used: {reason}")
    _refuse_unhonoured(asked, options)
    return asked


def _choose_automatically(options: LossOptions, hidden: torch.Tensor) -> str:
    chosen = "reference"
    if hidden.device.type == "cpu" and hidden.dtype in KERNEL_DTYPES:
        reason = backend_status()["cpu"]
        if reason is None:
            chosen = "cpu"
        else:
            _say_once(f"wavalign_fast runs on plain PyTorch, slower and with full logits: {reason}")
    elif hidden.device.type != "cpu":
        _say_once(
            f"wavalign_fast runs on plain PyTorch for tensors on {hidden.device.type}, slower and "
            "with full logits: the kernels of this release are for the CPU"
        )
    _refuse_unhonoured(chosen, options)
    return chosen


def _refuse_unhonoured(backend: str, options: LossOptions) -> None:
    if backend == "reference" and options.skip_tolerance > 0:
        raise ValueError(
            f"skip_tolerance: got {options.skip_tolerance}, but backend 'reference' skips "
            "nothing; want 0"
        )
    if backend == "reference" and options.memory_budget is not None:
        raise ValueError(
            f"memory_budget: got {options.memory_budget}, but backend 'reference' builds the full "
            "logits; leave it out or choose another backend"
        )
    if backend == "cpu" and options.weight_grad_dtype != torch.float32:
        raise ValueError(
            f"weight_grad_dtype: got {options.weight_grad_dtype}, but backend 'cpu' accumulates in "
            "torch.float32"
        )
