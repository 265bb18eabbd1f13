"""The judge's workers may die, fail or hang: this is reported, and never becomes a reward.

The workers here are small programs that speak a worker's language; the real one is started in
``test_spoken_sums_speech.py`` and ``tests/test_processes.py``.
"""

import logging
import os
import selectors
import subprocess
import sys
import time

import numpy as np
import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.recipes.spoken_sums import judge as judging
from wavalign_fast.recipes.spoken_sums import judge_workers
from wavalign_fast.recipes.spoken_sums import recogniser as recognition

LIMIT_S = 120
"""Far more than a busy machine needs; only a hang takes this long."""
ANSWERS = [(number, number + 1) for number in range(40)]
HEARD = [f"heard {number}" for number in range(40)]

ECHO = """
import json, os, signal, sys, time
def say(value): print(json.dumps(value), flush=True)
START
say("ready")
for line in sys.stdin:
    answers = json.loads(line)
    WORK
    say({"heard": [f"heard {a[0]}" for a in answers], "error": None})
"""


def worker(start="pass", work="pass"):
    """A worker program with given code at its start and for its answers."""
    program = ECHO.replace("START", start).replace("WORK", work)
    return lambda centroids: [sys.executable, "-S", "-c", program, centroids]


@pytest.fixture
def hear(monkeypatch):
    """Hears all answers with the given programs as workers, in this order."""
    times = {}

    def run(*programs, workers=2):
        order = iter([*programs, *[programs[-1]] * workers])
        monkeypatch.setattr(judge_workers, "command", lambda file: next(order)(file))
        start = time.monotonic()
        try:
            return judge_workers.hear_in_workers(ANSWERS, np.zeros((256, 384)), workers)
        finally:
            times["took"] = time.monotonic() - start

    yield run
    assert times["took"] < LIMIT_S


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
DEATHS = [
    (KILLED, "killed by SIGKILL"),
    ("sys.exit(3)", "ended with status 3"),
    ("raise OSError('libsphinx.so: no such file')", "status 1: OSError: libsphinx.so: no such"),
    ("import no_such_package", "No module named 'no_such_package'"),
    ("os.kill(os.getpid(), 40)", "killed by signal 40"),
    ("print('half a li', end='', flush=True); os._exit(0)", "ended with status 0"),
]


def test_whole_workers_hear_everything_in_order(hear):
    assert hear(worker()) == (HEARD, [])
    assert hear(worker(work="time.sleep(0.05 * (answers[0][0] == 0))")) == (HEARD, [])


@pytest.mark.parametrize(("death", "reason"), DEATHS)
def test_a_worker_that_dies_at_its_start_costs_nothing(hear, death, reason):
    heard, failures = hear(worker(start=death), worker())
    assert heard == HEARD
    # Its death is reported only if it happens before the other workers are done.
    assert not failures or (len(failures) == 1 and reason in failures[0])


@pytest.mark.parametrize(("death", "reason"), DEATHS)
def test_without_any_worker_the_reason_is_one_line(hear, death, reason):
    with pytest.raises(UserError, match="no worker of the judge can be started") as error:
        hear(worker(start=death))
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("death", "reason"), DEATHS)
def test_a_worker_that_dies_at_work_costs_the_answers_it_had(hear, death, reason):
    heard, failures = hear(worker(work=f"if answers[0][0] == 8: {death}"))
    assert heard == [*HEARD[:8], *[None] * 8, *HEARD[16:]]
    assert len(failures) == 1 and reason in failures[0]


def test_workers_that_all_die_at_work_leave_the_rest_unheard(hear):
    heard, failures = hear(worker(work=f"if answers[0][0] >= 16: {KILLED}"))
    assert heard == [*HEARD[:16], *[None] * 24]
    assert failures == ["killed by SIGKILL"] * 2


class Impatient(selectors.DefaultSelector):
    """Gives up at once if only silent workers are left, so that the test does not wait."""

    silent = 1

    def select(self, timeout=None):
        assert timeout == judge_workers.SILENCE_LIMIT_S
        return super().select(0.01 if len(self.get_map()) == self.silent else LIMIT_S)


@pytest.mark.parametrize("silence", ["time.sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_a_silent_worker_is_not_waited_for_without_end(hear, monkeypatch, silence):
    monkeypatch.setattr(judge_workers, "DefaultSelector", Impatient)
    heard, failures = hear(worker(work=f"if answers[0][0] == 0: {silence}"))
    assert heard == [*[None] * 8, *HEARD[8:]]
    assert failures == ["waited 300 s for the replies of 1 of 2 workers"]
    monkeypatch.setattr(Impatient, "silent", 2)
    with pytest.raises(UserError, match="waited 300 s for the start of 2 workers"):
        hear(worker(start=silence))


def test_half_a_reply_blocks_nothing(hear, monkeypatch):
    monkeypatch.setattr(judge_workers, "DefaultSelector", Impatient)
    half = "if answers[0][0] == 0: print('[1, 2', end='', flush=True); time.sleep(600)"
    heard, failures = hear(worker(work=half))
    assert heard == [*[None] * 8, *HEARD[8:]]
    assert failures == ["waited 300 s for the replies of 1 of 2 workers"]


def test_a_machine_that_starts_no_process_is_said(hear, monkeypatch):
    def refuse(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(UserError, match=r"can be started: .*Cannot allocate memory; with"):
        hear(worker())


def test_workers_are_gone_afterwards_and_out_of_the_signals_way(hear, monkeypatch):
    seen = []
    enter = judge_workers.Worker.__enter__

    def note(self):
        seen.append((self._process, os.getsid(self._process.pid)))
        return enter(self)

    monkeypatch.setattr(judge_workers.Worker, "__enter__", note)
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(judge_workers._Hearing, "take", raise_interrupt)
        hear(worker())
    assert len(seen) == 2
    assert all(process.returncode == -9 for process, _ in seen)
    assert os.getsid(0) not in {session for _, session in seen}


def raise_interrupt(*args):
    raise KeyboardInterrupt


class Broken:
    """A recogniser that fails on some answers."""

    def hear(self, codes):
        if codes[0] % 3 == 0:
            raise RuntimeError("Failed to process speech")
        return f"heard {codes[0]}"


def test_a_failure_is_none_said_and_tried_again(monkeypatch, caplog):
    judge = judging.Judge(np.zeros((256, 384)), workers=1)
    judge._recogniser = Broken()
    heard = judge.hear(ANSWERS[:4])
    assert heard == [None, "heard 1", "heard 2", None]
    assert [record.getMessage() for record in caplog.records] == [
        "the judge failed on 2 of 4 answers: RuntimeError: Failed to process speech"
    ]
    caplog.clear()
    monkeypatch.setattr(Broken, "hear", lambda self, codes: "mended")
    assert judge.hear(ANSWERS[:4]) == ["mended", "heard 1", "heard 2", "mended"]
    assert not caplog.records


def test_a_failure_in_a_worker_is_none_and_said_too(monkeypatch, caplog):
    program = worker(work="if answers[0][0] == 8: sys.exit(9)")
    monkeypatch.setattr(judge_workers, "command", program)
    judge = judging.Judge(np.zeros((256, 384)), workers=2)
    monkeypatch.setattr(judging, "check_recogniser", lambda: None)
    assert judge.hear(ANSWERS).count(None) == 8
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "the judge failed on 8 of 40 answers: ended with status 9"


@pytest.mark.parametrize("error", [ImportError("x.so"), OSError("x.so"), SystemExit(1), KeyError])
def test_a_recogniser_that_cannot_be_imported_is_one_line(failing_import, error):
    failing_import("pocketsphinx", error)
    with pytest.raises(UserError, match="pocketsphinx cannot be imported: "):
        recognition.Recogniser(np.zeros((256, 384)))
