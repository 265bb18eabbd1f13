"""What a caller can get wrong: each message has the value seen and the value wanted."""

import pytest
import torch

from tests.ops.problems import problem
from wavalign_fast.ops import LossOptions, library, linear_logprob


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
    ],
)
def test_bad_input_is_named(backend: str, change: dict, message: str) -> None:
    p = problem(6, 4, 9, torch.float32, ignored=False)
    good = {"hidden": p.hidden, "weight": p.weight, "targets": p.targets}
    with pytest.raises(ValueError, match=message):
        linear_logprob(**(good | change), options=LossOptions(backend=backend))


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


def test_auto_falls_back_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "no kernels here"
    monkeypatch.setattr(library, "EXTENSION", reason)
    monkeypatch.setattr(library, "_said", set())
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
