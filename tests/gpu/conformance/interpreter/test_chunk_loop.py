"""The chunk loop behind the public functions, with interpreted Triton kernels."""

import pytest
import torch

pytest.importorskip("triton")

from tests.gpu.chunk_loop import checks, float16
from tests.gpu.chunk_loop.checks import Place
from wavalign_fast.ops import LossOptions
from wavalign_fast.ops.backends import choose_backend

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_and_gradients(dtype):
    with checks.on("triton"):
        checks.logprob_agrees(Place("cpu", dtype), bias=True, budget=checks.SMALL, temperature=0.7)


def test_a_capacity_changes_nothing_while_it_holds_all_rows():
    with checks.on("triton"):
        checks.given_capacity_changes_nothing(Place("cpu", torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", checks.CONFIGS)
def test_a_hybrid_step_is_that_of_the_reference(dtype, config):
    with checks.on("triton"):
        checks.hybrid_agrees(checks.some_step(), Place("cpu", dtype), config)


@pytest.mark.parametrize(
    "check",
    ["rows_of_every_size_keep_their_gradients", "a_scaled_hybrid_step_keeps_its_gradients"],
)
def test_float16(check):
    with checks.on("triton"):
        getattr(float16, check)("cpu")


def test_an_interpreting_process_takes_triton_for_tensors_of_the_cpu():
    assert choose_backend(LossOptions(backend="triton"), torch.zeros(1)) == "triton"


def test_scores_that_need_not_be_the_same_bits_write_no_logits():
    """``deterministic=False`` uses the scorer, which is as accurate as the row kernels."""
    given = checks.operands(Place("cpu", torch.bfloat16), 40, bias=True)
    host = given.to(torch.float64)
    with checks.on("triton"):
        found = checks.ours(LossOptions(deterministic=False))(*given[:3], given.bias)
    truth = checks.ours(checks.REFERENCE)(*host[:3], host.bias)
    for values, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)
