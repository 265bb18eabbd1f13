"""A reward function of the user may be wrong, fail, die or hang: each is one line, and in time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.rewards import RewardError, RewardFunction

LIMIT_S = 60
"""Far more than a busy machine needs."""
ANSWERS = [{"text": text} for text in ("a", "bc", "")]

SOURCE = """
import json
import os
import time
from friend import twice


def score(answers):
    print("a line for people")
    return [twice(len(answer["text"])) for answer in answers]


async def asynchronous(answers, *, bonus=1):
    return [len(answer["text"]) + bonus for answer in answers]


def various(answers):
    class Scalar:
        ndim = 0
        def item(self):
            return 2.5
    return iter([None, True, Scalar()])


def not_finite(answers):
    return [float("nan"), float("inf"), 1]


def fails(answers):
    x = answers[0]["text"]
    return json.loads(x)


def leaves(answers):
    raise SystemExit("enough")


def a_number(answers):
    return 1.0


def a_text(answers):
    return "112"


def words(answers):
    return ["good"] * len(answers)


def too_few(answers):
    return [1.0]


def dies(answers):
    os.kill(os.getpid(), 9)


def counts(answers, calls=[]):
    calls.append(None)
    return [len(calls)] * len(answers)


def hangs(answers, file):
    import re
    open(file, "w").write(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "b")


def no_arguments():
    return []


constant = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a file of reward functions, and with one that would hide a module."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "friend.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "json.py").write_text("raise ImportError('hidden')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made():
    """Makes reward functions, and ends their processes."""
    functions = []

    def make(name, timeout_s=LIMIT_S, **arguments):
        functions.append(RewardFunction(name, timeout_s=timeout_s, arguments=arguments))
        return functions[-1]

    yield make
    for function in functions:
        function.close()


def test_it_gives_one_number_per_answer(made, capfd):
    assert made("mine.py:score")(ANSWERS) == [2.0, 4.0, 0.0]
    out, err = capfd.readouterr()
    assert out == "" and "a line for people" in err
    assert made("mine.py:asynchronous", bonus=3)(ANSWERS) == [4.0, 5.0, 3.0]
    assert made("mine.py:various")(ANSWERS) == [None, 1.0, 2.5]
    given = made("mine.py:not_finite")(ANSWERS)
    assert str(given) == "[nan, inf, 1.0]"
    assert made("mine.py:score")([]) == []


def test_a_module_of_a_package_is_found_too(made, folder):
    (folder / "judges").mkdir()
    (folder / "judges" / "strict.py").write_text("def score(answers):\n    return [0] * 3\n")
    assert made("judges.strict:score")(ANSWERS) == [0.0, 0.0, 0.0]


def test_messages_longer_than_a_pipe_arrive_whole(made):
    assert made("mine.py:score")([{"text": "x" * 1_000_000}]) == [2_000_000.0]


def test_its_process_stays_between_calls(made):
    function = made("mine.py:counts")
    assert [function(ANSWERS)[0] for _ in range(3)] == [1.0, 2.0, 3.0]
    function.close()
    assert function(ANSWERS) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("score", "'score' given, wanted FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"),
        ("mine.py", "'mine.py' given, wanted FILE.py:FUNCTION"),
        ("mine.py:", "'mine.py:' given, wanted FILE.py:FUNCTION"),
        ("mine.py:a b", "'mine.py:a b' given, wanted FILE.py:FUNCTION"),
        ("other.py:score", "no such file: "),
    ],
)
def test_a_wrong_name_is_refused_at_once(made, name, message):
    with pytest.raises(UserError) as error:
        made(name)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mine.py:scores", {}, "mine.py:scores: it has no scores; did you mean score?"),
        ("mine.py:constant", {}, "mine.py:constant: constant is 3, wanted a function"),
        ("mine.py:score", {"x": 1}, "score(answers, x=…) cannot be called: "),
        ("mine.py:no_arguments", {}, "no_arguments(answers) cannot be called: "),
        ("none.such:score", {}, "ModuleNotFoundError: No module named 'none'"),
    ],
)
def test_what_cannot_be_called_is_said_when_it_is_loaded(made, name, arguments, message):
    function = made(name, **arguments)
    for _ in range(2):  # the first failure leaves nothing half loaded
        with pytest.raises(RewardError) as error:
            function.load()
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = x +\n", "SyntaxError: invalid syntax (broken.py, line 2) (broken.py, line 2)"),
        ("\n\n1 / 0\n", "ZeroDivisionError: division by zero (broken.py, line 3, in <module>)"),
        ("import none_such\n", "No module named 'none_such' (broken.py, line 1, in <module>)"),
        ("raise SystemExit(4)\n", "SystemExit: 4 (broken.py, line 1, in <module>)"),
    ],
)
def test_a_file_that_cannot_be_imported_names_its_line(made, folder, source, message):
    (folder / "broken.py").write_text(source)
    with pytest.raises(RewardError) as error:
        made("broken.py:score").load()
    assert message in str(error.value) and "\n" not in str(error.value)


def line_of(text):
    return SOURCE.splitlines().index(f"    {text}") + 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fails",
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0) "
            f"(mine.py, line {line_of('return json.loads(x)')}, in fails; raised in decoder.py",
        ),
        ("leaves", "SystemExit: enough (mine.py, line "),
        ("a_number", "1.0 (float) returned, wanted a list of numbers"),
        ("a_text", "'112' (str) returned, wanted a list of numbers"),
        ("words", "'good' (str) returned for answer 0, wanted a number, or None"),
        ("too_few", "1 rewards returned for 3 answers, wanted one each"),
        ("dies", "its process is gone: killed by SIGKILL"),
    ],
)
def test_a_failure_is_one_line_and_the_next_call_is_made(made, name, message):
    function = made(f"mine.py:{name}")
    for _ in range(2):
        with pytest.raises(RewardError) as error:
            function(ANSWERS)
        assert f"mine.py:{name}: {message}" in str(error.value)
        assert "\n" not in str(error.value)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid):
    for _ in range(100 * LIMIT_S):
        if not is_alive(pid):
            return True
        time.sleep(0.01)
    return False


def test_a_function_that_hangs_is_stopped_at_its_deadline(made, folder):
    # The match holds the interpreter's lock: no thread of the process could end it.
    function = made("mine.py:hangs", file=str(folder / "pid"))
    function.load()
    function.timeout_s = 0.5
    start = time.monotonic()
    with pytest.raises(RewardError) as error:
        function(ANSWERS)
    assert time.monotonic() - start < LIMIT_S / 2
    assert "mine.py:hangs: waited 0.5 s for 3 answers; its process was stopped" in str(error.value)
    pid = (folder / "pid").read_text()
    assert pid == "" or gone(pid)


def test_an_import_that_hangs_is_stopped_too(made, folder):
    (folder / "slow.py").write_text("import time\ntime.sleep(600)\ndef score(a): ...\n")
    function = made("slow.py:score", timeout_s=1)
    with pytest.raises(RewardError, match="waited 1 s for its import"):
        function.load()


def test_an_interrupted_call_takes_no_reply_of_another(made):
    function = made("mine.py:counts")
    function(ANSWERS)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        with pytest.raises(KeyboardInterrupt):
            while True:
                function(ANSWERS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert function(ANSWERS) == [1.0, 1.0, 1.0]


def test_a_function_at_work_ends_when_its_run_is_killed(folder, tmp_path_factory):
    (folder / "slow.py").write_text(
        "import os, time\ndef score(answers, file):\n"
        "    open(file, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    pid_file = folder / "pid"
    script = (
        "from wavalign_fast.rewards import RewardFunction\n"
        f"arguments = {{'file': {str(pid_file)!r}}}\n"
        f"score = RewardFunction({f'{folder}/slow.py:score'!r}, timeout_s=600, arguments=arguments)"
        "\nscore([{'text': ''}])\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run = subprocess.Popen([sys.executable, "-c", script], env=env, cwd=elsewhere)
    try:
        end = time.monotonic() + LIMIT_S
        while not (pid_file.is_file() and pid_file.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        pid = pid_file.read_text()
        assert is_alive(pid)
    finally:
        run.kill()
        run.wait()
    assert gone(pid)
