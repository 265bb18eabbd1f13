"""Hands a signal to the main rank that another rank receives while it waits for the main one.

A rank that waits in a collective runs no Python, and so no handler of a signal: alone it would act
on SIGTERM only when an evaluation of minutes on rank 0 is over. Here a thread tells rank 0, which
then does as if it had received the signal itself.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch.distributed as dist

from wavalign_fast.signals import ENDING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

POLL_S = 0.2


@contextmanager
def signals_to_main(name: str, *, is_main: bool) -> Iterator[None]:
    """Forwards SIGTERM and SIGHUP of the other ranks to the main one in this block.

    Not SIGINT: a terminal sends Ctrl-C to all ranks, and a second one acts in another way. Only the
    main thread may call this; no other one gets signals.

    Args:
        name: the block, by a name that each rank gives it and no other block has.
        is_main: whether this is the rank that works while the others wait.
    """
    store = dist.distributed_c10d._get_default_store()
    key = f"wavalign_fast/signal/{name}"
    with _raised_here(store, key) if is_main else _told(store, key):
        yield


@contextmanager
def _raised_here(store: "Store", key: str) -> Iterator[None]:
    """Raises in this process what the other ranks tell of."""
    main_thread, over = threading.get_ident(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            try:
                number = int(store.get(key)) if store.check([key]) else 0
            except RuntimeError:  # the store is gone, and so is the process that keeps it
                return
            if number:
                if not over.is_set():
                    # To this thread, so that it ends what the main thread waits for, too.
                    signal.pthread_kill(main_thread, number)
                return

    watcher = threading.Thread(target=watch, name="forwarded signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@contextmanager
def _told(store: "Store", key: str) -> Iterator[None]:
    """Tells the main rank of the signals that this process receives."""
    arrived, wakeup = socket.socketpair()
    wakeup.setblocking(False)

    def watch() -> None:
        while numbers := arrived.recv(16):
            for number in numbers:
                if number in ENDING:
                    try:
                        store.set(key, str(number))
                    except RuntimeError:
                        return

    watcher = threading.Thread(target=watch, name="told signals", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        wakeup.close()
        watcher.join()
        arrived.close()
