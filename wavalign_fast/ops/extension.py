"""The compiled modules: the C++ kernels are loaded here, the CUDA kernels by ``ops.cuda``."""

import importlib
import importlib.util
from typing import Any

import torch


def load_module(name: str, kernels: str, compiler: str) -> dict[str, Any] | str:
    """The build information of a compiled module of this package, or why it cannot be used."""
    if importlib.util.find_spec(f"wavalign_fast.{name}") is None:
        return f"the {kernels} kernels were not built (no {compiler} at installation)"
    try:
        module = importlib.import_module(f"wavalign_fast.{name}")
    except ImportError as error:
        return f"the {kernels} kernels do not load: {error}"
    info: dict[str, Any] = module.build_info()
    return info


def _load_extension() -> dict[str, Any] | str:
    """``load_module`` of the C++ kernels, which have to be of this torch."""
    info = load_module("_C", "C++", "compiler")
    if isinstance(info, str):
        return info
    built, running = (v.split("+")[0].rsplit(".", 1)[0] for v in (info["torch"], torch.__version__))
    if built != running:
        return f"the C++ kernels were built for torch {info['torch']}, this is {torch.__version__}"
    return info


# Loaded once, at import: a traced call must not import a module, nor search for one.
EXTENSION = _load_extension()


def empty_cache() -> int:
    """Frees the cached buffers of the CPU's kernels and returns their size in bytes.

    A weight gradient that is released, and the probabilities that a forward pass kept for its
    backward pass, stay mapped as cached buffers: the next call reuses them instead of faulting in
    new memory. They are never larger than what the steps running at once had in use. Free them
    before work that needs the memory, such as an evaluation.
    """
    if isinstance(EXTENSION, str):
        return 0
    released: int = importlib.import_module("wavalign_fast._C").release_cached_buffers()
    return released
