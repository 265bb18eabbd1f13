"""Rows and ids beyond 2^31 elements, of which only the last exist: compiled addresses have 64 bits.

An address that wraps hits no buffer, and the emulator says how far it missed.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu.conformance.checks import check_rows, check_stats
from tests.gpu.conformance.cuda_on_cpu.kernels import (
    DTYPES,
    Chunk,
    HybridParams,
    RowStatsParams,
    ScaleParams,
)
from tests.gpu.conformance.problems import SETTINGS
from tools.cuda_on_cpu.cases import Sparse
from tools.ptx_emulator import Argument, Conditions, Geometry, GlobalMemory, launch, parse
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .backends import SHARED_BYTES, Source, cuda_kernels
from .tensors import from_numpy

ROWS, VOCAB, PITCH = 12, 1100, 1 << 28
LAST = ROWS - 1
BEFORE = LAST * PITCH * 4
assert LAST * PITCH > 1 << 31


def problem() -> tuple[torch.Tensor, torch.Tensor, TokenTable]:
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(1, VOCAB, generator=g)
    return logits, torch.full((ROWS,), VOCAB - 1), TokenTable(*torch.rand(4, ROWS, generator=g))


def truth() -> tuple[RowStats, torch.Tensor, torch.Tensor]:
    logits, targets, table = problem()
    row = TokenTable(*(c[LAST:].double() for c in table if c is not None))
    return definition.hybrid_rows_(
        RowChunk(logits.double(), targets[LAST:], None, **SETTINGS),
        row,
        clip=None,
        out_dtype=torch.float64,
    )


def check(stats: RowStats, g: torch.Tensor, dlogits: torch.Tensor) -> None:
    logits = problem()[0]
    wanted, wanted_g, dz = truth()
    check_stats(RowStats(*(v[LAST:] for v in stats)), wanted, logits)
    check_rows(g[LAST:, None], wanted_g[:, None], logits, wanted_g)
    check_rows(dlogits, dz, logits, wanted_g)


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("strategy", ["held", "streamed"])
def test_the_last_row_of_a_chunk_on_cuda(arch: int, strategy: str, cuda_source: Source) -> None:
    logits, targets, table = problem()
    chunk = Chunk(rows=ROWS, vocab=VOCAB, pitch=PITCH, dtype=DTYPES[torch.float32], **SETTINGS)
    buffers: dict[str, Any] = {
        "chunk.logits": Sparse(ROWS * PITCH * 4, {BEFORE: logits[0]}),
        "chunk.targets": targets,
        "grad_logp": torch.zeros(ROWS),
        **{f"out.{name}": torch.zeros(ROWS) for name in RowStats._fields},
        **{f"table.{name}": column for name, column in table._asdict().items()},
    }
    params = HybridParams(
        chunk=chunk, out_dtype=DTYPES[torch.bfloat16], clip_low=-torch.inf, clip_high=torch.inf
    )
    # Too little shared memory for a row or a part of it: it is read twice.
    shared = {} if strategy == "held" else {"shared_bytes": 600}
    kernels = cuda_kernels(cuda_source, arch, Conditions(order=1), **shared, blocks=(LAST,))
    found = kernels.launch("hybrid_rows", "hybrid_rows", params, buffers).buffers
    stats = RowStats(**{name: found[f"out.{name}"] for name in RowStats._fields})
    dlogits = found["chunk.logits"][BEFORE].view(torch.bfloat16)[None, :VOCAB]
    check(stats, found["grad_logp"], dlogits)
    only = {k: v for k, v in buffers.items() if k.startswith(("chunk", "out"))}
    found = kernels.launch("row_stats", "row_stats", RowStatsParams(chunk=chunk), only).buffers
    stats = RowStats(**{name: found[f"out.{name}"] for name in RowStats._fields})
    check_stats(RowStats(*(v[LAST:] for v in stats)), truth()[0], logits)


def run_one(launched: Any, changed: dict[str, Any], memory: GlobalMemory, block: int) -> None:
    """Runs one block of a recorded launch with other arguments."""
    kernel = parse(launched.asm["ptx"])
    arguments: list[Argument] = [changed.get(a.name, a.value) for a in launched.arguments]
    arguments += [None] * (len(kernel.parameters) - len(arguments))
    geometry = Geometry(
        launched.grid, (launched.threads, 1, 1), dynamic_shared=launched.metadata.shared
    )
    launch(kernel, memory, arguments, geometry, Conditions(order=1), blocks=[block])


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_the_last_row_of_a_chunk_on_triton(target: str) -> None:
    pytest.importorskip("triton")
    from tests.gpu.budgets.triton.compile import recorded
    from wavalign_fast.ops import triton as backend

    logits, targets, table = problem()
    near = torch.zeros(ROWS, 1152)[:, :VOCAB]
    with recorded(target) as launches:
        backend.hybrid_rows_(
            RowChunk(near, targets, None, **SETTINGS), table, clip=None, out_dtype=torch.bfloat16
        )
    memory = GlobalMemory()
    chunk = memory.place("logits", logits.numpy(), before=BEFORE)
    named = {"targets": targets} | {k: v for k, v in table._asdict().items() if v is not None}
    nothing = np.zeros(ROWS, np.float32)
    outputs = {
        name: memory.place(name, nothing, defined=nothing > 0)
        for name in (*RowStats._fields, "grad_logp")
    }
    changed = {name: memory.place(name, value.numpy()) for name, value in named.items()}
    changed |= {**outputs, "logits": chunk, "out": chunk, "pitch_64": PITCH // 64}
    run_one(launches[0], changed, memory, LAST)
    stats = RowStats(**{name: torch.from_numpy(outputs[name].array) for name in RowStats._fields})
    dlogits = from_numpy(chunk.array, torch.float32).view(torch.bfloat16)[:, :VOCAB]
    check(stats, torch.from_numpy(outputs["grad_logp"].array), dlogits)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_the_last_ids_of_a_head_on_triton(target: str) -> None:
    """A weight of more than 2^31 elements, of which the last span of the vocabulary is scored."""
    pytest.importorskip("triton")
    from tests.gpu.budgets.triton.compile import recorded
    from wavalign_fast.ops import triton as backend

    rows, inner, span, ids = 5, 64, 1024, 100
    spans = (1 << 31) // (inner * span) + 1
    vocab = spans * span + ids
    g = torch.Generator().manual_seed(2)
    hidden = torch.randn(rows, inner, generator=g).bfloat16()
    weight = (0.3 * torch.randn(ids, inner, generator=g)).bfloat16()
    targets = torch.full((rows,), vocab - 1)
    options = {"scale": 1.0, "ignore_index": -100}
    with recorded(target) as launches:
        backend.score(hidden, torch.zeros(span + ids, inner).bfloat16(), targets, None, **options)
    parts = replace(launches[0], grid=(1, spans + 1, 1))
    memory = GlobalMemory()
    sums = {
        name: memory.place(name, np.zeros(rows, np.float32), before=spans * rows * 4)
        for name in ("tops", "totals", "weighteds")
    }
    own = memory.place("at_target", np.zeros(rows, np.float32))
    changed: dict[str, Any] = {
        "hidden": memory.place("hidden", hidden.view(torch.int16).numpy()),
        "weight": memory.place(
            "weight", weight.view(torch.int16).numpy(), before=spans * span * inner * 2
        ),
        "targets": memory.place("targets", targets.numpy()),
        "at_target": own,
        "vocab": vocab,
        **sums,
    }
    run_one(parts, changed, memory, spans)
    logits = hidden.double() @ weight.double().T
    top, total = (torch.from_numpy(sums[name].array).double() for name in ("tops", "totals"))
    torch.testing.assert_close(top + total.log(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)
    found = torch.from_numpy(own.array).double()
    torch.testing.assert_close(found, logits[:, -1], rtol=1e-5, atol=1e-5)


FACTOR = 0.7
BEYOND = (1 << 31) + 4096
"""The elements of a gradient before those that exist."""


def far_gradient() -> tuple[torch.Tensor, torch.Tensor]:
    """The part of it that exists, and the expected result."""
    gradient = torch.randn(4096 + 5, generator=torch.Generator().manual_seed(3)).bfloat16()
    return gradient, definition.scale_(gradient.clone(), torch.tensor(FACTOR))


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_the_end_of_a_gradient_on_cuda(arch: int, cuda_source: Source) -> None:
    """Run by the last blocks of a grid that has a thread for every vector."""
    gradient, wanted = far_gradient()
    size, before = BEYOND + len(gradient), 2 * BEYOND
    blocks = -(-size // (256 * 8))
    kernels = cuda_kernels(
        cuda_source, arch, Conditions(order=1), blocks=(blocks - 3, blocks - 2, blocks - 1)
    )
    kernels.grid = (blocks, 1, 1)
    params = ScaleParams(dtype=DTYPES[torch.bfloat16], size=size)
    buffers: dict[str, Any] = {
        "gradient": Sparse(2 * size, {before: gradient}),
        "factor": torch.tensor(FACTOR),
    }
    found = kernels.launch("scale", "scale", params, buffers).buffers["gradient"][before]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_the_end_of_a_gradient_on_triton(target: str) -> None:
    pytest.importorskip("triton")
    from tests.gpu.budgets.triton.compile import recorded
    from wavalign_fast.ops import triton as backend

    gradient, wanted = far_gradient()
    with recorded(target) as launches:
        backend.scale_(torch.empty(BEYOND + len(gradient), dtype=torch.bfloat16), torch.ones(()))
    blocks = BEYOND // 4096 + 1
    memory = GlobalMemory()
    end = memory.place("gradient", gradient.view(torch.int16).numpy(), before=2 * BEYOND)
    factor = memory.place("factor", np.array([FACTOR], np.float32))
    # Each program takes one whole block, and the last one takes the rest too.
    launched = replace(launches[0], grid=(blocks, 1, 1))
    run_one(launched, {"gradient": end, "factor": factor}, memory, blocks - 1)
    assert torch.equal(from_numpy(end.array, torch.bfloat16), wanted)
