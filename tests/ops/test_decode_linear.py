"""The linear layers of a decoded token against float64, over ragged sizes and instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wavalign_fast.ops.extension import EXTENSION
from wavalign_fast.ops.rollout import kernels_take

assert kernels_take(torch.zeros(1)), "the C++ kernels are missing"
linear = torch.ops.wavalign_fast.decode_linear
ROWS = (0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33)
WIDTHS = (1, 7, 16, 33, 129, 515, 1030)
OUTPUTS = ((1,), (5, 3), (6,), (11, 12, 13), (48, 50), (97, 2))


def operands(rows, width, outputs):
    """Random operands; every second weight has a bias."""
    make = torch.Generator().manual_seed(rows + width)
    weights = [torch.randn(size, width, generator=make) for size in outputs]
    biases = [torch.randn(len(w), generator=make) if i % 2 else None for i, w in enumerate(weights)]
    return torch.randn(rows, width, generator=make), weights, biases


def excess(rows, width, outputs):
    """The largest error over what rounding may cause: a few units of the sum of magnitudes."""
    x, weights, biases = operands(rows, width, outputs)
    found = linear(x, weights, biases)
    assert found.shape == (rows, sum(outputs)) and found.dtype == torch.float32
    weight = torch.cat(weights).double().t()
    bias = torch.cat(
        [torch.zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    ).double()
    bound = x.double().abs() @ weight.abs() + bias.abs() + 1e-30
    errors = (found - (x.double() @ weight + bias)).abs() / bound
    return float(errors.max() / 2**-23) if rows else 0.0


def worst():
    """The largest ``excess`` over all sizes."""
    return max(excess(n, k, outputs) for n in ROWS for k in WIDTHS for outputs in OUTPUTS)


def test_products_equal_float64():
    assert worst() < 4


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_the_other_instruction_sets_equal_float64(capability):
    """In a process of its own: the instruction set is chosen once."""
    if EXTENSION["isa"].lower() == capability:
        pytest.skip("the tests above have run it")
    script = "from tests.ops.test_decode_linear import *; print(EXTENSION['isa'], worst())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    isa, error = done.stdout.split()
    assert isa.lower() == capability
    assert float(error) < 4


def test_a_row_has_the_same_bits_alone_and_with_any_number_of_threads():
    x, weights, biases = operands(19, 600, (100, 55))
    rows = linear(x, weights, biases)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(linear(x, weights, biases), rows)
    finally:
        torch.set_num_threads(threads)
    for row in range(len(x)):
        assert torch.equal(linear(x[row : row + 1], weights, biases)[0], rows[row])


def test_nan_and_infinity_stay_in_their_row_and_column():
    x, weights, biases = operands(5, 40, (30, 9))
    x[2, 39] = torch.nan
    weights[1][8, 0] = torch.inf
    found = linear(x, weights, biases).isfinite()
    assert not found[2].any() and not found[:, 38].any()
    assert found[[0, 1, 3, 4], :38].all()


def test_torch_knows_the_op():
    torch.library.opcheck(linear.default, operands(3, 9, (4, 5)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, w, b: (x[0], w, b), ValueError, r"x: got the shape \[9\]"),
        (lambda x, w, b: (x[:, :0], w, b), ValueError, r"x: got the shape \[3, 0\]"),
        (lambda x, w, b: (x.bfloat16(), w, b), TypeError, "x: got BFloat16, want Float"),
        (lambda x, w, b: (x[:, ::2], w, b), ValueError, "x: got the strides"),
        (lambda x, w, b: (x, w, b[:1]), ValueError, "biases: got 1, want 2"),
        (lambda x, w, b: (x, [w[0], w[1][:, :8]], b), ValueError, r"weights\[1\]: got the shape"),
        (lambda x, w, b: (x, [w[0].double(), w[1]], b), TypeError, "weights: got Double"),
        (lambda x, w, b: (x, w, [None, b[1][:3]]), ValueError, "biases: got the shape"),
        (lambda x, w, b: (x, w, [None, b[1].half()]), TypeError, "biases: got Half"),
    ],
)
def test_wrong_operands_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        linear(*change(*operands(3, 9, (4, 5))))
