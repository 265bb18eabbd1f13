"""The compiled module of the CPU's kernels."""

import importlib
import importlib.util
from typing import Any

import torch


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


# At import, once: a traced call must not load anything, nor look for it.
EXTENSION = _load_extension()


def empty_cache() -> int:
    """Gives the buffers that wait for the next call back to the system and returns their bytes.

    On the CPU a released weight gradient, and the probabilities kept for a backward pass, are not
    unmapped: the next call takes them over instead of faulting in new memory. They are never more
    than what the steps under way at once had in use, and this returns them, say before an
    evaluation that needs the memory.
    """
    if isinstance(EXTENSION, str):
        return 0
    released: int = importlib.import_module("wavalign_fast._C").release_recycled()
    return released
