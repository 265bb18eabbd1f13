"""Scale, soft cap and the place of the bias: the definition by its formula, backends by it."""

import contextlib
import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

import wavalign_fast as wf
from tests.gpu.chunk_loop.checks import on
from tests.losses.formula import LAYOUT
from tests.ops.problems import CPU, REFERENCE, Problem, as_double, problem, results
from tests.ranks import run_ranks
from tests.tolerances import FLOOR, relative_error
from wavalign_fast.ops import LogitTransform

BEFORE, AFTER = "before_temperature", "after_temperature"
FORMS = {
    "cap": LogitTransform(softcap=2.0),
    "cap and scale": LogitTransform(softcap=1.5, scale=0.6),
    "scale": LogitTransform(scale=0.6),
    "before": LogitTransform(bias_added=BEFORE),
    "scale before": LogitTransform(scale=1.7, bias_added=BEFORE),
    "cap before": LogitTransform(softcap=2.0, scale=1.7, bias_added=BEFORE),
}


def logits_of(p: Problem, form: LogitTransform, temperature: float) -> torch.Tensor:
    """As a model writes them."""
    z = p.hidden @ p.weight.T
    if p.bias is not None and form.bias_added == BEFORE:
        z = z + p.bias
    z = form.scale * z
    if form.softcap is not None:
        z = form.softcap * torch.tanh(z / form.softcap)
    z = z / temperature
    return z + p.bias if p.bias is not None and form.bias_added == AFTER else z


@pytest.mark.parametrize("name", FORMS)
def test_the_definition_is_its_formula_with_its_derivatives(name: str) -> None:
    p = as_double(problem(6, 4, 7, torch.float32, bias=True, ignored=False))
    table = torch.log_softmax(logits_of(p, FORMS[name], 0.7), -1)
    settings_ = {"temperature": 0.7, "transform": FORMS[name], "options": REFERENCE}
    out = wf.linear_logprob(*p[:3], bias=p.bias, with_entropy=True, **settings_)
    torch.testing.assert_close(out.logp, table.gather(1, p.targets[:, None])[:, 0])
    torch.testing.assert_close(out.entropy, -(table.exp() * table).sum(1))

    def weighted(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        found = wf.linear_logprob(
            hidden, weight, p.targets, bias=bias, with_entropy=True, **settings_
        )
        return torch.stack(found[:3])

    assert torch.autograd.gradcheck(weighted, [t.requires_grad_() for t in (*p[:2], p.bias)])


def assert_close_to_the_reference(p: Problem, backend: str, **options) -> None:
    truth = results(as_double(p), REFERENCE, **options)
    with on(backend) if backend == "definition" else contextlib.nullcontext():
        found = results(p, wf.LossOptions() if backend == "definition" else CPU, **options)
    n, v = len(p.hidden), len(p.weight)
    for name, value in found.items():
        is_gradient = name.startswith("grad")
        # A gradient behind a cap is rounded twice.
        floor = FLOOR[p.hidden.dtype] * 3 if is_gradient else FLOOR[torch.float32] * 5
        at_least = max(n, 1) ** 0.5 / v if is_gradient else 1.0
        assert relative_error(value, truth[name], at_least=at_least) <= floor, name


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 150), h=st.integers(1, 20), v=st.integers(1, 600),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), bias=st.booleans(),
    backend=st.sampled_from(["cpu", "definition"]), name=st.sampled_from([*FORMS]),
    temperature=st.sampled_from([1.0, 0.6]), seed=st.integers(0, 99),
    terms=st.sampled_from(["logp", "logp entropy lse"]),
)  # fmt: skip
def test_a_backend_agrees_with_the_reference(
    n, h, v, dtype, bias, backend, name, temperature, seed, terms
) -> None:
    p = problem(n, h, v, dtype, seed=seed, scale=2.0, bias=bias)
    assert_close_to_the_reference(
        p, backend, temperature=temperature, transform=FORMS[name], terms=terms
    )


@pytest.mark.parametrize("backend", ["cpu", "definition"])
def test_saturated_logits_tie_and_have_no_gradient(backend: str) -> None:
    p = problem(4, 3, 40, torch.float32, ignored=False)
    p.weight.mul_(1e4)
    p.hidden.abs_()
    p.weight[:20].abs_()
    p.weight[20:].abs_().neg_()
    p.targets.copy_(torch.tensor([0, 7, 19, 25]))
    hidden = p.hidden.clone().requires_grad_()
    with on(backend) if backend == "definition" else contextlib.nullcontext():
        out = wf.linear_logprob(
            hidden, p.weight, p.targets, with_top=True, transform=LogitTransform(softcap=30.0)
        )
        out.logp.sum().backward()
    torch.testing.assert_close(out.logp[:3], torch.full((3,), -math.log(20)))
    torch.testing.assert_close(out.logp[3], torch.tensor(-60 - math.log(20)))
    assert out.top.tolist() == [True, True, True, False]
    assert not hidden.grad.any()


@pytest.mark.parametrize("backend", ["reference", "cpu", "definition"])
def test_an_infinite_bias_bans_behind_the_cap_and_not_before(backend: str) -> None:
    p = problem(3, 4, 6, torch.float32, bias=True, ignored=False)
    p.targets.fill_(1)
    p.bias[1] = -torch.inf
    known = wf.LossOptions(backend="auto" if backend == "definition" else backend)
    found = {}
    for added in (BEFORE, AFTER):
        with on(backend) if backend == "definition" else contextlib.nullcontext():
            found[added] = wf.linear_logprob(
                *p[:3], bias=p.bias, options=known,
                transform=LogitTransform(softcap=5.0, bias_added=added),
            ).logp  # fmt: skip
    assert found[BEFORE].isfinite().all() and (found[AFTER] == -torch.inf).all()


def losses_of(backend: str, form: LogitTransform, dtype: torch.dtype) -> list[torch.Tensor]:
    """The hybrid and the preference loss, and their gradients."""
    p = problem(24, 6, 24, torch.float32, seed=4, bias=True, ignored=False)
    rows = torch.arange(24) // 4
    batch = wf.HybridBatch(
        p.targets,
        torch.where(rows < 4, rows, -1),
        torch.where(rows < 4, -1, rows - 4),
        torch.tensor([[1.0, 3.0], [2.0, 5.0]]),
        ref_logp=torch.full((24,), -3.0),
    )
    known = wf.LossOptions(backend="auto" if backend == "definition" else backend)
    objective = wf.HybridObjective(
        LAYOUT, "all", gate=0.6, text_kl=0.3, speech_kl=0.2, options=known
    )
    leaves = [t.to(dtype).requires_grad_() for t in (p.hidden, p.weight, p.bias)]
    with on(backend) if backend == "definition" else contextlib.nullcontext():
        hybrid = objective(*leaves[:2], batch, leaves[2], transform=form).loss
        preference = wf.fused_dpo_loss(
            *leaves[:2], p.targets, rows, torch.tensor([[0, 1], [3, 2]]), layout=LAYOUT,
            scope="all", bias=leaves[2], transform=form, options=known,
        ).loss  # fmt: skip
        found = [hybrid, preference]
        for loss in (hybrid, preference):
            found += torch.autograd.grad(loss, leaves)
    return [value.detach().double() for value in found]


@pytest.mark.parametrize("backend", ["cpu", "definition"])
@pytest.mark.parametrize("name", ["cap", "scale before", "cap before"])
def test_the_losses_take_it(backend: str, name: str) -> None:
    truth = losses_of("reference", FORMS[name], torch.float64)
    for value, wanted in zip(losses_of(backend, FORMS[name], torch.float32), truth, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)
    plain = losses_of("reference", LogitTransform(), torch.float64)
    assert abs(plain[0] - truth[0]) > 1e-3 and abs(plain[1] - truth[1]) > 1e-5


def sharded_errors(backend: str, name: str) -> list[float]:
    p = problem(20, 8, 13, torch.float32, seed=3, bias=True)
    first = 7 * dist.get_rank()
    mine = slice(first, first + 7)
    options = {"temperature": 0.8, "transform": FORMS[name], "with_entropy": True}
    whole = [t.double().requires_grad_() for t in (p.hidden, p.weight, p.bias)]
    wanted = wf.linear_logprob(*whole[:2], p.targets, bias=whole[2], options=REFERENCE, **options)
    (wanted.logp.sum() + wanted.entropy.sum()).backward()
    own = [t.clone().requires_grad_() for t in (p.hidden, p.weight[mine], p.bias[mine])]
    shard = wf.HeadShard(
        weight=own[1], start=first, vocab_size=13, group=dist.group.WORLD, height=20
    )
    with on(backend) if backend == "definition" else contextlib.nullcontext():
        out = wf.linear_logprob(own[0], shard, p.targets, bias=own[2], **options)
        (out.logp.sum() + out.entropy.sum()).backward()
    pairs = [(out.logp, wanted.logp), (own[0].grad, whole[0].grad)]
    # The gradient of a slice is that of the rows of both ranks, which are the same.
    pairs += [(own[i].grad / 2, whole[i].grad[mine]) for i in (1, 2)]
    return [float((a - b).abs().max()) for a, b in pairs]


def all_sharded() -> list[float]:
    cases = [(b, n) for b in ("cpu", "definition") for n in ("cap", "cap before", "scale before")]
    return [worst for case in cases for worst in sharded_errors(*case)]


def test_over_a_sharded_head() -> None:
    for errors in run_ranks(2, all_sharded):
        assert max(errors) < 2e-5, errors


@pytest.mark.parametrize(
    "given_, message",
    [
        ({"scale": 0.0}, r"scale: got 0\.0, want > 0 and finite"),
        ({"scale": "1"}, "scale: got '1', want > 0 and finite"),
        ({"softcap": -30}, "softcap: got -30, want > 0 and finite"),
        ({"bias_added": "after"}, "bias_added: got 'after', want 'after_temperature' or 'before_"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_a_value_outside_its_range_is_refused(given_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogitTransform(**given_)


def test_what_the_kernels_cannot_hold_is_refused() -> None:
    p = problem(2, 3, 4, torch.float32, ignored=False)
    with pytest.raises(ValueError, match=r"temperature / scale: got 1\.0 / 1e-39, want it between"):
        wf.linear_logprob(*p[:3], transform=LogitTransform(scale=1e-39))
    with pytest.raises(ValueError, match="transform: got a float, want a LogitTransform"):
        wf.linear_logprob(*p[:3], transform=30.0)
