"""Ordinary CUDA code as nvcc compiles it, against numpy."""

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.nvcc import NVCC, UNAVAILABLE
from tools.ptx_emulator import (
    Argument,
    Conditions,
    Geometry,
    GlobalMemory,
    KernelFault,
    launch,
    parse,
)

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))

CONDITIONS = [Conditions(), Conditions(order=1, late_copies=False)]


@pytest.fixture(scope="module", params=["sm_80", "sm_90a"])
def ptx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("snippets") / "snippets.ptx"
    source = Path(__file__).with_name("snippets.cu")
    command = [NVCC, "-O3", "-std=c++17", "-ptx", f"-arch={request.param}", "-o", str(target)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    return target.read_text(encoding="utf-8")


def go(
    ptx: str,
    name: str,
    arrays: dict[str, np.ndarray],
    numbers: list[Argument],
    *,
    blocks: int = 1,
    threads: int = 128,
    shared: int = 0,
    conditions: Conditions | None = None,
) -> dict[str, np.ndarray]:
    """Arrays named ``out...`` start undefined, and must be written throughout."""
    memory = GlobalMemory()
    buffers = {
        key: memory.place(key, v, defined=np.zeros(v.shape, bool) if "out" in key else None)
        for key, v in arrays.items()
    }
    geometry = Geometry((blocks, 1, 1), (threads, 1, 1), dynamic_shared=shared)
    launch(parse(ptx, name), memory, [*buffers.values(), *numbers], geometry, conditions)
    assert not any(b.never_written.any() for b in buffers.values())
    return {key: buffer.array for key, buffer in buffers.items()}


def test_the_mathematics_library(ptx: str) -> None:
    g = np.random.default_rng(1)
    x = np.concatenate([g.standard_normal(400) * 3, [0.0, 80.0, -80.0, 1e-6, -1e-6]])
    x = x.astype(np.float32)
    n = len(x)
    found = go(
        ptx, "math", {"x": x, "out": np.zeros(10 * n, np.float32)}, [n], blocks=-(-n // 128)
    )["out"].reshape(10, n)
    exact = x.astype(np.float64)
    size = np.abs(exact)
    with np.errstate(all="ignore"):
        wanted = [np.exp(exact), np.log(size), np.expm1(exact), np.log1p(size), np.exp(exact)]
        wanted += [np.tanh(exact), 1 / np.sqrt(size), exact / 3, np.fmod(exact, np.float32(0.7))]
        wanted += [size**1.5]
    # __expf multiplies first: its error grows with the exponent.
    allowed = {4: 1e-5, 8: 1e-4}
    for row, value in enumerate(wanted):
        tolerance = allowed.get(row, 5e-7)
        np.testing.assert_allclose(found[row], value, rtol=tolerance, atol=1e-37, err_msg=str(row))


def test_64_bit_integers(ptx: str) -> None:
    g = np.random.default_rng(2)
    a = g.integers(-(1 << 62), 1 << 62, 128)
    b = g.integers(1, 1 << g.integers(1, 62, 128)) * g.choice([-1, 1], 128)
    found = go(ptx, "integers", {"a": a, "b": b, "out": np.zeros(5 * 128, np.int64)}, [128])
    quotient, rest, high, by_constant, bits = found["out"].reshape(5, 128).tolist()
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        exact = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        assert (quotient[i], rest[i]) == (exact, x - exact * y)
        unsigned = (x % 2**64) * (y % 2**64) >> 64
        assert high[i] % 2**64 == unsigned
        assert by_constant[i] == math.trunc(abs(x) // 168072 * (1 if x > 0 else -1))
        u = x % 2**64
        first = (u & -u).bit_length()
        assert bits[i] == u.bit_count() + 100 * (64 - u.bit_length()) + 10000 * first


@pytest.mark.parametrize("conditions", CONDITIONS)
def test_sums_over_a_block(ptx: str, conditions: Conditions) -> None:
    x = torch.randn(5, 2056, generator=torch.Generator().manual_seed(3)).bfloat16()
    arrays = {"x": x.view(torch.int16).numpy(), "out": np.zeros(5, np.float32)}
    found = go(ptx, "row_sums", arrays, [2056], blocks=5, threads=256, conditions=conditions)
    np.testing.assert_allclose(found["out"], x.double().sum(1).numpy(), rtol=1e-5, atol=1e-4)
    odd = {"x": arrays["x"][:, :2052].copy(), "out": arrays["out"]}
    with pytest.raises(KernelFault, match="misaligned: load of 16 bytes"):
        go(ptx, "row_sums", odd, [2052], blocks=5, threads=256, conditions=conditions)


@pytest.mark.parametrize("conditions", CONDITIONS)
def test_atomics_and_loops_of_different_lengths(ptx: str, conditions: Conditions) -> None:
    keys = np.random.default_rng(4).integers(0, 1000, 96).astype(np.uint32)
    arrays = {"keys": keys, "out_order": np.zeros(96, np.uint32), "out": np.zeros(16, np.uint32)}
    found = go(ptx, "sort_by_digit", arrays, [], threads=96, conditions=conditions)
    assert found["out_order"].tolist() == np.argsort(keys & 15, kind="stable").tolist()
    assert found["out"].tolist() == np.bincount(keys & 15, minlength=16).tolist()


@pytest.mark.parametrize("conditions", CONDITIONS)
def test_a_pipeline_of_copies(ptx: str, conditions: Conditions) -> None:
    x = np.arange(5 * 64 * 4, dtype=np.float32)
    arrays = {"x": x, "out": np.zeros(x.size, np.float32)}
    options = {"threads": 64, "shared": 2048, "conditions": conditions}
    found = go(ptx, "copied", arrays, [5], **options)["out"]
    wanted = x.reshape(5, 64, 4)[:, ::-1]
    assert (found.reshape(5, 64, 4) == wanted).all()
    weak = ptx.replace("cp.async.wait_group 1;", "cp.async.wait_group 2;")
    assert weak != ptx
    if conditions.late_copies:
        with pytest.raises(KernelFault, match=r"not waited for|race"):
            go(weak, "copied", arrays, [5], **options)
