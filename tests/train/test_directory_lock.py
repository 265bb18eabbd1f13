"""Two processes never share a run directory, and a dead one blocks nobody."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.train import directory_lock
from wavalign_fast.train.directory_lock import LOCK_FILE, check_free, locked

HOLD = (
    "import pathlib, sys, time\n"
    "from wavalign_fast.train.directory_lock import locked\n"
    "with locked([pathlib.Path(p) for p in sys.argv[1:]]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``runs/a`` until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "runs" / "a")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_told_who_holds_the_run(tmp_path, holder):
    with pytest.raises(UserError, match=f"runs/a is in use by process {holder.pid} on "):  # noqa: SIM117
        with locked([tmp_path / "runs", tmp_path / "runs" / "a"]):
            pass
    with locked([tmp_path / "runs" / "b"]):
        pass
    assert sorted(os.listdir(tmp_path / "runs")) == ["a"]


def test_a_directory_that_another_process_makes_meanwhile_is_no_file(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def made_by_another(path, *args, **kwargs):
        os.mkdir(path)
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", made_by_another)
    with locked([tmp_path / "runs" / "a"]):
        assert (tmp_path / "runs" / "a" / LOCK_FILE).exists()


def test_a_directory_that_another_process_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    acquire, times = directory_lock._acquire, []

    def removed_by_another(path):
        times.append(path)
        if len(times) == 1:
            path.parent.rmdir()
        return acquire(path)

    monkeypatch.setattr(directory_lock, "_acquire", removed_by_another)
    with locked([tmp_path / "a"]):
        assert (tmp_path / "a" / LOCK_FILE).exists()
    assert os.listdir(tmp_path) == []


def test_looking_for_a_holder_changes_nothing(tmp_path, holder):
    with pytest.raises(UserError, match=f"runs/a is in use by process {holder.pid} on "):
        check_free([tmp_path / "none", tmp_path, tmp_path / "runs" / "a"])
    holder.kill()
    holder.wait()
    before = (tmp_path / "runs" / "a" / LOCK_FILE).read_text()
    check_free([tmp_path / "none", tmp_path, tmp_path / "runs" / "a"])
    assert (tmp_path / "runs" / "a" / LOCK_FILE).read_text() == before


def test_a_killed_process_keeps_nobody_out(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "runs" / "a" / LOCK_FILE).exists()
    with locked([tmp_path / "runs" / "a"]):
        pass


def test_the_same_directory_cannot_be_held_twice_by_any_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    with locked([tmp_path / "a"]), pytest.raises(UserError, match="in use by process"):  # noqa: SIM117
        with locked([tmp_path / "b"]):
            pass


def test_nothing_is_left_of_a_directory_that_stayed_empty(tmp_path):
    (tmp_path / "mine").mkdir()
    with locked([tmp_path / "new" / "deep", tmp_path / "mine", tmp_path / "full"]):
        assert (tmp_path / "new" / "deep" / LOCK_FILE).exists()
        (tmp_path / "full" / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]


def test_a_lock_on_a_file_that_was_removed_in_between_does_not_count(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def flock_after_the_holder_ended(descriptor, how):
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(directory_lock.fcntl, "flock", flock_after_the_holder_ended)
    with locked([tmp_path]):
        assert len(calls) == 2
        assert (tmp_path / LOCK_FILE).read_text().split()[0] == str(os.getpid())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_file_says_who_holds_the_run(tmp_path, monkeypatch, number):
    def no_locks(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory_lock.fcntl, "flock", no_locks)
    host, path = socket.gethostname(), tmp_path / LOCK_FILE
    for text, held in [
        (f"{os.getppid()} {host}\n", True),
        ("7 another-host\n", True),
        (f"{2**22 + 1} {host}\n", False),  # beyond the largest process id of Linux
        ("", False),
        ("half a li", False),
    ]:
        path.write_text(text)
        if held:
            with pytest.raises(UserError, match=r"in use by process .* or remove .*lock"):  # noqa: SIM117
                with locked([tmp_path]):
                    pass
            assert path.read_text() == text
        else:
            with locked([tmp_path]):
                assert path.read_text() == f"{os.getpid()} {host}\n"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "file is a file, wanted a directory"),
        ("file/run", "file is a file, wanted a directory"),
        ("dangling", "dangling is a link to nowhere, wanted a directory"),
        ("dangling/run", "dangling is a link to nowhere, wanted a directory"),
        ("loop", "loop is a link to loop, wanted a directory"),
        ("x" * 300, "cannot be made: .*File name too long"),
        ("/proc/run", "cannot be made"),
        ("/sys/run", "cannot be made"),
    ],
)
def test_a_place_that_takes_no_directory_is_one_line(tmp_path, place, message):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=message) as error, locked([tmp_path / place]):
        pass
    assert "\n" not in str(error.value)
    assert len(os.listdir(tmp_path)) == 3
