"""Chunks of logits as a backend gets them, and comparisons of the results."""

import math
from typing import NamedTuple

import torch

from tests.tolerances import FLOOR, relative_error
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowStats
from wavalign_fast.ops.token_math import TokenTable

IGNORE = -100
DEAD, BAD, BELOW = 1, 3, 4
"""Rows whose target is ``IGNORE``, V, and negative, in chunks that have such rows."""
KINDS = ("plain", "far below", "far above", "spread", "one")


class Chunk(NamedTuple):
    logits: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None

    def double(self) -> "Chunk":
        bias = None if self.bias is None else self.bias.double()
        return Chunk(self.logits.double(), self.targets, bias)

    def fresh(self) -> "Chunk":
        """The same values in other memory, because the gradient is written over the logits."""
        return Chunk(strided(self.logits), self.targets, self.bias)

    def rows(self, places: list[int]) -> "Chunk":
        return Chunk(strided(self.logits[places]), self.targets[places], self.bias)


def strided(values: torch.Tensor) -> torch.Tensor:
    """Rows a multiple of 64 elements apart, with NaN between them and after the last."""
    rows, vocab = values.shape
    pitch = (vocab // 64 + 2) * 64
    memory = torch.full((rows, pitch), math.nan, dtype=values.dtype)
    memory[:, :vocab] = values
    return memory[:, :vocab]


def behind(logits: torch.Tensor) -> torch.Tensor:
    """The columns beyond the vocabulary in every row."""
    rows, vocab = logits.shape
    pitch = logits.stride(0)
    return logits.as_strided((rows, pitch - vocab), (pitch, 1), logits.storage_offset() + vocab)


def chunk(
    vocab: int,
    *,
    rows: int = 6,
    kind: str = "plain",
    dtype: torch.dtype = torch.float32,
    bias: bool = False,
    irregular: bool = True,
    seed: int = 0,
) -> Chunk:
    """Random logits; ``irregular`` puts a dead row and rows with bad targets among the others."""
    g = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(rows, vocab, generator=g)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    if kind == "far below":
        logits -= 300.0
    elif kind == "far above":
        logits += 2e4
    elif kind == "spread":
        logits *= 5e3
    elif kind == "one":  # p of the target is near 1
        logits[torch.arange(rows), targets] += torch.linspace(5.0, 30.0, rows)
    shift = torch.randn(vocab, generator=g) if bias else None
    if shift is not None and vocab > 4:
        shift[vocab // 2] = -math.inf
        shift[0] = -math.inf
        targets[0] = 0  # a banned target
    if irregular:
        targets[DEAD], targets[BAD], targets[BELOW] = IGNORE, vocab, -1
    return Chunk(strided(logits.to(dtype)), targets, shift)


def table(rows: int, *, every: bool, seed: int = 1) -> TokenTable:
    """A step's coefficients; with ``every``, old and reference log-probs, NaN where unused."""
    g = torch.Generator().manual_seed(seed)
    policy, kl, anchor = torch.rand(3, rows, generator=g).unbind()
    advantage = torch.randn(rows, generator=g)
    policy[::3], kl[1::3], anchor[1::2] = 0.0, 0.0, 0.0
    if not every:
        return TokenTable(policy, advantage, torch.zeros(rows), anchor)
    old, ref = (-8.0 * torch.rand(2, rows, generator=g)).unbind()
    # Beyond the point from which ratios grow linearly; NaN where nothing may read.
    old[2], ref[5:6], advantage[2] = -60.0, 40.0, 1.0
    old[::3], ref[1::3] = math.nan, math.nan
    return TokenTable(policy, advantage, kl, anchor, old, ref)


def assert_close(
    found: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, factor: float
) -> None:
    """NaN and infinities where the truth has them, else ``factor`` times plain torch's error."""
    assert torch.equal(found.isnan(), truth.isnan()), f"NaN in {found}, want {truth}"
    infinite = truth.isinf()
    assert torch.equal(found[infinite].double(), truth[infinite]), f"got {found}, want {truth}"
    finite = truth.isfinite()
    error = relative_error(found[finite], truth[finite])
    allowed = max(factor * relative_error(plain[finite], truth[finite]), FLOOR[torch.float32])
    assert error <= allowed, f"error {error:.2e}, want <= {allowed:.2e}"


def assert_rows_close(
    found: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, factor: float
) -> None:
    """Row by row: a ratio of e^20 in one must not hide an error in another."""
    for row, values in enumerate(zip(found, plain, truth, strict=True)):
        one, other, wanted = (value.reshape(-1) for value in values)
        assert torch.equal(one.isnan(), wanted.isnan()), f"NaN in row {row}: {one}, want {wanted}"
        one, other, wanted = one.nan_to_num(), other.nan_to_num(), wanted.nan_to_num()
        error = relative_error(one, wanted, at_least=1.0)
        allowed = factor * relative_error(other, wanted, at_least=1.0)
        allowed = max(allowed, FLOOR[torch.float32])
        assert error <= allowed, f"row {row}: error {error:.2e}, want <= {allowed:.2e}"


def definitions(c: Chunk, scale: float) -> tuple[RowStats, RowStats]:
    """Plain torch in fp32, and the truth in float64."""
    plain = definition.row_stats(RowChunk(*c, scale, IGNORE))
    return plain, definition.row_stats(RowChunk(*c.double(), scale, IGNORE))
