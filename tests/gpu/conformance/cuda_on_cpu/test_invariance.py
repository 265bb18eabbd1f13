"""A row's bits depend on the row alone, not on its place, its neighbours or the thread order."""

import pytest
import torch

from tests.gpu.conformance import problems
from tests.gpu.conformance.problems import SETTINGS
from wavalign_fast.ops.chunked.interface import RowChunk, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .kernels import Kernels, on_strategy

VOCAB = 1009
KEPT = [problems.ORDINARY, problems.LAST, problems.HIGH, problems.CERTAIN]
Results = tuple[RowStats, torch.Tensor, torch.Tensor]


def bits(results: Results) -> list[torch.Tensor]:
    stats, g, dlogits = results
    return [*(value.view(torch.int32) for value in (*stats, g)), dlogits.view(torch.int16)]


def hybrid(kernels: Kernels, rows: list[int], **place: int) -> Results:
    logits, targets, bias = problems.chunk(VOCAB, torch.float32)
    table = problems.table(torch.full((problems.ROWS,), -5.0))
    chosen = torch.tensor(rows)
    return kernels.hybrid_rows_(
        RowChunk(problems.padded(logits[chosen], **place), targets[chosen], bias, **SETTINGS),
        TokenTable(*(column[chosen] for column in table)),
        clip=(0.8, 1.2),
        out_dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("strategy", ["held", "cluster", "streamed"])
def test_hybrid_rows(kernels: Kernels, strategy: str) -> None:
    device = on_strategy(kernels, strategy, VOCAB, torch.float32)
    every = bits(hybrid(device, list(range(problems.ROWS))))
    for seed in (0, 2, 3, 4):
        again = bits(hybrid(device.on(seed=seed), list(range(problems.ROWS))))
        assert all(torch.equal(a, b) for a, b in zip(every, again, strict=True))
    for row in KEPT:
        alone = bits(hybrid(device, [row], pitch=2048))
        assert all(torch.equal(a[row], b[0]) for a, b in zip(every, alone, strict=True))
    backwards = bits(hybrid(device, KEPT[::-1]))
    assert all(torch.equal(a[KEPT], b.flip(0)) for a, b in zip(every, backwards, strict=True))


def test_statistics_and_gradient(kernels: Kernels) -> None:
    logits, targets, bias = problems.chunk(VOCAB, torch.bfloat16)
    grads = problems.grads()

    def results(rows: list[int], seed: int) -> Results:
        device = kernels.on(seed=seed)
        chosen = torch.tensor(rows)
        inputs = (problems.padded(logits[chosen]), targets[chosen], bias)
        stats = device.row_stats(RowChunk(*inputs, **SETTINGS))
        taken = type(grads)(*(grad[chosen] for grad in grads))
        dz = device.row_gradient_(
            RowChunk(*inputs, **SETTINGS), stats, taken, out_dtype=torch.bfloat16
        )
        return stats, stats.logp, dz

    every = bits(results(list(range(problems.ROWS)), seed=1))
    for row in KEPT:
        alone = bits(results([row], seed=row))
        assert all(torch.equal(a[row], b[0]) for a, b in zip(every, alone, strict=True))
