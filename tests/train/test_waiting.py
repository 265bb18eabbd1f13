"""A rank that waits in vain says for what, and does not hang."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.train.ranks import Ranks
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
        "rank 0 waited for the rewards of step 3: a rank has ended; its own message says why True"
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


def test_other_errors_stay_as_they_are():
    with (
        pytest.raises(RuntimeError, match="out of memory") as error,
        naming_the_wait("it", rank=3, timeout_s=5),
    ):
        raise torch.OutOfMemoryError("out of memory")
    assert type(error.value) is torch.OutOfMemoryError
