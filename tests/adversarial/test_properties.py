"""The properties of the adversarial suite over random heads, and bits that nothing may change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.adversarial import properties
from benchmarks.adversarial.problem import Problem, coefficients, problem, results
from benchmarks.providers import Calls, available
from wavalign_fast.ops import LossOptions, linear_logprob

(CPU,) = available(["ours-cpu"])
pytestmark = pytest.mark.skipif(CPU.calls is None, reason=str(CPU.reason))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def problems(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES, rows: int = 0) -> Problem:
    p = problem(
        draw(st.integers(rows, 300)), draw(st.integers(1, 40)), draw(st.integers(1, 900)),
        draw(st.sampled_from(dtypes)), seed=draw(st.integers(0, 999)),
        std=draw(st.sampled_from([0.0, 1.0, 8.0, 60.0])),
    )  # fmt: skip
    if draw(st.booleans()):
        p.targets[::3] = -100
    return p


FLOAT32 = problems([torch.float32])
examples = settings(max_examples=25, deadline=None)


@examples
@given(p=problems())
def test_bounds(p: Problem) -> None:
    properties.never_positive(CPU.calls, p)
    properties.entropy_bounds(CPU.calls, p)


@examples
@given(p=FLOAT32)
def test_gradients_sum_to_zero_and_are_linear(p: Problem) -> None:
    properties.sums_to_zero(CPU.calls, p)
    properties.linear(CPU.calls, p)


@examples
@given(p=FLOAT32, data=st.data())
def test_micro_batches_add_up(p: Problem, data: st.DataObject) -> None:
    properties.adds_up(CPU.calls, p, data.draw(st.integers(0, len(p.targets))))


@examples
@given(p=problems())
def test_the_order_of_rows_does_not_matter(p: Problem) -> None:
    # dW adds its rows in another order, in float32, and is rounded once to the head's dtype.
    ulp = torch.finfo(p.weight.dtype).eps
    properties.row_order(CPU.calls, p, rounding=max(2 * ulp, properties.ROUNDING))


@examples
@given(p=problems(rows=2), data=st.data())
def test_a_row_has_the_same_bits_in_any_batch(p: Problem, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(p.targets) - 1), min_size=1, max_size=40))
    g = coefficients(len(p.targets))
    whole, part = results(CPU.calls, p, g=g), results(CPU.calls, p.rows(rows), g=g[rows])
    assert torch.equal(part.logp, whole.logp[rows])
    assert torch.equal(part.grad_hidden, whole.grad_hidden[rows])


@examples
@given(p=problems(), budget=st.integers(0, 2**20))
def test_no_bit_depends_on_the_memory_budget(p: Problem, budget: int) -> None:
    def with_budget(memory_budget: int | None) -> Calls:
        options = LossOptions(backend="cpu", memory_budget=memory_budget)
        return Calls(logp=lambda *operands: linear_logprob(*operands, options=options).logp)

    usual, seen = results(with_budget(None), p), results(with_budget(budget), p)
    for name in ("logp", "grad_hidden", "grad_weight"):
        assert torch.equal(getattr(seen, name), getattr(usual, name)), name
