"""Writes the files of a command whole or not at all.

A regular file is written to a temporary file beside it, which is then renamed over it. Links are
followed and stay links. What cannot be replaced by a rename is opened and written: pipes, devices,
files with several hard links, and files in a directory where no file can be created.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROBE_BYTES = 1 << 16
TEMPORARY = re.compile(r"\.wavalign-\d+\.tmp")
"""Names of temporary files; a killed process may leave one behind."""
NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""The file system cannot preallocate space; then only the write itself finds a full disk."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` and makes missing directories. Raises ``OSError``."""
    with _named(path):
        target = _replaceable(path)
        if target is None:
            with open(_open_for_writing(path), "wb") as file:
                file.write(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_in(target.parent)
        try:
            _write_synced(temporary, data)
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """Raises ``OSError`` if ``write_whole`` could not write ``path``; leaves nothing behind."""
    with _named(path):
        target = _replaceable(path)
        if target is not None:
            reserve(_nearest_directory(target.parent), PROBE_BYTES)


def reserve(directory: Path, size: int) -> None:
    """Raises ``OSError`` unless a file of ``size`` bytes fits into ``directory`` now."""
    probe = _temporary_in(directory)
    try:
        with probe.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        probe.unlink(missing_ok=True)


def is_stdout(path: Path) -> bool:
    """Whether ``path`` is the standard output of this process."""
    try:
        there = os.stat(path)
        return os.path.samestat(there, os.fstat(1)) and not path.samefile(os.devnull)
    except OSError:
        return False


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Makes an ``OSError`` name the user's file instead of a temporary one or none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _open_for_writing(path: Path) -> int:
    """Opens a file, device or pipe; prints a line if it has to wait for the reader of a pipe."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
    if not path.is_fifo():
        return os.open(path, flags)
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        print(f"wavalign-fast: {path} is a pipe; waiting for its reader", file=sys.stderr)
        return os.open(path, flags)
    os.set_blocking(descriptor, True)
    return descriptor


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a full disk may be reported only here


def _replaceable(path: Path) -> Path | None:
    """Returns the file to replace, links followed, or ``None`` if ``path`` must be opened."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):  # a rename would replace it nevertheless
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # /dev/stdout and /proc/self/fd/1 may be a regular file that this process has opened.
    opened = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    if opened or not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        return None
    target = Path(os.path.realpath(path))
    return target if os.access(target.parent, os.W_OK) else None


def _temporary_in(directory: Path) -> Path:
    """Returns the name of a temporary file that no other thread, process or machine has."""
    return directory / f".wavalign-{secrets.randbits(63)}.tmp"


def _nearest_directory(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
