"""A process group that only pretends, for plans of many ranks in one process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.tensor import debug as dtensor_debug
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def pretended_ranks(world: int) -> Iterator[None]:
    """A process group of ``world`` ranks whose collectives do nothing; this process is rank 0."""
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # Torch caches by mesh how operations are sharded, with the rank of the process. A real mesh
        # of as many ranks is equal to this one, also on another rank that is forked later.
        dtensor_debug._clear_python_sharding_prop_cache()
        dtensor_debug._clear_fast_path_sharding_prop_cache()
