"""The repaired interpreter and the checker themselves: each must find what it is for."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def product(a, b, out, N: tl.constexpr, PRECISION: tl.constexpr):
    lanes = tl.arange(0, N)
    square = lanes[:, None] * N + lanes[None, :]
    acc = tl.zeros((N, N), tl.float32)
    acc = tl.dot(tl.load(a + square), tl.load(b + square), acc, input_precision=PRECISION)
    tl.store(out + square, acc)


@triton.jit
def add(a, b, out, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out + lanes, tl.load(a + lanes) + tl.load(b + lanes))


@triton.jit
def convert(a, out, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out + lanes, tl.load(a + lanes).to(tl.float32).to(tl.bfloat16))


@triton.jit
def copy(a, out, first, count, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out + lanes, tl.load(a + first + lanes, mask=lanes < count), mask=lanes < count)


@triton.jit
def load_without_other(a, out, count, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out + lanes, tl.load(a + lanes, mask=lanes < count))


@triton.jit
def halve_in_place(a, narrow, BARRIER: tl.constexpr, N: tl.constexpr):
    lanes = tl.arange(0, N)
    values = tl.load(a + lanes)
    if BARRIER:
        tl.debug_barrier()
    tl.store(narrow + lanes, values.to(tl.float16))


@triton.jit
def write_one(out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.full((N,), 1.0, tl.float32))


@triton.jit
def write_own(out, N: tl.constexpr):
    tl.store(out + tl.program_id(0) * N + tl.arange(0, N), tl.full((N,), 1.0, tl.float32))


@triton.jit
def write_all_to_one(out, N: tl.constexpr):
    tl.store(out + 0 * tl.arange(0, N), tl.full((N,), 1.0, tl.float32))


def fails(kernel, grid, *args, **kwargs) -> str:
    with pytest.raises(Exception) as caught:
        kernel[(grid,)](*args, **kwargs)
    return str(caught.value)


def test_products_of_bfloat16_are_right_and_other_arithmetic_is_refused():
    a, b = torch.randn(2, 16, 16).bfloat16()
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, N=16, PRECISION="tf32")
    torch.testing.assert_close(out, a.float() @ b.float())
    assert "arithmetic on bfloat16" in fails(add, 1, a, b, torch.empty_like(a), N=16)


def test_fp32_products_lose_digits_unless_the_kernel_asks_for_all():
    a, b = torch.randn(2, 16, 16)
    out = torch.empty(16, 16)
    product[(1,)](a, b, out, N=16, PRECISION="ieee")
    torch.testing.assert_close(out, a @ b, rtol=1e-6, atol=1e-6)
    product[(1,)](a, b, out, N=16, PRECISION="tf32")
    assert 1e-4 < (out - a @ b).abs().max() < 1e-1


def test_conversion_to_bfloat16_rounds_to_nearest_even():
    bits = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x3F80FFFF, 0x7FFFFFFF, 0x00000001])
    a = torch.cat([bits, -bits - 1]).to(torch.int32).view(torch.float32)
    a = torch.nn.functional.pad(a, (0, 4), value=-torch.inf)
    out = torch.empty(16, dtype=torch.bfloat16)
    convert[(1,)](a, out, N=16)
    torch.testing.assert_close(out, a.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_reads_and_writes_outside_every_tensor_are_found():
    memory = torch.zeros(64)
    a, out = memory[:20], torch.zeros(16)
    copy[(1,)](a, out, 4, 16, N=16)
    assert "reads outside every tensor in 1 of 16 lanes" in fails(copy, 1, a, out, 5, 16, N=16)
    assert "first at byte -4 of a" in fails(copy, 1, a, out, -1, 16, N=16)
    assert "writes outside" in fails(copy, 1, a, out[:15], 0, 16, N=16)


def test_the_gap_between_rows_is_outside():
    rows = torch.zeros(3, 16)[:, :10]
    copy[(1,)](rows, torch.zeros(16), 16, 10, N=16)
    assert "reads outside" in fails(copy, 1, rows, torch.zeros(16), 16, 11, N=16)


def test_two_programs_on_one_byte_are_found():
    write_own[(3,)](torch.zeros(48), N=16)
    assert "two programs touch byte 0" in fails(write_one, 2, torch.zeros(16), N=16)


def test_two_lanes_on_one_byte_without_a_barrier_are_found():
    assert "two lanes" in fails(write_all_to_one, 1, torch.zeros(16), N=16)
    a = torch.arange(16.0)
    assert "two lanes" in fails(halve_in_place, 1, a, a.view(torch.float16), BARRIER=False, N=16)
    a = torch.arange(16.0)
    halve_in_place[(1,)](a, a.view(torch.float16), BARRIER=True, N=16)
    assert a.view(torch.float16)[:16].tolist() == list(range(16))


def test_lanes_that_no_value_was_loaded_for_hold_nan():
    out = torch.empty(16)
    load_without_other[(1,)](torch.ones(16), out, 3, N=16)
    assert out[:3].tolist() == [1, 1, 1] and out[3:].isnan().all()
    assert torch.empty(3).isnan().all()  # and so does memory that is not written
