"""Runs foreign code with random numbers of its own."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONE_AT_A_TIME = threading.RLock()
"""The states belong to the whole process."""


@contextmanager
def forked_random_state(seed: int) -> Iterator[None]:
    """Seeds the global generators of python, numpy and torch, and restores them afterwards.

    What runs inside draws the same numbers each time, and nothing outside notices, even if it seeds
    the generators itself. One thread is inside at a time. GPUs count that torch has begun to use.
    """
    try:
        from numpy import random as numpy_random
    except ModuleNotFoundError:
        numpy_random = None  # type: ignore[assignment]
    with _ONE_AT_A_TIME:
        python = random.getstate()
        numpy = numpy_random.get_state() if numpy_random is not None else None
        cpu = torch.get_rng_state()
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        try:
            random.seed(seed)
            if numpy_random is not None:
                numpy_random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if gpus is not None:
                torch.cuda.manual_seed_all(seed)
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy_random.set_state(numpy)
            torch.set_rng_state(cpu)
            if gpus is not None:
                torch.cuda.set_rng_state_all(gpus)
