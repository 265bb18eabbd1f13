"""Compiled group statistics, mixture, compaction, gather, scatter and scaled gradients."""

from collections.abc import Callable

import pytest
import torch

from tests.gpu.conformance.cuda_on_cpu.kernels import (
    DTYPES,
    CompactParams,
    GatherParams,
    GroupParams,
    MixParams,
    ScaleParams,
    ScatterParams,
)
from tools.cuda_on_cpu.cases import Shifted
from tools.ptx_emulator import Conditions
from wavalign_fast.losses.advantage import group_advantages
from wavalign_fast.losses.gate import MixingGate
from wavalign_fast.ops.chunked import row_ops as definition

from .backends import SHARED_BYTES, Source, cuda_kernels
from .cuda_kernels import PtxKernels

GATE = {"lambda_max": 0.8, "slope": 5.0, "threshold": 3.0, "variance_scale": 4.0}
CONDITIONS = (Conditions(), Conditions(order=1), Conditions(order=2, approximate=1))


@pytest.fixture(params=SHARED_BYTES, ids=["sm_80", "sm_90a"])
def on_cuda(request: pytest.FixtureRequest, cuda_source: Source) -> Callable[..., PtxKernels]:
    return lambda conditions: cuda_kernels(cuda_source, request.param, conditions)


@pytest.mark.parametrize("std", ["population", "sample"])
def test_advantages_and_mixture(on_cuda: Callable[..., PtxKernels], std: str) -> None:
    g = torch.Generator().manual_seed(3)
    rewards = 1 + 4 * torch.rand(37, 9, generator=g)
    rewards[torch.rand(37, 9, generator=g) < 0.2] = torch.nan
    rewards[0], rewards[1] = torch.nan, 0.1
    wanted, names = MixingGate(initial=0.3).step(rewards)
    names.pop("adaptive_lambda")
    for conditions in CONDITIONS:
        kernels = on_cuda(conditions)
        params = GroupParams(groups=37, size=9, eps=1e-4, sample_std=std == "sample", **GATE)
        results = {"advantages": torch.zeros(37, 9), "sums": torch.zeros(6)}
        found = kernels.launch(
            "group_statistics", "group_statistics", params, {"rewards": rewards} | results
        ).buffers
        assert torch.equal(found["advantages"], group_advantages(rewards, std=std))
        buffers = {
            "sums": found["sums"],
            "previous": torch.tensor([0.3]),
            "has_previous": torch.tensor([True]),
            "rl_weight": torch.zeros(1),
            "parts": torch.zeros(5),
        }
        mixed = kernels.launch(
            "group_statistics", "mix", MixParams(lambda_max=0.8, ema=0.9), buffers
        ).buffers
        torch.testing.assert_close(mixed["rl_weight"][0], wanted, rtol=2e-6, atol=1e-7)
        parts = torch.stack(list(names.values()))
        torch.testing.assert_close(mixed["parts"], parts, rtol=2e-6, atol=1e-7)


def flags(size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.4


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("order", [None, 1, 2, 3])
def test_cuda_compaction_in_any_order_of_blocks(
    on_cuda: Callable[..., PtxKernels], order: int | None, shift: int
) -> None:
    """Blocks wait for words of the blocks before them; each takes the next tile as it starts."""
    live = flags(3 * 4096 + 17)
    wanted = live.nonzero()[:, 0]
    kernels = on_cuda(Conditions(order=order, blocks_apart=True))
    compiled = kernels.source("compact_rows")
    words = compiled.value("compact_rows_workspace", len(live)) // 8
    buffers = {
        "live": Shifted(live, shift) if shift else live,
        "index": torch.zeros(len(live), dtype=torch.int64),
        "count": torch.zeros(1, dtype=torch.int64),
        "workspace": torch.zeros(words, dtype=torch.int64),
    }
    params = CompactParams(size=len(live), capacity=len(live))
    found = kernels.launch("compact_rows", "compact_rows", params, buffers).buffers
    assert found["count"].item() == len(wanted)
    assert torch.equal(found["index"][: len(wanted)], wanted)
    assert (found["index"][len(wanted) :] == -1).all()


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_triton_compaction_and_copies(target: str) -> None:
    pytest.importorskip("triton")
    from wavalign_fast.ops import triton as backend

    from .triton_kernels import EmulatedTriton

    live = flags(5001)
    wanted = live.nonzero()[:, 0]
    source, target_rows = torch.randn(9, 71).bfloat16()[:, :70], torch.randn(9, 70)
    index = torch.tensor([4, -1, 0, 8])
    for conditions in CONDITIONS[:2]:
        emulated = EmulatedTriton(target, conditions)
        found, count = emulated.call(backend.compact_rows, live, 5001)
        assert count.item() == len(wanted)
        assert torch.equal(found[: len(wanted)], wanted)
        assert (found[len(wanted) :] == -1).all()
        rows = emulated.call(backend.gather_rows, source, index)
        assert torch.equal(rows[[0, 2, 3]], source[[4, 0, 8]]) and not rows[1].any()
        into = target_rows.clone()
        emulated.call(backend.scatter_rows_, rows, index, into, in_place=(into,))
        expected = target_rows.clone()
        expected[[4, 0, 8]] = rows[[0, 2, 3]].float()
        assert torch.equal(into, expected)


@pytest.mark.parametrize("width", [7, 128])
def test_cuda_copies(on_cuda: Callable[..., PtxKernels], width: int) -> None:
    kernels = on_cuda(Conditions(order=1))
    index = torch.tensor([8, -1, 0, 3, 9, 1 << 40])
    inside = (index >= 0) & (index < 9)
    for dtype in (torch.bfloat16, torch.float32, torch.uint8):
        source = (100 * torch.rand(9, width)).to(dtype)
        params = GatherParams(size=9, width=width, item_bytes=dtype.itemsize, count=len(index))
        rows = torch.zeros(len(index), width, dtype=dtype)
        buffers = {"source": source, "index": index, "rows": rows}
        found = kernels.launch("gather_scatter", "gather_rows", params, buffers).buffers["rows"]
        wanted = torch.where(inside[:, None], source[torch.where(inside, index, 0)], 0).to(dtype)
        assert torch.equal(found, wanted)
    for kinds in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)):
        rows = torch.randn(len(index), width).to(kinds[0])
        into = torch.randn(9, width).to(kinds[1])
        params = ScatterParams(
            count=len(index), width=width, size=9,
            rows_dtype=DTYPES[kinds[0]], target_dtype=DTYPES[kinds[1]],
        )  # fmt: skip
        buffers = {"rows": rows, "index": index, "target": into}
        found = kernels.launch("gather_scatter", "scatter_rows", params, buffers).buffers["target"]
        wanted = into.clone()
        wanted[index[inside]] = rows[inside].to(kinds[1])
        assert torch.equal(found, wanted)


def scaled(gradient: torch.Tensor, factor: float) -> torch.Tensor:
    return definition.scale_(gradient.clone(), torch.tensor(factor))


@pytest.mark.parametrize("items", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_scale(on_cuda: Callable[..., PtxKernels], dtype: torch.dtype, items: int) -> None:
    # A batch of four vectors for every thread, a further vector for some, and a remainder.
    gradient = torch.randn(4 * 256 * 16 // dtype.itemsize + 77).to(dtype)
    held = Shifted(gradient, items * dtype.itemsize) if items else gradient
    for conditions in CONDITIONS[:2]:
        kernels = on_cuda(conditions)
        kernels.grid = (1, 1, 1)
        for factor in (0.7, 1.0):
            params = ScaleParams(dtype=DTYPES[dtype], size=len(gradient))
            buffers = {"gradient": held, "factor": torch.tensor(factor)}
            found = kernels.launch("scale", "scale", params, buffers).buffers["gradient"]
            assert torch.equal(found, scaled(gradient, factor))
        moved, untouched = kernels.counted
        assert moved.loaded_bytes["gradient"] == moved.stored_bytes["gradient"] == gradient.nbytes
        assert untouched.loaded_bytes.keys() == {"factor"} and not untouched.stored_bytes


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_triton_scale(target: str) -> None:
    pytest.importorskip("triton")
    from wavalign_fast.ops import triton as backend

    from .triton_kernels import EmulatedTriton

    for dtype, items in ((torch.float32, 1), (torch.bfloat16, 0), (torch.float16, 3)):
        memory = torch.randn(2 * 4096 + 77).to(dtype)
        for factor in (0.7, 1.0):
            gradient = memory.clone()[items:]
            emulated = EmulatedTriton(target, Conditions(order=1))
            by = torch.tensor(factor)
            emulated.call(backend.scale_, gradient, by, in_place=(gradient,))
            assert torch.equal(gradient, scaled(memory[items:], factor))
            moved = sum(counts.stored_bytes["gradient"] for counts in emulated.counted)
            assert moved == (0 if factor == 1.0 else gradient.nbytes)
