"""Files a command writes: whole or absent. A link stays a link; a pipe or a device is written into.

A regular file is written beside its place and renamed over it, at the end of its links. What
cannot be replaced so (pipes, devices, files with several names, files in a directory that takes no
new ones) is opened and written.
"""

import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROBE_BYTES = 1 << 16
TEMPORARY = re.compile(r"\.wavalign-\d+\.tmp")
"""Names of files on their way to their place; a process that is killed may leave one."""
NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""A file system that cannot set space aside; the write itself will say whether there is some."""


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path``; missing directories are made. Raises ``OSError``."""
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
    """Raises ``OSError`` where ``write_whole`` could not write ``path``; leaves nothing behind."""
    with _named(path):
        target = _replaceable(path)
        if target is not None:
            reserve(_nearest_directory(target.parent), PROBE_BYTES)


def reserve(directory: Path, size: int) -> None:
    """Raises ``OSError`` unless a file of ``size`` bytes can be written in ``directory`` now."""
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
    """Whether what is written to ``path`` arrives among what this process prints."""
    try:
        there = os.stat(path)
        return os.path.samestat(there, os.fstat(1)) and not path.samefile(os.devnull)
    except OSError:
        return False


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors name the file that the user knows, not a temporary one or none at all."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _open_for_writing(path: Path) -> int:
    """A descriptor of a file, device or pipe; says so where it waits for the reader of a pipe."""
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
        os.fsync(file.fileno())  # a full disk may say so only now


def _replaceable(path: Path) -> Path | None:
    """The file to replace, links followed; ``None`` where ``path`` must be opened and written."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):  # a rename would replace it all the same
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    # /dev/stdout and /proc/self/fd/1 may be a regular file that this process has open.
    opened = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    if opened or not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        return None
    target = Path(os.path.realpath(path))
    return target if os.access(target.parent, os.W_OK) else None


def _temporary_in(directory: Path) -> Path:
    """A name of this process in a directory, free to be made."""
    temporary = directory / f".wavalign-{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    return temporary


def _nearest_directory(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
