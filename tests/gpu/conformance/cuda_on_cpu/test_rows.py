"""Row kernels on the emulated device, compared with their definition in float64."""

import math

import pytest
import torch

from tests.gpu.conformance import problems
from tests.gpu.conformance.problems import IGNORE, SETTINGS
from tests.tolerances import FLOOR, GRADIENT_FACTOR, VALUE_FACTOR
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .kernels import Kernels, on_strategy

VOCABS = (1, 2, 3, 31, 255, 256, 257, 1000, 1009, 4099)
PAIRS = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
]
TYPES = [pytest.param(pair, id="-".join(str(t)[6:] for t in pair)) for pair in PAIRS]
VALUE_ERROR = 3e-7
"""The error allowed in a log-prob, relative to the row's largest logit."""


def largest(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().nan_to_num().abs().amax(dim=1)


def check_values(found: RowStats, plain: RowStats, truth: RowStats, logits: torch.Tensor) -> None:
    """At most twice the error of plain torch, or the accuracy that is guaranteed."""
    promised = 1e-5 + VALUE_ERROR * largest(logits)
    for name, value in found._asdict().items():
        wanted, ordinary = getattr(truth, name), getattr(plain, name).double()
        assert torch.equal(value.isnan(), wanted.isnan()), name
        error, usual = ((x.double() - wanted).abs().nan_to_num() for x in (value, ordinary))
        assert (error <= torch.maximum(VALUE_FACTOR * usual, promised)).all(), (name, error)
    assert (found.logp.nan_to_num() <= 0).all()
    assert (found.entropy.nan_to_num() >= 0).all()


def check_gradient(
    found: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, logits: torch.Tensor
) -> None:
    """At most three times the error of plain torch in each row, or what logp's error causes."""
    assert torch.equal(found.isnan(), truth.isnan())
    # The gradient is 0 where the truth is exactly 0: dead rows, banned ids.
    absent = (truth == 0) & (plain == 0)
    assert (found[absent] == 0).all()
    found, plain, truth = (x.double().nan_to_num() for x in (found, plain, truth))
    share = 2 * FLOOR[torch.float32] + 2 * VALUE_ERROR * largest(logits)
    promised = share * truth.abs().amax(dim=1).clamp(min=1e-6)
    error, usual = ((x - truth).abs().amax(dim=1) for x in (found, plain))
    assert (error <= torch.maximum(GRADIENT_FACTOR * usual, promised)).all(), (error, usual)


def garbage_is_kept(kernels: Kernels, logits: torch.Tensor) -> bool:
    """Whether the columns between V and the pitch are unchanged."""
    pitch = logits.stride(0)
    left = kernels.last.buffers["chunk.logits"].view(-1, pitch)[:, logits.shape[1] :]
    before = logits.as_strided(left.shape, (pitch, 1), logits.shape[1])
    return torch.equal(left.isnan(), before.isnan()) and bool(before.isnan().all())


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_hybrid_rows_are_those_of_the_definition(
    kernels: Kernels, vocab: int, types: tuple[torch.dtype, torch.dtype]
) -> None:
    dtype, out_dtype = types
    logits, targets, bias = problems.chunk(vocab, dtype)
    logp = definition.row_stats(RowChunk(logits.float(), targets, bias, **SETTINGS)).logp
    table = problems.table(logp)
    clip = (0.8, 1.3) if vocab % 2 else None
    settings = {"clip": clip, "out_dtype": out_dtype}
    plain, plain_g, plain_dz = definition.hybrid_rows_(
        RowChunk(logits.clone(), targets, bias, **SETTINGS), table, **settings
    )
    wide = settings | {"out_dtype": torch.float64}
    truth, g, dz = definition.hybrid_rows_(
        RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
        TokenTable(*problems.doubled(table)),
        **wide,
    )
    for strategy in ("held", "cluster", "streamed"):
        device = on_strategy(kernels, strategy, vocab, dtype)
        found, found_g, found_dz = device.hybrid_rows_(
            RowChunk(logits, targets, bias, **SETTINGS), table, **settings
        )
        check_values(found, plain, truth, logits)
        check_gradient(found_g[:, None], plain_g[:, None], g[:, None], logits)
        check_gradient(found_dz, plain_dz, dz, logits)
        assert garbage_is_kept(device, logits)
        assert not found_dz[[problems.DEAD, problems.BEYOND, problems.NEGATIVE]].any()
        assert not found_dz[problems.ZERO].any()


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_statistics_and_gradient_are_those_of_the_definition(
    kernels: Kernels, vocab: int, types: tuple[torch.dtype, torch.dtype]
) -> None:
    dtype, out_dtype = types
    logits, targets, bias = problems.chunk(vocab, dtype)
    shift = None if vocab % 2 else bias
    double = None if shift is None else shift.double()
    plain = definition.row_stats(RowChunk(logits, targets, shift, **SETTINGS))
    truth = definition.row_stats(RowChunk(logits.double(), targets, double, **SETTINGS))
    found = kernels.row_stats(RowChunk(logits, targets, shift, **SETTINGS))
    check_values(found, plain, truth, logits)
    for grads in (problems.grads(), problems.grads(entropy=False, lse=False)):
        settings = {"out_dtype": out_dtype}
        usual = definition.row_gradient_(
            RowChunk(logits.clone(), targets, shift, **SETTINGS), plain, grads, **settings
        )
        wanted = definition.row_gradient_(
            RowChunk(logits.double(), targets, double, **SETTINGS),
            truth,
            RowGrads(*problems.doubled(grads)),
            **(settings | {"out_dtype": torch.float64}),
        )
        dz = kernels.row_gradient_(
            RowChunk(logits, targets, shift, **SETTINGS), found, grads, **settings
        )
        check_gradient(dz, usual, wanted, logits)
        assert garbage_is_kept(kernels, logits)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("ref", [True, False])
@pytest.mark.parametrize("clip", [None, (0.8, 1.3)])
def test_columns_that_are_absent_are_terms_that_are_absent(
    kernels: Kernels, old: bool, ref: bool, clip: tuple[float, float] | None
) -> None:
    logits, targets, _ = problems.chunk(31, torch.float32)
    logp = definition.row_stats(RowChunk(logits, targets, None, **SETTINGS)).logp
    table = problems.table(logp, old=old, ref=ref)
    settings = {"clip": clip, "out_dtype": torch.float32}
    _, plain_g, plain_dz = definition.hybrid_rows_(
        RowChunk(logits.clone(), targets, None, **SETTINGS), table, **settings
    )
    _, g, dz = kernels.hybrid_rows_(RowChunk(logits, targets, None, **SETTINGS), table, **settings)
    torch.testing.assert_close(g, plain_g, rtol=2e-5, atol=1e-6, equal_nan=True)
    size = plain_dz.nan_to_num().abs().amax().item()
    torch.testing.assert_close(dz, plain_dz, rtol=2e-5, atol=2e-6 * size, equal_nan=True)


@pytest.fixture(params=[168072, 168055], scope="module")
def large(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of the model's vocabulary, or of one that is no multiple of a vector."""
    logits, targets, bias = problems.chunk(request.param, torch.float32)
    rows = torch.tensor([problems.ORDINARY, problems.LAST])
    return problems.padded(logits[rows]), targets[rows], bias


@pytest.mark.parametrize("strategy", ["held", "streamed"])
def test_hybrid_rows_of_the_models_vocabulary(kernels: Kernels, large, strategy: str) -> None:
    # An H100 spreads such a row over a cluster of eight; an A100 reads it twice.
    device = kernels.on(arch=90) if strategy == "held" else kernels.on(arch=80, shared_bytes=166912)
    logits, targets, bias = large
    table = TokenTable(*(column[:2] for column in problems.table(torch.zeros(10))))
    settings = {"clip": None, "out_dtype": torch.bfloat16}
    plain, _, plain_dz = definition.hybrid_rows_(
        RowChunk(logits.clone(), targets, bias, **SETTINGS), table, **settings
    )
    truth, _, dz = definition.hybrid_rows_(
        RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
        TokenTable(*problems.doubled(table)),
        **(settings | {"out_dtype": torch.float64}),
    )
    found, _, found_dz = device.hybrid_rows_(
        RowChunk(logits, targets, bias, **SETTINGS), table, **settings
    )
    check_values(found, plain, truth, logits)
    check_gradient(found_dz, plain_dz, dz, logits)


def test_gradient_of_the_models_vocabulary(kernels: Kernels, large) -> None:
    logits, targets, bias = large
    stats = definition.row_stats(RowChunk(logits, targets, bias, **SETTINGS))
    check_values(
        kernels.row_stats(RowChunk(logits, targets, bias, **SETTINGS)),
        stats,
        definition.row_stats(RowChunk(logits.double(), targets, bias.double(), **SETTINGS)),
        logits,
    )
    grads = RowGrads(*(grad[:2] for grad in problems.grads()))
    settings = {"out_dtype": torch.bfloat16}
    plain = definition.row_gradient_(
        RowChunk(logits.clone(), targets, bias, **SETTINGS), stats, grads, **settings
    )
    truth = definition.row_gradient_(
        RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
        RowStats(*problems.doubled(stats)),
        RowGrads(*problems.doubled(grads)),
        out_dtype=torch.float64,
    )
    found = kernels.row_gradient_(
        RowChunk(logits, targets, bias, **SETTINGS), stats, grads, **settings
    )
    check_gradient(found, plain, truth, logits)


def test_far_offsets_cost_no_digits(kernels: Kernels) -> None:
    # Exact in fp32 at 2e4, so that nothing is rounded before the kernel reads it.
    g = torch.Generator().manual_seed(0)
    near = (200 * torch.randn(3, 500, generator=g)).round() / 64
    targets, ones = torch.tensor([3, 4, 499]), torch.ones(3)
    table = TokenTable(ones, ones, 0 * ones, 0 * ones)
    wanted, _, dz = definition.hybrid_rows_(
        RowChunk(near.double(), targets, None, 1.0, IGNORE),
        TokenTable(*problems.doubled(table)),
        clip=None,
        out_dtype=torch.float64,
    )
    chunk = RowChunk(problems.padded(near + 2e4), targets, None, 1.0, IGNORE)
    stats, _, found = kernels.hybrid_rows_(chunk, table, clip=None, out_dtype=torch.float32)
    again = kernels.row_gradient_(chunk, stats, RowGrads(-ones), out_dtype=torch.float32)
    torch.testing.assert_close(stats.logp.double(), wanted.logp, rtol=0, atol=1e-5)
    for gradient in (found, again):
        torch.testing.assert_close(gradient.double(), dz, rtol=1e-5, atol=1e-9)


def test_near_certain_tokens_keep_their_digits(kernels: Kernels) -> None:
    logits, targets = torch.zeros(2, 40), torch.tensor([7, 39])
    logits[0, 7] = logits[1, 39] = 18.0
    stats = definition.row_stats(RowChunk(logits.double(), targets, None, **SETTINGS))
    wanted = definition.row_gradient_(
        RowChunk(logits.double(), targets, None, **SETTINGS),
        stats,
        RowGrads(torch.ones(2).double()),
        out_dtype=torch.float64,
    )
    near = RowStats(*(value.float() for value in stats))
    found = kernels.row_gradient_(
        RowChunk(problems.padded(logits), targets, None, **SETTINGS),
        near,
        RowGrads(torch.ones(2)),
        out_dtype=torch.float32,
    )
    assert wanted[0, 7] < 1e-3
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


def test_a_row_of_banned_ids_is_nan_and_harms_no_other(kernels: Kernels) -> None:
    logits = problems.padded(torch.randn(3, 300))
    logits[1] = -math.inf
    targets = torch.tensor([4, 5, 6])
    found = kernels.row_stats(RowChunk(logits, targets, None, **SETTINGS))
    alone = kernels.row_stats(RowChunk(problems.padded(logits[2:]), targets[2:], None, **SETTINGS))
    assert found.logp.isnan().tolist() == [False, True, False]
    assert found.entropy.isnan().tolist() == [False, True, False]
    assert all(torch.equal(a[2:], b) for a, b in zip(found, alone, strict=True))


def test_no_rows_are_no_launch(kernels: Kernels) -> None:
    logits = torch.empty(0, 64)[:, :50]
    nothing = torch.empty(0)
    stats = kernels.row_stats(RowChunk(logits, torch.empty(0, dtype=torch.int64), None, **SETTINGS))
    assert kernels.last.launches == 0
    assert all(value.shape == (0,) for value in stats)
    table = TokenTable(*([nothing] * 6))
    kernels.hybrid_rows_(
        RowChunk(logits, torch.empty(0, dtype=torch.int64), None, **SETTINGS),
        table,
        clip=None,
        out_dtype=torch.bfloat16,
    )
    assert kernels.last.launches == 0
