"""A rank that waits in vain says for what, and does not hang."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast import cli
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.torchrun import ERROR_FILE
from wavalign_fast.train.waiting import WaitError, naming_the_wait

TIMEOUT_S = 1.0


def ranks_in_a_hurry() -> Ranks:
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    return Ranks(dist.get_rank(), dist.get_world_size(), group=group, timeout_s=TIMEOUT_S)


def one_is_late() -> list:
    ranks = ranks_in_a_hurry()
    began = time.monotonic()
    if ranks.rank == 1:
        time.sleep(3)
        return []
    try:
        with ranks.waiting_for("step 7"), ranks.waiting_for("the checkpoint of step 20"):
            ranks.barrier()
    except WaitError as error:
        return [str(error), time.monotonic() - began]
    return ["came back"]


def one_leaves(message: str) -> None:
    ranks = ranks_in_a_hurry()
    ranks.barrier()
    if ranks.rank == 1:
        os._exit(0)
    began = time.monotonic()
    try:
        with ranks.waiting_for("the rewards of step 3"):
            ranks.barrier()
    except WaitError as error:
        Path(message).write_text(f"{error} {time.monotonic() - began < TIMEOUT_S}")


def test_a_wait_that_is_too_long_ends_with_what_it_was_for():
    message, seconds = run_ranks(2, one_is_late)[0]
    assert message.startswith(
        "rank 0 waited for the checkpoint of step 20: a rank did not come within 1 s "
        "(parallel.timeout_s)"
    )
    assert seconds < 2.5


def test_a_rank_that_is_gone_is_said_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="rank 1"):  # it left without a result
        run_ranks(2, one_leaves, str(tmp_path / "message"))
    assert (tmp_path / "message").read_text() == (
        "rank 0 waited for the rewards of step 3: a rank has ended; its own message, or "
        "torchrun's report, says why True"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pair.cc:534] Connection closed by peer [127.0.0.1]:22", "a rank has ended"),
        ("Application timeout caused pair closure", "did not come within 5 s"),
        ("Timed out waiting 5000ms for recv operation to complete", "did not come within 5 s"),
    ],
)
def test_what_torch_says_is_understood(text, said):
    with (
        pytest.raises(WaitError, match=f"rank 3 waited for it: .*{said}"),
        naming_the_wait("it", rank=3, timeout_s=5),
    ):
        raise RuntimeError(text)


def test_a_lost_connection_of_a_ranks_own_work_is_no_lost_rank():
    with (
        pytest.raises(RuntimeError, match="connection refused: judge") as error,
        naming_the_wait("it", rank=3, timeout_s=5),
        Ranks().failing_together(),
    ):
        raise RuntimeError("connection refused: judge")
    assert type(error.value) is RuntimeError


def test_what_ended_a_lost_rank_is_told_before_that_it_is_lost(monkeypatch, tmp_path, capsys):
    """The rank that is lost may be about to print; torchrun takes what it is told as the cause."""

    def lost(args):
        with naming_the_wait("it", rank=0, timeout_s=5):
            raise RuntimeError("Connection closed by peer")

    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(cli, "_doctor", lost)
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    assert cli.main(["doctor"]) == cli.BAD_INPUT
    assert slept == [cli.OTHER_RANK_REPORTS_S]
    assert "rank 0 waited for it: a rank has ended" in capsys.readouterr().err
    assert not (tmp_path / "error.json").exists()
    with pytest.raises(SystemExit):
        cli.main(["doctor", "too"])
    assert "unknown argument too" in (tmp_path / "error.json").read_text()


def test_a_rank_that_torchrun_ends_while_it_waits_to_report_says_nothing(monkeypatch, capfd):
    """Rank 1 of 2 that make the same mistake; a traceback would hide the report of rank 0."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    assert cli.main(["say", "hello", "--run", "no/run"]) == cli.BAD_INPUT
    assert capfd.readouterr() == ("", "")


def test_other_errors_stay_as_they_are():
    with (
        pytest.raises(RuntimeError, match="out of memory") as error,
        naming_the_wait("it", rank=3, timeout_s=5),
    ):
        raise torch.OutOfMemoryError("out of memory")
    assert type(error.value) is torch.OutOfMemoryError
