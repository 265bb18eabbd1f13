"""A signal to a rank that waits for rank 0 ends the work of rank 0."""

import os
import signal
import threading
import time

import pytest
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.signals import Interrupted
from wavalign_fast.train.ranks import Ranks

LONG_S = 30.0


def work(signalled: int, shared: bool, number: int) -> list:
    """What ends this rank while rank 0 works, and whether it ended early."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())

    def interrupt(number, frame):
        raise Interrupted(number)

    assert ranks.on_main(lambda: "before") == "before"
    signal.signal(number, interrupt)
    if ranks.rank == signalled:
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    try:
        if shared:  # rank 1 is done at once
            ranks.on_each(lambda: time.sleep(LONG_S * ranks.is_main))
        ranks.on_main(lambda: time.sleep(LONG_S))
        ended = ""
    except (Interrupted, RuntimeError) as error:  # without rank 0 a collective fails
        ended = type(error).__name__
    signal.signal(number, signal.SIG_IGN)
    return [ended, time.monotonic() - began < LONG_S / 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize(("signalled", "shared"), [(0, False), (1, False), (1, True)])
def test_a_signal_to_any_rank_ends_what_rank_0_does(number, signalled, shared):
    main, other = run_ranks(2, work, signalled, shared, number)
    assert main == ["Interrupted", True]
    assert other[0] and other[1]


def both(handled: str) -> list:
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    before = threading.active_count()
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    if ranks.rank == 1:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()

    def until_told():
        end = time.monotonic() + LONG_S
        while not received and time.monotonic() < end:
            time.sleep(0.05)
        return "done"

    found = [ranks.on_main(until_told), len(received)]
    found += [ranks.on_main(lambda: handled), len(received)]
    time.sleep(0.4)  # past the timer's end
    return [*found, threading.active_count() - before, signal.set_wakeup_fd(-1)]


def test_a_handler_that_only_notes_it_lets_both_ranks_go_on():
    assert run_ranks(2, both, "next") == [["done", 1, "next", 1, 0, -1]] * 2
