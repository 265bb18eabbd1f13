"""The fused step honours its options, and computes its GEMMs once."""

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, H, random_batch
from wavalign_fast.ops import backend_status

pytestmark = pytest.mark.skipif(
    backend_status()["cpu"] is not None, reason=f"no kernels: {backend_status()['cpu']}"
)


def step(options: wf.LossOptions, **settings) -> tuple[torch.Tensor, ...]:
    """Loss and gradients of a step over a head of three tiles, its mass on the last."""
    batch, hidden, _ = random_batch(random.Random(0), 2, 3, 2, reference=True, old=True)
    g = torch.Generator().manual_seed(0)
    layout = wf.ModalityLayout(vocab_size=700, speech=((12, 22),))
    weight = 0.2 * torch.randn(700, H, generator=g)
    weight[:256] *= 4
    leaves = hidden.float().requires_grad_(), weight.requires_grad_()
    out = wf.HybridObjective(
        layout, policy_scope="all", gate=0.5, text_kl=0.1, options=options, **settings
    )(*leaves, batch)
    return out.loss, *torch.autograd.grad(out.loss, leaves)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_skip_tolerance_changes_the_gradient_and_no_value(level: str) -> None:
    exact = step(wf.LossOptions(backend="cpu"), importance_sampling_level=level)
    skipped = step(
        wf.LossOptions(backend="cpu", skip_tolerance=0.9), importance_sampling_level=level
    )
    assert torch.equal(skipped[0], exact[0])
    for got, want in zip(skipped[1:], exact[1:], strict=True):
        assert not torch.equal(got, want)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_memory_budget_bounds_what_is_kept_and_changes_no_bit(level: str) -> None:
    def run(budget: int | None) -> tuple[int, tuple[torch.Tensor, ...]]:
        with Calls() as calls:
            results = step(
                wf.LossOptions(backend="cpu", memory_budget=budget),
                importance_sampling_level=level,
            )
        return calls.stored, results

    (kept, want), (bounded, got) = run(None), run(10_000)
    assert bounded <= 10_000 < kept
    for ours, truth in zip(got, want, strict=True):
        assert torch.equal(ours, truth)


class Calls(TorchDispatchMode):
    """Counts the ops of the kernels, and the bytes that they keep for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.stored = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "wavalign_fast":
            self.names.append(func._schema.name.partition("::")[2])
            if self.names[-1] == "linear_logprob":
                self.stored = result[4].numel()
        return result


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_a_step_is_one_pass_over_the_vocabulary(backend: str) -> None:
    """Separate losses would have the same values, and twice the GEMMs."""
    with Calls() as calls:
        step(wf.LossOptions(backend=backend))
    assert calls.names == ["linear_logprob", "linear_logprob_backward_"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_normalisers_divide_on_every_path(backend: str) -> None:
    batch, hidden, weight = random_batch(random.Random(3), 2, 3, 2, reference=True, old=True)
    dtype = torch.float64 if backend == "reference" else torch.float32
    leaves = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", gate=0.5, text_kl=0.1, kl_scope="completion",
        options=wf.LossOptions(backend=backend),
    )  # fmt: skip
    own = objective.normalisers(batch)

    def results(by: wf.Normalisers | None) -> list[torch.Tensor]:
        out = objective(*leaves, batch, normalisers=by)
        terms = [out.loss, out.policy_loss, out.anchor_loss, out.kl_loss]
        return [*terms, *torch.autograd.grad(out.loss, leaves)]

    plain = results(None)
    for got, want in zip(results(own + own), plain, strict=True):
        torch.testing.assert_close(2 * got, want)
    # Each normaliser divides its own term alone.
    for place, name in enumerate(("policy", "anchor", "kl"), 1):
        by = wf.Normalisers(**{**own.__dict__, name: 4 * getattr(own, name)})
        changed = results(by)
        for index in (1, 2, 3):
            factor = 4 if index == place else 1
            torch.testing.assert_close(factor * changed[index], plain[index])
        assert not torch.equal(changed[-1], plain[-1])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "bad, message",
    [
        (float("nan"), "got nan, want 0 <= value <= 1"),
        (float("inf"), "got inf"),
        (-0.1, r"got -0\.1"),
        (1.5, r"got 1\.5"),
        ("0.5", "got '0.5'"),
        (torch.tensor(1.5), r"got 1\.5"),
        (torch.tensor(float("nan")), "got nan"),
        (torch.tensor([0.5, 0.5]), r"shape \(2,\), want a λ in \[0, 1\]"),
        (torch.tensor(1), r"int64 of shape \(\), want a λ"),
    ],
    ids=str,
)
def test_a_bad_rl_weight_is_refused(backend: str, bad, message: str) -> None:
    batch, hidden, weight = random_batch(random.Random(0), 1, 2, 1, reference=False, old=False)
    objective = wf.HybridObjective(LAYOUT, options=wf.LossOptions(backend=backend))
    with pytest.raises(ValueError, match=f"rl_weight: .*{message}"):
        objective(hidden.float(), weight.float(), batch, rl_weight=bad)
    assert objective.gate.value is None


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_constants_of_a_batch_get_no_gradient(backend: str) -> None:
    batch, hidden, weight = random_batch(random.Random(0), 2, 2, 1, reference=True, old=True)
    tables = {
        name: getattr(batch, name).clone().requires_grad_() for name in ("ref_logp", "old_logp")
    }
    rewards = batch.rewards.clone().requires_grad_()
    rl_weight = torch.tensor(0.5, requires_grad=True)
    batch = wf.HybridBatch(**{**batch.__dict__, **tables, "rewards": rewards})
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", text_kl=0.1, options=wf.LossOptions(backend=backend)
    )
    hidden = hidden.float().requires_grad_()
    objective(hidden, weight.float(), batch, rl_weight=rl_weight).loss.backward()
    assert hidden.grad is not None
    assert all(leaf.grad is None for leaf in (*tables.values(), rewards, rl_weight))
