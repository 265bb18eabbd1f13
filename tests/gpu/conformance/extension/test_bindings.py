"""The bindings around a launch: checks, device, stream, status. No kernel runs here."""

from typing import Any

import pytest
import torch

from tests.gpu.conformance.extension.compiling import Library, without_kernels

STREAM = 0x5EA0
CHUNK = torch.zeros(3, 128)[:, :70]
IDS = torch.zeros(3, dtype=torch.int64)
ROW = torch.zeros(3)
WEIGHTS = torch.zeros(4, 6)
SCALE = {"scale": 1.0, "ignore_index": -100}
STATS = {"logp": ROW, "entropy": ROW, "top": ROW, "log_sum": ROW}
GRADS = {"grad_logp": ROW, "grad_entropy": None, "grad_lse": ROW}
TABLE = {"policy_coef": ROW, "advantage": ROW, "kl_coef": ROW, "anchor_coef": ROW}
ROWS = {"logits": CHUNK, "targets": IDS, "bias": torch.zeros(70), **SCALE}
WRITES = {"out_dtype": torch.bfloat16}
GATE = {"lambda_max": 0.8, "slope": 5.0, "threshold": 3.0, "variance_scale": 4.0}

CALLS: dict[str, dict[str, Any]] = {
    "row_stats": ROWS,
    "row_gradient_": ROWS | STATS | GRADS | WRITES,
    "hybrid_rows_": ROWS | TABLE | WRITES
    | {"old_logp": None, "ref_logp": ROW, "clip_low": 0.8, "clip_high": 1.2},
    "group_statistics": {"rewards": WEIGHTS, "eps": 1e-4, "sample_std": False, **GATE},
    "mix": {
        "sums": torch.zeros(6), "previous": torch.zeros(1),
        "has_previous": torch.zeros(1, dtype=torch.bool), "lambda_max": 0.8, "ema": 0.9,
    },
    "compact_rows": {"live": torch.zeros(9, dtype=torch.bool), "capacity": 5},
    "gather_rows": {"source": WEIGHTS, "index": IDS},
    "scatter_rows_": {"rows": torch.zeros(3, 6).bfloat16(), "index": IDS, "target": WEIGHTS},
    "scale_": {"gradient": WEIGHTS.bfloat16(), "factor": torch.tensor(2.0)},
}  # fmt: skip


@pytest.fixture(scope="module")
def library() -> Library:
    return without_kernels()


@pytest.mark.parametrize("name", CALLS)
def test_an_op_launches_once_on_the_current_stream_of_its_device(library, name):
    library.set(stream=STREAM)
    library.events()
    getattr(library.ops, name)(**CALLS[name])
    # A tensor of the CPU has device -1.
    assert library.events() == ["device -1", f"{name} on {STREAM}", "device before"]


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_launch_raises(library, name):
    library.set(status=98)
    with pytest.raises(RuntimeError, match=f"{name}: the launch failed: invalid device function"):
        getattr(library.ops, name)(**CALLS[name])
    library.set()


def misplaced(*shape: int) -> torch.Tensor:
    """Memory that starts four bytes beyond a multiple of 16."""
    flat = torch.zeros(1 + torch.Size(shape).numel())[1:]
    return flat.view(shape)


BAD = [
    ("row_stats", {"logits": CHUNK.double()}, r"logits: got Double \[3, 70\] on the CPU"),
    ("row_stats", {"logits": CHUNK.half()}, "logits: got Half .* want Float or BFloat16"),
    ("row_stats", {"logits": CHUNK[0]}, r"logits: got Float \[70\]"),
    ("row_stats", {"logits": CHUNK[:, :0]}, "want V > 0"),
    ("row_stats", {"logits": torch.zeros(70, 3).T}, r"strides \[1, 3\], want \[P, 1\]"),
    ("row_stats", {"logits": torch.zeros(3, 70)}, "P at least 70 and a multiple of 4"),
    ("row_stats", {"logits": torch.zeros(3, 76).bfloat16()[:, :70]}, "a multiple of 8"),
    ("row_stats", {"logits": torch.zeros(1, 128).expand(3, 128)[:, :70]}, "P at least 70"),
    ("row_stats", {"logits": misplaced(3, 128)[:, :70]}, "logits: got memory that starts 4 bytes"),
    ("row_stats", {"targets": IDS.int()}, r"targets: got Int \[3\] .*, want Long \[3\]"),
    ("row_stats", {"targets": IDS[:2]}, r"targets: got Long \[2\]"),
    ("row_stats", {"targets": torch.zeros(6, dtype=torch.int64)[::2]}, "not contiguous"),
    ("row_stats", {"bias": torch.zeros(71)}, r"bias: got Float \[71\] .* want Float \[70\]"),
    ("row_stats", {"bias": torch.zeros(70).bfloat16()}, "bias: got BFloat16"),
    ("row_stats", {"bias": misplaced(70)}, "bias: got memory that starts 4 bytes"),
    ("row_gradient_", {"out_dtype": torch.float64}, "out_dtype: got Double"),
    *(("row_gradient_", {name: torch.zeros(4)}, rf"{name}: got Float \[4\]")
      for name in (*STATS, *GRADS)),
    ("hybrid_rows_", {"logits": torch.zeros(3, 128).bfloat16()[:, :70], "out_dtype": torch.float32},
     "out_dtype: got Float for BFloat16 logits"),
    *(("hybrid_rows_", {name: ROW.double()}, f"{name}: got Double")
      for name in (*TABLE, "old_logp", "ref_logp")),
    ("group_statistics", {"rewards": WEIGHTS.double()}, "rewards: got Double"),
    ("group_statistics", {"rewards": WEIGHTS.T}, "rewards: .*not contiguous, want a matrix"),
    ("mix", {"sums": torch.zeros(5)}, r"sums: got Float \[5\]"),
    ("mix", {"previous": torch.zeros(())}, r"previous: got Float \[\]"),
    ("mix", {"has_previous": torch.zeros(1)}, r"has_previous: got Float \[1\] .* want Byte \[1\]"),
    ("compact_rows", {"live": IDS}, r"live: got Long \[3\]"),
    ("compact_rows", {"capacity": -1}, "capacity: got -1, want >= 0"),
    ("gather_rows", {"source": WEIGHTS.T}, "source: .*not contiguous"),
    ("gather_rows", {"source": WEIGHTS.to(torch.complex128)}, "at most 8 bytes"),
    ("gather_rows", {"index": IDS.int()}, r"index: got Int \[3\]"),
    ("scatter_rows_", {"index": IDS[:2]}, r"index: got Long \[2\]"),
    ("scatter_rows_", {"target": torch.zeros(4, 7)}, r"target: got Float \[4, 7\]"),
    ("scatter_rows_", {"target": torch.zeros(4, 6).int()}, "target: got Int"),
    ("scatter_rows_", {"rows": torch.zeros(3, 6).double()}, "rows: got Double"),
    ("scale_", {"gradient": WEIGHTS.T}, "gradient: .*not contiguous, want it contiguous"),
    ("scale_", {"gradient": WEIGHTS.double()}, "gradient: got Double"),
    ("scale_", {"factor": torch.ones(())[None]}, r"factor: got Float \[1\] .* want Float \[\]"),
    ("scale_", {"factor": torch.ones(()).bfloat16()}, r"factor: got BFloat16 \[\]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "message"),
    BAD,
    ids=[f"{name}-{next(iter(change))}" for name, change, _ in BAD],
)
def test_bad_input_is_named_and_nothing_launched(library, name, change, message):
    library.events()
    with pytest.raises(RuntimeError, match=message):
        getattr(library.ops, name)(**(CALLS[name] | change))
    assert not [event for event in library.events() if " on " in event]


def test_a_single_row_may_have_any_stride(library):
    for stride in (1, 70, 128):
        logits = torch.zeros(256).as_strided((1, 70), (stride, 1))
        library.ops.row_stats(**(CALLS["row_stats"] | {"logits": logits, "targets": IDS[:1]}))
