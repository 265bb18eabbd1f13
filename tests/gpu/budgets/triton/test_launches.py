"""The launchers on CPU tensors, under a driver that compiles and records but runs nothing."""

from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from tests.gpu.budgets.triton import cases
from tests.gpu.budgets.triton.compile import compiled, recorded
from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked.interface import RowChunk
from wavalign_fast.ops.token_math import TokenTable
from wavalign_fast.ops.triton import scorer
from wavalign_fast.ops.triton.configs import ScorerConfig

H100 = "sm_90a"
EVERY_KERNEL = (
    "row_stats/fp32",
    "row_gradient/fp32-bf16",
    "hybrid_rows/fp32-bf16",
    "score/fp32",
    "compaction/bf16-fp32",
    "scale/fp32",
)
"""Cases that between them launch each kernel."""


def test_one_program_a_row():
    with recorded(H100) as launches:
        cases.row_stats(torch.float32, bias=False, rows=1000)
    (launch,) = launches
    assert launch.name == "row_stats_kernel"
    assert launch.grid == (1000, 1, 1) and launch.threads == 128
    passed = {argument.name: argument.value for argument in launch.arguments}
    assert passed["vocab"] == cases.VOCAB and passed["pitch_64"] * 64 == 168_128


# 168 072 ids are 165 spans of 1024; 200 rows are two blocks of 128.
@pytest.mark.parametrize(
    ("target", "tile", "shared"),
    [("sm_80", 128, 65_536), (H100, 256, 147_456), ("gfx942", 128, 32_768)],
)
def test_spans_of_the_vocabulary_fill_the_gpu(target, tile, shared):
    spans, merge = compiled("score/bf16", target)
    assert spans.name == "score_spans_kernel" and spans.grid == (2, 165, 1)
    assert spans.metadata.num_warps == 8 and spans.metadata.shared == shared
    assert f"128x{tile}x" in spans.asm["ttgir"].replace("tensor<", "")
    assert merge.name == "score_merge_kernel" and merge.grid == (7, 1, 1)


def test_many_rows_are_scored_in_several_launches():
    with recorded(H100) as launches, mock.patch.object(scorer, "ROWS_PER_LAUNCH", 150):
        cases.score(torch.bfloat16, bias=False, softcap=False)
    assert [launch.grid[0] for launch in launches] == [2, 5, 1, 2]


def test_the_grids_of_compaction():
    with recorded(H100) as launches:
        cases.compaction(total=5000, capacity=9000)
    names = ["count_live", "scan_counts", "write_index", "gather_rows", "scatter_rows"]
    assert [launch.name.removesuffix("_kernel") for launch in launches] == names
    assert [launch.grid[0] for launch in launches] == [3, 1, 5, 9000, 9000]


def test_what_comes_before_16_bytes_is_scaled_by_a_launch_of_its_own():
    for items, sizes in ((0, [9000]), (8, [9000]), (3, [5, 8995])):
        with recorded(H100) as launches:
            cases.scale(torch.bfloat16, items=items)
        passed = [{a.name: a.value for a in launch.arguments} for launch in launches]
        assert [arguments["size"] for arguments in passed] == sizes
        assert [launch.grid[0] for launch in launches] == [-(-size // 4096) for size in sizes]
        assert passed[-1]["gradient"].data_ptr() % 16 == 0
    with recorded(H100) as launches:
        cases.scale(torch.bfloat16, size=2**30)
    assert [launch.grid[0] for launch in launches] == [512]


def test_no_environment_changes_the_roundings(monkeypatch):
    """Triton fuses a product and a sum by a default of its release and of the environment."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    with recorded("sm_80") as launches:
        for case in EVERY_KERNEL:
            cases.CASES[case]()
    assert len({launch.name for launch in launches}) == 11
    assert all(launch.metadata.enable_fp_fusion for launch in launches)


def rows_of(rows: int, vocab: int, ignore_index: int, scale: float, *, shifted: bool) -> None:
    """All three row kernels; ``shifted`` starts each row's values one element later."""
    first = int(shifted)
    logits = torch.empty(rows, (vocab + 63) // 64 * 64)[:, :vocab]
    targets = torch.empty(rows + 1, dtype=torch.int64)[first : rows + first]
    table = TokenTable(*torch.empty(4, rows + 1)[:, first : rows + first].unbind())
    backend.hybrid_rows_(
        RowChunk(logits, targets, None, scale=scale, ignore_index=ignore_index),
        table,
        clip=None,
        out_dtype=torch.bfloat16,
    )


def test_other_sizes_and_values_compile_nothing_again():
    """Steps differ in their rows and models in their vocabulary: one compilation serves all."""
    with recorded(H100) as launches:
        rows_of(64, 32_000, -100, 1.0, shifted=False)
        rows_of(63, 32_000, -100, 1.0, shifted=True)
        rows_of(1, 168_055, 1, 0.7, shifted=True)
        for rows, vocab in ((64, 1024), (1, 1025), (17, 8000)):
            hidden, weight = torch.empty(rows, 64), torch.empty(vocab, 64)
            targets = torch.empty(rows, dtype=torch.int64)
            backend.score(hidden, weight, targets, None, scale=1.0 / rows, ignore_index=-rows)
        for total, capacity in ((16, 1), (5000, 64)):
            backend.compact_rows(torch.empty(total, dtype=torch.bool), capacity)
        for size in (1, 16, 5000):
            backend.scale_(torch.empty(size), torch.empty(2)[size % 2])
    kernels: dict[str, set[int]] = {}
    for launch in launches:
        kernels.setdefault(launch.name, set()).add(id(launch.kernel))
    assert {name: len(found) for name, found in kernels.items()} == dict.fromkeys(kernels, 1)
    assert len(kernels) == 7


def test_a_tile_that_a_target_cannot_hold_is_refused_as_on_a_gpu():
    too_large = ScorerConfig(rows=128, ids=256, inner=64, tiles=4, warps=8, stages=4)
    with (
        recorded("sm_120") as launches,
        mock.patch.object(scorer, "scorer_config", lambda *_, **__: too_large),
        pytest.raises(OutOfResources, match="shared memory"),
    ):
        cases.score(torch.bfloat16, bias=False, softcap=False)
    assert launches == []


def call_row_stats(**changes):
    logits = torch.empty(2, 128)[:, :100]
    arguments = {"logits": logits, "targets": torch.zeros(2, dtype=torch.int64), "bias": None}
    backend.row_stats(RowChunk(**(arguments | changes), scale=1.0, ignore_index=-100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.empty(2, 100)}, "rows 100 elements apart"),
        ({"logits": torch.empty(1000)[1:].as_strided((2, 100), (128, 1))}, "multiple of 64"),
        ({"logits": torch.empty(100, 2).T}, "contiguous rows"),
        ({"logits": torch.empty(2, 0)}, "V > 0"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, r"int64 \(3,\)"),
        ({"targets": torch.zeros(2, dtype=torch.int32)}, "torch.int32"),
        ({"bias": torch.zeros(99)}, r"float32 \(99,\)"),
        ({"bias": torch.zeros(100, dtype=torch.bfloat16)}, "bfloat16"),
    ],
)
def test_what_the_row_kernels_cannot_read_is_refused(changes, message):
    with recorded(H100) as launches, pytest.raises(ValueError, match=message):
        call_row_stats(**changes)
    assert launches == []


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (torch.empty(3), r"advantage: got torch.float32 \(3,\)"),
        (torch.empty(2, dtype=torch.float64), "advantage: got torch.float64"),
    ],
)
def test_a_table_that_does_not_fit_the_rows_is_refused(column, message):
    table = TokenTable(*torch.empty(4, 2))._replace(advantage=column)
    with recorded(H100) as launches, pytest.raises(ValueError, match=message):
        backend.hybrid_rows_(
            RowChunk(
                torch.empty(2, 128)[:, :100],
                torch.zeros(2, dtype=torch.int64),
                None,
                scale=1.0,
                ignore_index=-100,
            ),
            table,
            clip=None,
            out_dtype=torch.bfloat16,
        )
    assert launches == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.empty(9, 7)}, r"\(9, 7\)"),
        ({"weight": torch.empty(9, 8, dtype=torch.bfloat16)}, "want one dtype"),
        ({"weight": torch.empty(8, 9).T}, "contiguous rows"),
        ({"bias": torch.empty(8)}, r"float32 \(8,\)"),
        ({"targets": torch.zeros(2)}, "want torch.int64"),
        ({"softcap": 0.0}, "softcap: got 0.0"),
    ],
)
def test_what_the_scorer_cannot_read_is_refused(changes, message):
    arguments = {
        "hidden": torch.empty(2, 8),
        "weight": torch.empty(9, 8),
        "targets": torch.zeros(2, dtype=torch.int64),
        "bias": None,
        "softcap": None,
    }
    with pytest.raises(ValueError, match=message):
        backend.score(**(arguments | changes), scale=1.0, ignore_index=-100)


def test_what_compaction_cannot_read_is_refused():
    index = torch.zeros(2, dtype=torch.int64)
    for call, message in (
        (lambda: backend.compact_rows(torch.zeros(3), 1), "float32"),
        (lambda: backend.compact_rows(torch.zeros(3, dtype=torch.bool), -1), "capacity: got -1"),
        (lambda: backend.gather_rows(torch.zeros(3, 4).T, index), "contiguous rows"),
        (lambda: backend.gather_rows(torch.zeros(3, 4), index.int()), "int32"),
        (lambda: backend.scatter_rows_(torch.zeros(2, 5), index, torch.zeros(3, 4)), "want"),
        (
            lambda: backend.scatter_rows_(torch.zeros(2, 4), index, torch.zeros(3, 4).double()),
            "float64",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
