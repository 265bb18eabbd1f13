"""Ranks of a gloo group for tests: forked processes of this one, with a deadline."""

import datetime
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    deadline: float = 240,
    device: str = "cpu",
) -> list:
    """Calls ``function(*args)`` on each of ``world`` ranks, inside a process group of theirs.

    Forked, the ranks have what this process has imported and made: a pair costs a second. Each has
    one thread. On ``cuda`` each has a GPU of its own and imports anew, because CUDA forbids forks.

    Args:
        deadline: seconds, after which the ranks are killed and the test fails.

    Returns:
        What each rank returned, in order of rank; ``torch.save`` must know its types, and
        ``torch.load`` takes tensors and plain containers of them only.

    Raises:
        TimeoutError: a rank was not done in time.
        torch.multiprocessing.ProcessRaisedException: a rank raised; it has the traceback.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Python warns of forks beside threads. Those of pytest-xdist hold no lock of ours.
        warnings.simplefilter("ignore", DeprecationWarning)
        ranks = mp.start_processes(
            _rank,
            (world, folder, deadline, device, function, args),
            world,
            join=False,
            daemon=True,
            start_method="fork" if device == "cpu" else "spawn",
        )
        try:
            end = time.monotonic() + deadline
            while not ranks.join(timeout=max(0.0, end - time.monotonic())):
                if time.monotonic() > end:
                    late = [n for n, rank in enumerate(ranks.processes) if rank.is_alive()]
                    raise TimeoutError(f"ranks {late} of {world}: not done after {deadline} s")
        finally:
            for rank in ranks.processes:
                rank.kill()
                rank.join()
        return [torch.load(Path(folder, f"rank {n}")) for n in range(world)]


def _rank(
    rank: int,
    world: int,
    folder: str,
    deadline: float,
    device: str,
    function: Callable[..., Any],
    args: tuple,
) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=deadline)
    if device == "cuda":
        torch.cuda.set_device(rank)  # before NCCL starts, which takes the current device
    dist.init_process_group(
        "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=limit,
    )
    torch.save(function(*args), Path(folder, f"rank {rank}"))
    # Not after an error: the others would fail before it is known, and theirs would be shown.
    if dist.is_initialized():  # the function may have left it for one of its own
        dist.destroy_process_group()
