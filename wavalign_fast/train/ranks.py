"""The ranks of a run: which one this process is, and how they agree.

``torchrun`` starts the ranks and says so in environment variables. Without it the process is alone:
rank 0 of 1, and no call here communicates.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wavalign_fast.errors import OtherRankError, UserError, one_line, shared
from wavalign_fast.train.forwarded_signals import signals_to_main
from wavalign_fast.train.torchrun import several_ranks
from wavalign_fast.train.waiting import naming_the_wait

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of the run."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this rank computes: its own GPU, or the CPU."""
    group: dist.ProcessGroup | None = None
    """The process group of these ranks; by default the one of the run."""
    timeout_s: float = 1800.0
    """Seconds that a rank waits for the others before it raises."""

    @property
    def is_main(self) -> bool:
        """Whether this rank prints, and writes the files of the run."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Returns the sum of ``values`` (on the CPU) over the ranks; has the same bits on all."""
        if self.world == 1:
            return values
        # Added in rank order: an all-reduce may add in another order on each rank.
        every = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(every, values.contiguous(), group=self.group)
        return torch.stack(every).sum(0)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Returns the largest of each value over the ranks."""
        if self.world == 1:
            return list(values)
        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table, dist.ReduceOp.MAX, group=self.group)
        return table.tolist()

    def gather(self, value: T) -> list[T]:
        """Returns the picklable ``value`` of every rank, by rank."""
        if self.world == 1:
            return [value]
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, value, group=self.group)
        return every

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Names ``what`` if this block waits too long for another rank, or for one that is gone.

        Args:
            what: completes "waited for …", e.g. ``the checkpoint of step 20``.

        Raises:
            WaitError: a collective in this block failed; nothing that communicates can go on.
        """
        if self.world == 1:
            yield
            return
        with naming_the_wait(what, rank=self.rank, timeout_s=self.timeout_s):
            yield

    def with_own_group(self) -> "Ranks":
        """Returns the same ranks with a group of their own, for a thread beside this one.

        It is for tensors on the CPU. Every rank must call this.
        """
        if self.world == 1:
            return self
        return replace(
            self, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))
        )

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self.largest([0.0])

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raises on every rank if the block raised on one, so that no rank waits for a lost one.

        The block itself must not communicate. Of several ranks with the same error the first one
        reports it.

        Raises:
            OtherRankError: the block raised on another rank; the message names it and its error.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.largest([float(error is not None)])[0] == 0:
            return
        messages = self.gather(None if error is None else one_line(error))
        rank, message = next((at, m) for at, m in enumerate(messages) if m is not None)
        if error is None or (rank < self.rank and message == messages[self.rank]):
            other = OtherRankError(f"rank {rank} of {self.world} failed: {message}")
            raise shared(other) from error
        raise shared(error)

    def on_main(self, call: Callable[[], T]) -> T:
        """Returns ``call()`` of rank 0 on every rank; an error there is raised on all.

        SIGTERM or SIGHUP to a rank that waits is raised on rank 0, too.
        """
        value: Any = None
        with self._forwarding_signals(), self.failing_together():
            if self.is_main:
                value = call()
        return self.gather(value)[0]

    def on_each(self, call: Callable[[], T]) -> list[T]:
        """Returns ``call()`` of each rank, by rank; an error on one is raised on all.

        SIGTERM or SIGHUP to a rank that is done and waits is raised on rank 0, too.
        """
        with self._forwarding_signals(), self.failing_together():
            value = call()
        return self.gather(value)

    def _forwarding_signals(self) -> AbstractContextManager[None]:
        if self.world == 1 or threading.current_thread() is not threading.main_thread():
            return nullcontext()
        return signals_to_main(f"{next(_CALLS)}", is_main=self.is_main)


_CALLS = itertools.count()
"""Numbers the calls of ``on_main`` in the main thread, which every rank makes in one order."""


@contextmanager
def started_ranks(timeout_s: float) -> Iterator[Ranks]:
    """Joins the process group of ``torchrun``; leaves it at the end.

    GPU tensors go through NCCL and CPU tensors through gloo; without a GPU there is only gloo.

    Args:
        timeout_s: seconds after which a rank that waits for the others raises.

    Raises:
        UserError: only some of ``torchrun``'s variables are set, or there are more ranks on this
            machine than GPUs.
    """
    if not several_ranks():
        had_group = dist.is_initialized()
        try:
            yield Ranks(device=_device(0))
        finally:
            # `policy.wrapped` starts a group of one for two dtypes.
            if dist.is_initialized() and not had_group:
                dist.destroy_process_group()
        return
    device = _device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend_of(device), timeout=timedelta(seconds=timeout_s))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, timeout_s=timeout_s)
    finally:
        dist.destroy_process_group()


def backend_of(device: torch.device) -> str:
    """Returns the backend of a process group whose ranks compute on such a device."""
    return "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"LOCAL_RANK {local_rank}: this machine has {count} GPUs, wanted one for each rank; "
            f"start torchrun with --nproc-per-node {count}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
