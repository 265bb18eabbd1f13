"""Errors for wrong arguments: each message has the value seen and the value wanted."""

import numpy as np
import pytest
import torch

from tests.ops.problems import problem
from wavalign_fast.ops import LossOptions, extension, linear_logprob, notices


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden": torch.zeros(6, 5)}, r"\(6, 5\), want \[\.\.\., 4\]"),
        ({"hidden": torch.zeros(6, 4).bfloat16()}, "bfloat16 but weight is torch.float32"),
        ({"targets": torch.zeros(5, dtype=torch.long)}, r"\(5,\), want \(6,\)"),
        ({"targets": torch.zeros(6)}, "float32, want an integer"),
        ({"targets": torch.tensor([0, 1, 2, 9, 0, 0])}, r"targets\[3\] = 9 is outside \[0, 9\)"),
        ({"targets": torch.tensor([0, -1, 2, 3, 0, 0])}, r"targets\[1\] = -1 is outside"),
        ({"bias": torch.zeros(8)}, r"\(8,\), want \[9\]"),
        ({"temperature": 0.0}, "got 0.0, want > 0"),
        ({"weight": torch.zeros(0, 4)}, "V > 0"),
        ({"targets": torch.zeros(6, dtype=torch.complex64)}, "complex64, want an integer"),
        ({"targets": [0] * 6}, r"targets: got a list, want a torch\.Tensor"),
        ({"hidden": [[0.0] * 4] * 6}, r"hidden: got a list, want a torch\.Tensor"),
        ({"weight": None}, r"weight: got a NoneType, want a torch\.Tensor"),
        ({"bias": (0.0,) * 9}, r"bias: got a tuple, want a torch\.Tensor"),
        ({"hidden": torch.zeros(6, 4, device="meta")}, "weight: got a tensor on cpu, want meta"),
        ({"weight": torch.zeros(9, 4, device="meta")}, "weight: got a tensor on meta, want cpu"),
        ({"bias": torch.zeros(9, device="meta")}, "bias: got a tensor on meta, want cpu"),
        ({"targets": torch.zeros(6).long().to("meta")}, "targets: got a tensor on meta, want cpu"),
        ({"hidden": torch.zeros(6, 4).to_sparse()}, "hidden: got a tensor of layout sparse_coo"),
        (
            {"weight": torch.zeros(9, 4).to_sparse()},
            "weight: got a tensor of layout sparse",
        ),
        (
            {"hidden": torch.nested.nested_tensor([torch.zeros(6, 4)], layout=torch.jagged)},
            "hidden: got a tensor of layout nested, want a dense one",
        ),
        ({"bias": torch.zeros(9).long()}, "bias: got torch.int64, want a floating dtype"),
        ({"bias": torch.zeros(9) > 0}, "bias: got torch.bool, want a floating dtype"),
        ({"bias": torch.zeros(9) * 1j}, "bias: got torch.complex64, want a floating dtype"),
        ({"ignore_index": None}, "ignore_index: got None, want a whole number"),
        ({"ignore_index": -100.0}, r"ignore_index: got -100\.0, want a whole number"),
        ({"ignore_index": "-100"}, "ignore_index: got '-100', want a whole number"),
        ({"ignore_index": True}, "ignore_index: got True, want a whole number"),
        ({"ignore_index": 2**70}, r"ignore_index: got \d+, want an int64"),
        ({"with_entropy": "no"}, "with_entropy: got 'no', want True or False"),
    ],
)
def test_bad_input_is_named(backend: str, change: dict, message: str) -> None:
    p = problem(6, 4, 9, torch.float32, ignored=False)
    good = {"hidden": p.hidden, "weight": p.weight, "targets": p.targets}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**(good | change), options=LossOptions(backend=backend))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "temperature, wanted",
    [
        *(
            (bad, "> 0 and finite")
            for bad in (NAN, INF, -INF, -1.0, "0.7", None, True, np.True_, [1.0], 10**400)
        ),
        (np.ones((2, 2)), "> 0 and finite"),
        (list(range(10_000)), "> 0 and finite"),
        (torch.tensor(0.7, device="meta"), "a number"),
        # In float32 it would be 0, or a quotient by it infinite, and the result NaN.
        *((tiny, r">= 1\.2e-38") for tiny in (1e-300, 1e-40, 5e-324, torch.tensor(1e-39))),
    ],
    ids=lambda x: str(x)[:9],
)
def test_a_temperature_that_is_not_a_positive_number_is_refused(
    backend, temperature, wanted
) -> None:
    p = problem(6, 4, 9, torch.float32)
    with pytest.raises(ValueError, match=rf"^temperature: got .*, want {wanted}$") as refused:
        linear_logprob(
            p.hidden, p.weight, p.targets, temperature=temperature,
            options=LossOptions(backend=backend),
        )  # fmt: skip
    assert len(str(refused.value)) < 120 and "\n" not in str(refused.value)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_temperature_that_requires_a_gradient_is_refused(backend: str) -> None:
    p = problem(6, 4, 9, torch.float32)
    learned, options = torch.tensor(0.7, requires_grad=True), LossOptions(backend=backend)
    with pytest.raises(ValueError, match="temperature: got a tensor that requires a gradient"):
        linear_logprob(p.hidden, p.weight, p.targets, temperature=learned, options=options)
    with pytest.raises(ValueError, match=r"temperature: got .* shape \(2,\), want a number or 0-d"):
        linear_logprob(
            p.hidden, p.weight, p.targets, temperature=torch.ones(2), options=options
        )  # fmt: skip
    want = linear_logprob(p.hidden, p.weight, p.targets, temperature=0.75, options=options).logp
    for constant in (torch.tensor(0.75), torch.tensor([0.75])):
        out = linear_logprob(p.hidden, p.weight, p.targets, temperature=constant, options=options)
        assert torch.equal(out.logp, want)


@pytest.mark.parametrize(
    "setting, bad, wanted",
    [
        *(
            ("memory_budget", bad, "whole number >= 0 bytes")
            for bad in (-1, 1e9, NAN, INF, "1", True)
        ),
        *(("live_rows", bad, "whole number >= 0") for bad in (-1, 2.0, NAN, INF)),
        *(("skip_tolerance", bad, "want") for bad in (NAN, INF, -0.1, 1.0, "0.1", None)),
        *(("deterministic", bad, "True or False") for bad in (0, None, "no")),
        *(("backend", bad, "want one of auto") for bad in (None, "CPU", 3)),
        *(("weight_grad_dtype", bad, "want") for bad in (torch.float16, "float32", None)),
    ],
    ids=str,
)
def test_an_option_with_a_wrong_value_is_refused(setting: str, bad, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: got .*{wanted}"):
        LossOptions(**{setting: bad})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "gpu"}, "'gpu', want one of auto, cpu, triton, cuda, reference"),
        ({"backend": "triton"}, "'triton' cannot be used: the tensors are on cpu, want a GPU"),
        ({"skip_tolerance": 0.1, "backend": "reference"}, "skip_tolerance: got 0.1"),
        ({"memory_budget": 10, "backend": "reference"}, "memory_budget: got 10"),
        ({"weight_grad_dtype": torch.bfloat16}, "weight_grad_dtype: got torch.bfloat16"),
        ({"weight_grad_dtype": torch.float64, "backend": "cpu"}, "got torch.float64, but backend"),
    ],
)
def test_an_option_that_cannot_be_honoured_raises(options: dict, message: str) -> None:
    p = problem(6, 4, 9, torch.float32)
    with pytest.raises(ValueError, match=message):
        linear_logprob(p.hidden, p.weight, p.targets, options=LossOptions(**options))


def test_options_of_another_type_are_refused() -> None:
    p = problem(6, 4, 9, torch.float32)
    with pytest.raises(ValueError, match="options: got a dict, want a LossOptions"):
        linear_logprob(p.hidden, p.weight, p.targets, options={"backend": "cpu"})


def test_auto_warns_once_that_it_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no kernels here"
    monkeypatch.setattr(extension, "EXTENSION", reason)
    monkeypatch.setattr(notices, "_given", set())
    p = problem(6, 4, 9, torch.float32)
    with pytest.warns(UserWarning, match=reason) as caught:
        for _ in range(2):
            linear_logprob(p.hidden, p.weight, p.targets)
    assert len(caught) == 1
    with pytest.raises(ValueError, match=reason):
        linear_logprob(p.hidden, p.weight, p.targets, options=LossOptions(backend="cpu"))


def test_double_operands_go_to_the_reference() -> None:
    p = problem(6, 4, 9, torch.float64)
    assert linear_logprob(p.hidden, p.weight, p.targets).logp.dtype == torch.float64
    with pytest.raises(ValueError, match=r"float64, want float32, bfloat16 or float16"):
        linear_logprob(p.hidden, p.weight, p.targets, options=LossOptions(backend="cpu"))
