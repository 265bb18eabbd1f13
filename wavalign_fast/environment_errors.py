"""Failures that are neither the user's mistake nor a bug here: broken packages and full disks."""

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
    """One line about an error of the machine; None for one that deserves its traceback."""
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
    """The other package whose own module code raised ``error`` while it was imported, if any.

    A package can fail to import with any exception: a shared library that is missing, a version
    that is too old for another one. The frames say what the type of the exception does not.
    """
    package = None
    for name, code in _frames(error):
        if code == "<module>" and name.split(".")[0] not in ("wavalign_fast", "__main__"):
            package = name.split(".")[0]
    return package


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """Module and function of each frame, of the error and then of what it was raised from."""
    at: BaseException | None = error
    while at is not None:
        trace = at.__traceback__
        while trace is not None:
            frame = trace.tb_frame
            yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
            trace = trace.tb_next
        at = at.__cause__
