"""Compaction, gather and scatter of rows."""

import pytest
import torch

from tools.cuda_on_cpu.cases import Shifted

from .kernels import (
    DTYPES,
    CompactParams,
    GatherParams,
    Kernels,
    ScatterParams,
    WorkspaceParams,
)

TILE = 4096


def compacted(
    kernels: Kernels, live: torch.Tensor, capacity: int, *, shift: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    size = kernels.launch(
        "compact_rows", "compact_rows_workspace", WorkspaceParams(value=len(live)), {}
    )
    buffers = {
        "live": Shifted(live, shift),
        "index": torch.full((capacity,), -77),
        "count": torch.full((1,), -77),
        "workspace": torch.full((size.params.value // 8,), -1),
    }
    params = CompactParams(size=len(live), capacity=capacity)
    result = kernels.launch("compact_rows", "compact_rows", params, buffers)
    return result.buffers["index"], result.buffers["count"]


@pytest.mark.parametrize("size", [0, 1, 31, 100, TILE - 1, TILE, TILE + 1, 40 * TILE + 17])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_live_rows_come_first_and_in_order(kernels: Kernels, size: int, share: float) -> None:
    g = torch.Generator().manual_seed(size)
    live = torch.rand(size, generator=g) < share
    wanted = live.nonzero()[:, 0]
    for capacity in {size, size // 3, size + 300}:
        index, count = compacted(kernels.on(seed=capacity + 1), live, capacity)
        assert count.item() == len(wanted)
        held = min(len(wanted), capacity)
        assert torch.equal(index[:held], wanted[:held])
        assert (index[held:] == -1).all()


def test_tiles_find_their_place_in_any_order_of_blocks(kernels: Kernels) -> None:
    live = torch.rand(9 * TILE, generator=torch.Generator().manual_seed(0)) < 0.3
    for seed in range(12):
        index, count = compacted(kernels.on(seed=seed), live, len(live))
        assert torch.equal(index[: count.item()], live.nonzero()[:, 0])


@pytest.mark.parametrize("shift", [1, 8])
def test_buffers_may_start_anywhere(kernels: Kernels, shift: int) -> None:
    checked = kernels.on("addresses")
    live = torch.arange(TILE + 5) % 3 == 0
    index, count = compacted(checked, live, len(live), shift=shift)
    assert torch.equal(index[: count.item()], live.nonzero()[:, 0])
    source = torch.arange(4 * 32, dtype=torch.uint8).view(4, 32)
    buffers = {"index": torch.tensor([3, 1]), "rows": Shifted(source[:2], shift)}
    params = GatherParams(size=4, width=32, item_bytes=1, count=2)
    result = checked.launch("gather_scatter", "gather_rows", params, {"source": source, **buffers})
    assert torch.equal(result.buffers["rows"], source[[3, 1]])
    shifted = torch.zeros(4, 32)
    params = ScatterParams(count=2, width=32, size=4, rows_dtype=0, target_dtype=0)
    buffers = {"rows": source[:2].float(), "index": torch.tensor([3, 1])}
    buffers["target"] = Shifted(shifted, 4 * shift)
    result = checked.launch("gather_scatter", "scatter_rows", params, buffers)
    assert torch.equal(result.buffers["target"][[3, 1]], source[:2].float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 8, 100, 128, 1030])
def test_gather(kernels: Kernels, width: int, dtype: torch.dtype) -> None:
    source = (100 * torch.rand(9, width)).to(dtype)
    index = torch.tensor([8, -1, 0, 3, 9, 1 << 40, 3])
    params = GatherParams(size=9, width=width, item_bytes=dtype.itemsize, count=len(index))
    rows = torch.ones(len(index), width, dtype=dtype)
    buffers = {"source": source, "index": index, "rows": rows}
    found = kernels.launch("gather_scatter", "gather_rows", params, buffers).buffers["rows"]
    inside = (index >= 0) & (index < 9)
    wanted = torch.where(inside[:, None], source[torch.where(inside, index, 0)], 0)
    assert torch.equal(found, wanted.to(dtype))


@pytest.mark.parametrize("width", [1, 7, 8, 100, 128, 1032])
@pytest.mark.parametrize("rows_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("target_dtype", DTYPES, ids=str)
def test_scatter(
    kernels: Kernels, width: int, rows_dtype: torch.dtype, target_dtype: torch.dtype
) -> None:
    index = torch.tensor([8, -1, 0, 3, 9, 1 << 40])
    rows = torch.randn(len(index), width).to(rows_dtype)
    target = torch.randn(9, width).to(target_dtype)
    params = ScatterParams(
        count=len(index),
        width=width,
        size=9,
        rows_dtype=DTYPES[rows_dtype],
        target_dtype=DTYPES[target_dtype],
    )
    buffers = {"rows": rows, "index": index, "target": target}
    found = kernels.launch("gather_scatter", "scatter_rows", params, buffers).buffers["target"]
    wanted = target.clone()
    inside = (index >= 0) & (index < 9)
    wanted[index[inside]] = rows[inside].to(target_dtype)
    assert torch.equal(found, wanted)
