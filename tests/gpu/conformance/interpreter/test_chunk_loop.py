"""The chunk loop behind the public functions, with interpreted Triton kernels.

An interpreted program takes milliseconds, and most kernels run one for each row. So a chunk has few
rows here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from tests.gpu.chunk_loop import checks, float16
from tests.gpu.chunk_loop.checks import Place
from wavalign_fast.ops import LogitTransform, LossOptions
from wavalign_fast.ops.backends import choose_backend
from wavalign_fast.ops.chunked import chunks, products

DTYPES = [torch.float32, torch.bfloat16]
BLOCK = 16
"""Rows of a GEMM; with the budget ``checks.SMALL``, those of a chunk too."""
ROWS = 2 * BLOCK + 7


@contextmanager
def on_triton() -> Iterator[None]:
    """Runs every call with Triton's kernels, in chunks of few rows."""
    with (
        checks.on("triton"),
        mock.patch.object(chunks, "PRODUCT_ROWS", BLOCK),
        mock.patch.object(products, "PRODUCT_ROWS", BLOCK),
    ):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_and_gradients(dtype):
    how = {"bias": True, "budget": checks.SMALL, "temperature": 0.7}
    with on_triton():
        checks.logprob_agrees(Place("cpu", dtype), rows=ROWS, **how)


def test_a_capacity_changes_nothing_while_it_holds_all_rows():
    with on_triton():
        checks.given_capacity_changes_nothing(
            Place("cpu", torch.float32), rows=ROWS, spare=2 * BLOCK + 3
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", checks.CONFIGS)
def test_a_hybrid_step_is_that_of_the_reference(dtype, config):
    with on_triton():
        checks.hybrid_agrees(checks.some_step(), Place("cpu", dtype), config)


def test_float16_keeps_the_gradients_of_rows_of_every_size():
    with on_triton():
        float16.rows_of_every_size_keep_their_gradients("cpu", rows=4 * BLOCK)


def test_float16_keeps_the_gradients_of_a_scaled_hybrid_step():
    with on_triton():
        float16.a_scaled_hybrid_step_keeps_its_gradients("cpu")


def test_an_interpreting_process_takes_triton_for_tensors_of_the_cpu():
    assert choose_backend(LossOptions(backend="triton"), torch.zeros(1)) == "triton"


@pytest.mark.parametrize("transform", [None, LogitTransform(softcap=3.0, scale=0.5)])
def test_scores_that_need_not_be_the_same_bits_write_no_logits(transform):
    """``deterministic=False`` uses the scorer, which is as accurate as the row kernels."""
    given = checks.operands(Place("cpu", torch.bfloat16), 40, bias=True)
    host = given.to(torch.float64)
    with on_triton():
        scored = checks.ours(LossOptions(deterministic=False), transform=transform)
        found = scored(*given[:3], given.bias)
    truth = checks.ours(checks.REFERENCE, transform=transform)(*host[:3], host.bias)
    for values, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)
