"""Row compaction: the interpreted sources, compared with torch's own indexing."""

import mmap
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.triton import compaction
from wavalign_fast.ops.triton.configs import RowConfig


# A block has 2048 flags: none, one, exactly one block, several; every share of live rows.
@pytest.mark.parametrize("total", [0, 1, 5, 2048, 2049, 7000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_live_rows_are_listed_in_order(total, share):
    live = torch.rand(total, generator=torch.Generator().manual_seed(4)) < share
    places = torch.nonzero(live)[:, 0]
    for capacity in (0, len(places) // 2, len(places), total + 3000):
        index, count = backend.compact_rows(live, capacity)
        kept = places[:capacity]
        rest = torch.full((capacity - len(kept),), -1)
        assert torch.equal(index, torch.cat([kept, rest]))
        assert count.tolist() == [len(places)]


def test_more_blocks_than_one_step_of_the_scan_takes():
    live = torch.rand(3000, generator=torch.Generator().manual_seed(5)) < 0.5
    with mock.patch.object(compaction, "COMPACTION", RowConfig(block=32, warps=1)):
        index, count = backend.compact_rows(live, 2000)
    places = torch.nonzero(live)[:, 0]
    assert torch.equal(index[: len(places)], places) and count.item() == len(places)


def test_any_byte_but_zero_is_live():
    live = torch.tensor([0, 2, 255, 0, 1], dtype=torch.uint8)
    assert backend.compact_rows(live, 4)[0].tolist() == [1, 2, 4, -1]
    assert backend.compact_rows(live[::2], 4)[0].tolist() == [1, 2, -1, -1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("columns", [1, 7, 64, 2050])
def test_gathered_and_scattered_rows_are_those_of_torch(columns, dtype):
    g = torch.Generator().manual_seed(columns)
    source = torch.randn(9, columns + 5, generator=g).to(dtype)[:, :columns]
    index = torch.tensor([4, 1, -1, 1, 0, 1, 8, 1, 9, 1])[::2]  # the last names no row
    rows = backend.gather_rows(source, index)
    assert torch.equal(rows[[0, 2, 3]], source[[4, 0, 8]]) and not rows[[1, 4]].any()
    for target_dtype in (torch.float32, torch.bfloat16, torch.float16):
        target = torch.randn(9, columns + 3, generator=g).to(target_dtype)
        wanted = target.clone()
        wanted[[4, 0, 8], :columns] = rows[[0, 2, 3]].to(target_dtype)
        found = backend.scatter_rows_(rows, index, target[:, :columns])
        assert torch.equal(target, wanted) and found.data_ptr() == target.data_ptr()


def test_no_rows():
    source, index = torch.randn(3, 8), torch.empty(0, dtype=torch.int64)
    assert backend.gather_rows(source, index).shape == (0, 8)
    assert torch.equal(backend.scatter_rows_(torch.empty(0, 8), index, source.clone()), source)


def test_rows_beyond_2_to_the_31_elements():
    apart = 2**30 + 16
    memory = mmap.mmap(-1, 2 * (2 * apart + 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    far = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided((3, 64), (apart, 1))
    index = torch.tensor([2, 1, -1])
    rows = torch.randn(3, 64, dtype=torch.bfloat16)
    backend.scatter_rows_(rows, index, far)
    assert torch.equal(far[[2, 1]], rows[:2]) and not far[0].any()
    assert torch.equal(backend.gather_rows(far, index)[:2], rows[:2])
