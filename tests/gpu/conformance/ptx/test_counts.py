"""Counts are exact, scale as documented, and show changes to a kernel."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tools.ptx_emulator import Counts

from .backends import BACKENDS, SHARED_BYTES, Source
from .counting import (
    COPY_KERNELS,
    ROW_KERNELS,
    SPAN,
    Size,
    copy_kernel,
    row_kernel,
    scorer,
    scorer_merge,
    scorer_products,
)

NARROWING = Size(vocab=5001, hidden=64)
SAME_WIDTH = Size(vocab=5001, hidden=64, logits=torch.bfloat16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_are_proportional_to_the_rows(backend: str, cuda_source: Source) -> None:
    for kernel in ROW_KERNELS:
        one, five = (row_kernel(backend, kernel, NARROWING, cuda_source, n) for n in (1, 5))
        assert five == one * 5


@pytest.mark.parametrize("arch", SHARED_BYTES)
def test_counts_of_copies_are_proportional_to_the_rows(arch: int, cuda_source: Source) -> None:
    for kernel in COPY_KERNELS:
        one, five = (copy_kernel(arch, kernel, NARROWING, cuda_source, n) for n in (1, 5))
        assert five == one * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_are_affine_in_the_vocabulary(backend: str, cuda_source: Source) -> None:
    # Whole turns of a block, up to sizes at which the plan of a row is still the same.
    for size, turns, kernel in (
        (NARROWING, 8192, "hybrid_rows"),
        (SAME_WIDTH, 16384, "row_stats"),
        (SAME_WIDTH, 16384, "row_gradient"),
    ):
        sizes = [replace(size, vocab=9001 + i * turns) for i in range(3)]
        first, second, third = (row_kernel(backend, kernel, s, cuda_source) for s in sizes)
        bent = (third - second) - (second - first)
        if size is NARROWING:  # in place, with a barrier in steps that double
            bent.instructions.pop("bar.sync", None)
        assert bent == Counts()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_are_those_of_the_tensors(backend: str, cuda_source: Source) -> None:
    size = replace(NARROWING, vocab=8192)
    logits = "logits" if "triton" in backend else "chunk.logits"
    counts = row_kernel(backend, "row_stats", size, cuda_source)
    # Every logit once; the target's again, by at most all threads.
    assert 8192 * 4 < counts.loaded_bytes[logits] <= 8192 * 4 + 4 * 512
    gradient = row_kernel(backend, "row_gradient", size, cuda_source)
    assert sum(gradient.stored_bytes.values()) == 8192 * 2
    assert sum(gradient.store_sectors.values()) * 32 == 8192 * 2


def test_counts_of_the_scorer_are_affine_in_both_sizes() -> None:
    pytest.importorskip("triton")
    target = "sm_90a"
    size = Size(vocab=40 + 2 * SPAN, hidden=16 + 5 * 64)
    found = scorer(target, size, 128)
    assert scorer_products(target, size, 128) == found["score_spans"]
    assert scorer_merge(target, size, 128) == found["score_merge"]
    # Whole tiles of 256 ids and whole steps of 64 are multiplied, at ragged ends too.
    assert found["score_spans"].mma_flops == 2 * 128 * (2 * SPAN + 256) * (6 * 64)


def test_the_command_prints_them() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.gpu.conformance.ptx",
        "counts",
        "--vocab",
        "1000",
        "--rows",
        "7",
    ]
    command += ["--hidden", "64", "--backends", "triton-sm_80", "--kernels", "row_stats"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed["rows"] == 7
    counts = printed["counts"]["triton-sm_80"]["row_stats"]
    assert counts["warps"] == 7 * 4
    assert counts["special_functions"]["ex2"] > 0
