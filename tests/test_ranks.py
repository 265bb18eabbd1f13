"""The launcher of ranks fails a test instead of hanging it."""

import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks


def sum_of_ranks(start: int) -> torch.Tensor:
    total = torch.tensor(start + dist.get_rank())
    dist.all_reduce(total)
    return total


def one_late(seconds: float) -> None:
    if dist.get_rank() == 1:
        time.sleep(seconds)


def one_bad() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 is bad")
    dist.barrier()


def test_ranks_return_what_they_find_together() -> None:
    assert run_ranks(3, sum_of_ranks, 10) == [torch.tensor(33)] * 3


def test_a_late_rank_is_killed_and_named() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"ranks \[1\] of 2: not done after 1\.5 s"):
        run_ranks(2, one_late, 60, deadline=1.5)
    assert time.monotonic() - began < 30


def test_what_a_rank_raises_reaches_the_test() -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="rank 1 is bad"):
        run_ranks(2, one_bad)
