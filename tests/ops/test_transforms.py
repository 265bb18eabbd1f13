"""Transforms of a call, such as vmap and forward mode, work or raise an error that says why not."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import wavalign_fast as wf
from tests.defaults import assert_defaults_change_no_bit
from tests.ops.problems import CPU, REFERENCE, Problem, problem
from wavalign_fast.ops import LossOptions, backend_status, linear_logprob

pytestmark = pytest.mark.skipif(
    backend_status()["cpu"] is not None, reason=f"no kernels: {backend_status()['cpu']}"
)
P = problem(6, 8, 30, torch.float32, bias=True)
OPERANDS = (P.hidden, P.weight, P.bias)


def total(hidden, weight, bias, options: LossOptions) -> torch.Tensor:
    return linear_logprob(hidden, weight, P.targets, bias=bias, options=options).logp.sum()


def gradients() -> tuple[torch.Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in OPERANDS]
    return torch.autograd.grad(total(*leaves, REFERENCE), leaves)


# Forward mode makes torch 2.15 load decompositions of its own through torch.jit, which warns.
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("operand", [0, 1, 2])
def test_forward_mode(operand: int) -> None:
    tangent = torch.randn(OPERANDS[operand].shape, generator=torch.Generator().manual_seed(operand))

    def of_operand(options: LossOptions):
        return lambda x: total(*(x if i == operand else t for i, t in enumerate(OPERANDS)), options)

    want = (gradients()[operand] * tangent).sum()
    _, got = torch.func.jvp(of_operand(REFERENCE), (OPERANDS[operand],), (tangent,))
    torch.testing.assert_close(got, want)
    with pytest.raises(RuntimeError, match="backend 'cpu' has no forward-mode derivative"):
        torch.func.jvp(of_operand(CPU), (OPERANDS[operand],), (tangent,))
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="no forward-mode derivative; options=LossOptions"),
    ):
        of_operand(CPU)(forward_ad.make_dual(OPERANDS[operand], tangent))
    with forward_ad.dual_level():  # nothing to differentiate here
        of_operand(CPU)(OPERANDS[operand])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_functional_gradients(transform) -> None:
    got = transform(lambda h: total(h, P.weight, P.bias, REFERENCE))(P.hidden)
    torch.testing.assert_close(got, gradients()[0])
    with pytest.raises(RuntimeError, match=r"backend 'cpu' has no derivative under torch\.func"):
        transform(lambda h: total(h, P.weight, P.bias, CPU))(P.hidden)


def test_vmap_is_a_loop() -> None:
    states = torch.stack([P.hidden, 2 * P.hidden])
    targets = torch.where(P.targets == -100, 0, P.targets)

    def logp(hidden: torch.Tensor) -> torch.Tensor:
        return linear_logprob(hidden, P.weight, targets, options=CPU).logp

    assert torch.equal(torch.func.vmap(logp)(states), torch.stack([logp(h) for h in states]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_meta_tensors_have_shapes_and_gradients(dtype: torch.dtype) -> None:
    hidden, weight, bias = (t.to("meta", dtype).requires_grad_() for t in OPERANDS)
    for targets in (P.targets, P.targets.to("meta")):
        out = linear_logprob(hidden, weight, targets, bias=bias, with_entropy=True)
        for value in out[:3]:
            assert value.device.type == "meta" and value.shape == (6,)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for leaf, grad in zip(
            (hidden, weight, bias),
            torch.autograd.grad(out.logp.sum(), (hidden, weight, bias)),
            strict=True,
        ):
            assert grad.shape == leaf.shape and grad.dtype == dtype


def test_fake_tensors_have_shapes_and_gradients() -> None:
    with FakeTensorMode() as mode:
        fake = Problem(*(mode.from_tensor(t) for t in P))
        leaves = [t.requires_grad_() for t in (fake.hidden, fake.weight, fake.bias)]
        out = linear_logprob(leaves[0], leaves[1], fake.targets, bias=leaves[2], options=CPU)
        assert out.logp.shape == (6,)
        for leaf, grad in zip(leaves, torch.autograd.grad(out.logp.sum(), leaves), strict=True):
            assert grad.shape == leaf.shape


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_autocast_uses_the_dtype_of_a_linear_layer(cast, dtype, backend) -> None:
    hidden, weight, bias = (t.to(dtype) for t in OPERANDS)
    with torch.autocast("cpu", cast):
        ours = linear_logprob(
            hidden, weight, P.targets, bias=bias, options=LossOptions(backend=backend)
        )
        multiplied = torch.nn.functional.linear(hidden, weight, bias).dtype
    assert multiplied == (dtype if dtype == torch.float64 else cast)
    want = linear_logprob(
        hidden.to(multiplied),
        weight.to(multiplied),
        P.targets,
        bias=bias.to(multiplied),
        options=LossOptions(backend=backend),
    )
    assert torch.equal(ours.logp, want.logp) and ours.logp.dtype == want.logp.dtype


def test_under_autocast_a_double_operand_does_not_match_a_float_one() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="want one dtype"):
        linear_logprob(P.hidden.double(), P.weight, P.targets)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_default_dtype_changes_no_bit(backend: str) -> None:
    def results() -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in OPERANDS]
        loss = total(*leaves, LossOptions(backend=backend))
        return [loss, *torch.autograd.grad(loss, leaves)]

    assert_defaults_change_no_bit(results)


def test_the_derivative_of_a_gradient_by_its_factor_is_refused() -> None:
    """``torch.autograd.functional.jvp`` needs it, and without an error would return zeros."""
    row = torch.arange(4) // 2
    layout = wf.ModalityLayout(vocab_size=7, speech=())
    batch = wf.HybridBatch(row, row, row - 1, [[1.0, 2.0]])
    hidden, weight = torch.randn(4, 3), torch.randn(7, 3)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return wf.HybridObjective(layout, gate=0.5)(hidden, weight, batch).loss

    with pytest.raises(RuntimeError, match="have no second derivative on this backend"):
        torch.autograd.functional.jvp(loss, hidden, hidden)
