"""Bytes of live storages: by hand on real tensors, and beside torch's own tracker for FSDP2."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from wavalign_fast.plan.live_bytes import LiveBytes
from wavalign_fast.plan.pretended_ranks import pretended_ranks


def test_a_storage_counts_until_it_is_freed():
    before = torch.zeros(3)
    with LiveBytes() as held:
        held.track([before, before[:1]])
        assert held.now == 12
        first = torch.zeros(100)
        view = first.view(10, 10)[2:]
        assert held.now == 412
        del first
        assert held.now == 412  # the view keeps it
        del view
        second = torch.zeros(50, dtype=torch.float64) + 1
        assert held.now == 412
        second.untyped_storage().resize_(8)
        assert (held.now, held.peak) == (20, 12 + 800)


def test_storages_are_resized_as_before_outside():
    original = torch.UntypedStorage.resize_
    with pytest.raises(RuntimeError, match="inside"), LiveBytes():
        raise RuntimeError("inside")
    assert torch.UntypedStorage.resize_ is original


class Net(nn.Module):
    def __init__(self, *, recompute: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)
        )
        self.recompute = recompute

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x.sum()


@pytest.fixture
def two_ranks():
    with pretended_ranks(2):
        yield init_device_mesh("cpu", (2,))


@pytest.mark.parametrize("recompute", [False, True])
def test_torch_s_tracker_finds_the_same_peak(two_ranks, recompute):
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def net():
        made = Net(recompute=recompute)
        for block in made.blocks:
            fully_shard(block, mesh=two_ranks, mp_policy=precision)
        return fully_shard(made, mesh=two_ranks, mp_policy=precision)

    with FakeTensorMode():
        ours, theirs, x = net(), net(), torch.zeros(32, 64, dtype=torch.bfloat16)
        tracker = FSDPMemTracker(theirs)
        tracker.track_inputs((x,))
        with tracker:
            theirs(x).backward()
        held = LiveBytes()
        held.track([*ours.parameters(), x])
        with held:
            ours(x).backward()
    (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    assert held.peak == snapshot["Total"] > held.now
