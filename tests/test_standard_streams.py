"""Streams whose reader is gone, or that cannot encode a character.

``standard_streams.py`` needs the standard library alone, so the processes here start in no time.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wavalign_fast import standard_streams as module
from wavalign_fast.standard_streams import standard_streams

LOAD = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("streams", {module.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.standard_streams() as streams:
    WORK
    failure = streams.failure()
sys.exit(failure)
"""
LIMIT_S = 60


def start(work, env=None, **popen):
    """Runs ``work`` with ``streams``, then exits with what was lost."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen
    command = [sys.executable, "-S", "-c", LOAD.replace("WORK", work)]
    env = {**os.environ, "PYTHONUNBUFFERED": "", **(env or {})}
    return subprocess.Popen(command, env=env, **pipes)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_nothing(unbuffered):
    """As with ``| head -1``; includes what the interpreter writes at its end."""
    work = "[print('step', n, flush=n % 3 == 0) for n in range(30_000)]; print('end')"
    process = start(work, env={"PYTHONUNBUFFERED": unbuffered})
    assert process.stdout.readline() == b"step 0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(LIMIT_S) == 0


def test_a_reader_of_both_streams_that_goes_away():
    work = "[print('step', n, file=(sys.stdout, sys.stderr)[n % 2]) for n in range(30_000)]"
    process = start(work, stderr=subprocess.STDOUT)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0


def test_a_terminal_that_was_closed_ends_nothing(tmp_path):
    master, slave = os.openpty()
    done = tmp_path / "done"
    work = f"sys.stdin.read(); print('late', flush=True); open({str(done)!r}, 'w').close()"
    process = start(work, stdin=subprocess.PIPE, stdout=slave, stderr=slave)
    os.close(slave)
    os.close(master)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0 and done.exists()


def test_a_full_disk_under_the_log_is_said_and_ends_nothing(tmp_path):
    work = "[print('step', n) for n in range(30_000)]; print('went on', file=sys.stderr)"
    with open("/dev/full", "wb") as full:
        process = start(work, stdout=full)
        _, err = process.communicate(timeout=LIMIT_S)
    assert err.decode().splitlines() == [
        "went on",
        "stdout cannot be written: No space left on device",
    ]
    assert process.returncode == 1


def test_streams_that_were_never_open():
    work = "print('nobody'); print('hears', file=sys.stderr)"
    program = [sys.executable, "-S", "-c", LOAD.replace("WORK", work)]
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *program]
    assert subprocess.run(closed, timeout=LIMIT_S, check=False).returncode == 0


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", rb"lambda -> 3 x 4 ... yes \xe9 \u6f22 \udcff"),
        ("ascii:strict", rb"lambda -> 3 x 4 ... yes \xe9 \u6f22 \udcff"),
        ("latin-1", b"lambda -> 3 \xd7 4 ... yes \xe9 \\u6f22 \\udcff"),
        ("cp1252", b"lambda -> 3 \xd7 4 \x85 yes \xe9 \\u6f22 \\udcff"),
        ("utf-8", "λ → 3 × 4 … ✓ é 漢 \\udcff".encode()),
    ],
)
def test_what_a_stream_cannot_encode_is_spelled(encoding, shown):
    work = "[print('λ → 3 × 4 … ✓ é 漢 \\udcff', file=s) for s in (sys.stdout, sys.stderr)]"
    out, err = start(work, env={"PYTHONIOENCODING": encoding}).communicate(timeout=LIMIT_S)
    assert out == err == shown + b"\n"


READ = {"data/words", "evaluation/choices", "evaluation/presets", "evaluation/refusals"}
"""Modules with signs of other languages, which they look for in texts and do not print."""


def test_every_sign_that_is_printed_has_a_spelling():
    """Checks the package's strings but docstrings; the report's page is UTF-8 anyway."""
    package = Path(module.__file__).parent
    signs = set()
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "report") or path.samefile(module.__file__):
            continue
        if str(path.relative_to(package).with_suffix("")) in READ:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = (n.value for n in nodes if isinstance(n, ast.Constant) and id(n) not in docs)
        shown = "".join(text for text in texts if isinstance(text, str))
        signs |= {sign for sign in shown if ord(sign) > 127 and sign.isprintable()}
    assert {"λ", "→"} <= signs
    assert signs - set(module.SPELLED) == set()


def test_captured_streams_are_left_alone(capsys):
    before = sys.stdout, sys.stderr
    with standard_streams() as streams:
        assert (sys.stdout, sys.stderr) == before
        print("λ")
    assert streams.failure() is None
    assert capsys.readouterr().out == "λ\n"
