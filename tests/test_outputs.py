"""Output files are whole or absent; links, pipes and devices stay what they are."""

import errno
import os
import stat
import subprocess
import threading
import time

import pytest

from wavalign_fast import outputs
from wavalign_fast.outputs import check_output, is_stdout, reserve, write_whole


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("place", ["a.bin", "new/deep/a.bin"])
def test_a_file_is_written_with_its_directories(tmp_path, place):
    write_whole(tmp_path / place, b"new")
    assert (tmp_path / place).read_bytes() == b"new"
    assert names((tmp_path / place).parent) == ["a.bin"]


def test_a_pipe_stays_a_pipe_and_its_reader_gets_all(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_output(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, b"x" * 200_000)
    reader.join(timeout=10)
    assert got == [b"x" * 200_000]
    assert stat.S_ISFIFO(os.lstat(pipe).st_mode) and names(tmp_path) == ["pipe"]


def test_a_pipe_without_a_reader_says_that_it_waits(tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_whole, args=(pipe, b"x" * 200_000), daemon=True)
    writer.start()
    said = ""
    for _ in range(1000):
        said += capsys.readouterr().err
        if said:
            break
        time.sleep(0.01)
    assert said == f"wavalign-fast: {pipe} is a pipe; waiting for its reader\n"
    assert pipe.read_bytes() == b"x" * 200_000
    writer.join(timeout=10)
    assert not writer.is_alive()


def test_a_device_is_written_into(tmp_path):
    before = os.stat(os.devnull)
    write_whole(tmp_path / os.devnull, b"x")
    assert os.path.samestat(before, os.stat(os.devnull))
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "/dev/full", b"x")


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path, exists):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "target"
    if exists:
        target.write_bytes(b"old")
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to("there/target")
    check_output(tmp_path / "first")
    write_whole(tmp_path / "first", b"new")
    assert os.readlink(tmp_path / "first") == "second" and (tmp_path / "second").is_symlink()
    assert target.read_bytes() == b"new" and names(tmp_path / "there") == ["target"]


def test_a_second_name_of_a_file_keeps_showing_the_same(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    os.link(tmp_path / "a", tmp_path / "b")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "b").read_bytes() == b"new"


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    may = os.access  # root may write everything, so that the mode of the file shows nothing
    monkeypatch.setattr(
        outputs.os, "access", lambda path, mode: path != tmp_path / "a" and may(path, mode)
    )
    for write in (check_output, lambda path: write_whole(path, b"new")):
        with pytest.raises(PermissionError):
            write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_file_system_that_sets_no_space_aside_is_no_full_disk(tmp_path, monkeypatch):
    def not_offered(*args):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(outputs.os, "posix_fallocate", not_offered)
    reserve(tmp_path, 1 << 40)
    assert names(tmp_path) == []


def test_the_mode_of_a_file_stays(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o640)
    write_whole(tmp_path / "a", b"new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_file_of_this_process_is_written_where_it_is_open(tmp_path):
    # The file that `> out.wav` opened must get the bytes, not a new file of the same name.
    with (tmp_path / "out").open("wb") as file:
        write_whole(tmp_path / f"/dev/fd/{file.fileno()}", b"new")
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_place_that_takes_no_file_is_found_before(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    for place in ("", "file/a.wav", "loop", "x" * 300, "/proc/none/a.wav", "/sys/a.wav"):
        with pytest.raises(OSError) as caught:
            check_output(tmp_path / place)
        assert caught.value.filename == str(tmp_path / place)
    assert names(tmp_path) == ["file", "loop"]


def test_checking_leaves_no_trace(tmp_path):
    check_output(tmp_path / "new" / "deep" / "a.wav")
    assert names(tmp_path) == []


def test_a_file_beyond_the_limit_of_this_process_is_refused(tmp_path):
    script = (
        "import resource, pathlib, wavalign_fast.outputs as outputs\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: outputs.reserve(pathlib.Path('.'), 8192)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run(
        [os.sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "File too large", done.stderr
    assert names(tmp_path) == []
    reserve(tmp_path, 8192)


def test_stdout_is_known_by_any_name(tmp_path):
    script = (
        "import pathlib, sys, wavalign_fast.outputs as outputs\n"
        "for name in sys.argv[1:]: print(outputs.is_stdout(pathlib.Path(name)))\n"
    )
    with (tmp_path / "out").open("w") as file:
        given = ["/dev/stdout", "/proc/self/fd/1", str(tmp_path / "out"), "/dev/null", "none"]
        subprocess.run([os.sys.executable, "-c", script, *given], stdout=file, check=True)
    assert (tmp_path / "out").read_text().split() == ["True"] * 3 + ["False"] * 2
    assert not is_stdout(tmp_path / "other")
