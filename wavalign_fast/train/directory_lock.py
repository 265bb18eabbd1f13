"""Locks run directories, so that no two processes write to the same one.

The lock is an advisory lock on a file in the directory. The kernel releases it when its holder ends
in any way, so a file left behind by a killed process blocks nobody. On a file system without such
locks the text of the file decides: it names the process that holds the lock, and a process of this
machine that no longer exists does not hold it.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from wavalign_fast.errors import UserError, one_line

LOCK_FILE = ".wavalign-lock"
ATTEMPTS = 100
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(directories: Sequence[Path]) -> Iterator[None]:
    """Holds the locks of run directories; makes directories that are missing.

    On exit the lock files are removed, and so are directories made here that are still empty.

    Raises:
        UserError: another process holds a lock, or a directory cannot be made or written.
    """
    with ExitStack() as stack:
        for directory in dict.fromkeys(directories):
            stack.enter_context(_locked(directory))
        yield


def check_free(directories: Iterable[Path]) -> None:
    """Raises ``UserError`` if another process holds one of the directories; changes nothing."""
    for directory in directories:
        with suppress(OSError):
            descriptor = os.open(directory / LOCK_FILE, os.O_RDWR)
            try:
                _lock(descriptor, directory / LOCK_FILE)
            finally:
                os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    made: list[Path] = []
    try:
        descriptor = _make_and_acquire(directory, made)
        try:
            yield
        finally:
            # Removed while still locked: a process that has opened it sees that it is gone.
            (directory / LOCK_FILE).unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()


def _make_and_acquire(directory: Path, made: list[Path]) -> int:
    """Returns the locked descriptor; adds the directories that it had to make to ``made``."""
    missing = OSError()
    for _ in range(ATTEMPTS):
        try:
            _make(directory, made)
            return _acquire(directory / LOCK_FILE)
        except FileNotFoundError as error:
            missing = error  # another process has just removed a directory that it left empty
        except OSError as error:
            done = "written" if os.path.isdir(directory) else "made"
            raise UserError(f"{directory} cannot be {done}: {one_line(error)}") from error
    raise UserError(f"{directory} cannot be made: {one_line(missing)}") from missing


def _make(directory: Path, made: list[Path]) -> None:
    for path in [*reversed(directory.parents), directory]:
        if path.is_dir():
            continue
        try:
            path.mkdir()
            made.append(path)
        except FileExistsError as error:
            if path.is_dir():
                continue  # made by another process in the meantime
            what = f"a link to {os.readlink(path)}" if os.path.islink(path) else "a file"
            raise UserError(f"{path} is {what}, wanted a directory for runs") from error


def _acquire(path: Path) -> int:
    """Locks the lock file, writes this process into it, and returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            # The previous holder may have removed the file; a lock on it would block nobody.
            if _is_there(descriptor, path):
                _sign(descriptor, path)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sign(descriptor: int, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
    holder = f"process {pid} on {host}" if pid.isdigit() and host else "another process"
    held = f"{path.parent} is in use by {holder}; wait for its end or give another --name"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(held) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        here = host == socket.gethostname()
        if pid.isdigit() and host and not (here and _is_gone(int(pid))):
            raise UserError(f"{held}, or remove {path} if that process is gone") from error


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False
