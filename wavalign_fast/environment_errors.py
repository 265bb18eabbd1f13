"""Explains errors of the environment: broken packages, full disks."""

import errno
import os
from collections.abc import Iterator

from wavalign_fast.errors import described, one_line

TRAIN_PACKAGES = {
    "transformers",
    "safetensors",
    "numpy",
    "pydantic",
    "yaml",
    "rich",
    "pocketsphinx",
}
OURS = os.path.dirname(os.path.abspath(__file__))
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}


def explain_environment_error(error: BaseException) -> str | None:
    """Describes an error of the environment on one line; ``None`` for any other error."""
    if isinstance(error, ModuleNotFoundError) and error.name in TRAIN_PACKAGES:
        return f"{error.name} is not installed; pip install 'wavalign-fast[train]'"
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in TRAIN_PACKAGES:
        return f"{error.name} cannot be used: {one_line(error)}"
    if package := _package_that_failed(error):
        return f"{package} cannot be imported: {described(error)}"
    if isinstance(error, SyntaxError) and not str(error.filename).startswith(OURS):
        return f"{error.filename} cannot be imported: {one_line(error)}"
    if isinstance(error, OSError) and error.errno in DISK:
        return one_line(error)
    return None


def _package_that_failed(error: BaseException) -> str | None:
    """Returns the package whose module code raised ``error`` during its import, if any.

    A failing import can raise any exception, for example because a shared library is missing or a
    dependency is too old. So the frames of the traceback decide, not the type of the exception.
    """
    package = None
    for name, code in _frames(error):
        if code == "<module>" and name.split(".")[0] not in ("wavalign_fast", "__main__"):
            package = name.split(".")[0]
    return package


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """Yields module and function of each frame, of the error and then of its causes."""
    at: BaseException | None = error
    while at is not None:
        trace = at.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
            trace = trace.tb_next
        at = at.__cause__
