"""Rows whose gradient is 0 in any case take part only in the logits."""

import random
from unittest import mock

import pytest
import torch

import wavalign_fast as wf
from tests.gpu.chunk_loop import checks
from tests.gpu.chunk_loop.pretended import gpu_pretended
from tests.losses.formula import LAYOUT, V, random_batch
from wavalign_fast.ops.chunked import compaction
from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS

BATCH, HIDDEN, WEIGHT = random_batch(
    random.Random(11), 3, 3, 3, reference=True, old=True, importance=True
)
BATCH.rewards[1] = 4.0  # no rollout of this group has an advantage
CONFIGS = {
    "equal rewards": {},
    "equal rewards and a KL": {"policy_scope": "all", "text_kl": 0.1},
    "a KL of its own": {"text_kl": 0.1, "speech_kl": 0.2, "kl_scope": "completion"},
    "the anchor alone": {"gate": 0.0, "policy_scope": "all"},
    "the policy alone": {"gate": 1.0, "policy_scope": "all"},
    "whole rollouts": {"importance_sampling_level": "sequence", "policy_scope": "all"},
    "neither": {"gate": 1.0, "policy_scope": "speech", "speech_weight": 0.0},
}


def objective(name: str, **options: object) -> wf.HybridObjective:
    config = {"gate": 0.5} | CONFIGS[name]
    return wf.HybridObjective(LAYOUT, options=wf.LossOptions(**options), **config)


def rows_with_gradient(name: str) -> int:
    """As many as have a gradient in the reference in float64."""
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    objective(name, backend="reference")(hidden, weight, BATCH).loss.backward()
    return int(hidden.grad.any(dim=1).sum())


def live_rows(name: str) -> int:
    return int(objective(name).token_weights(BATCH).live.sum())


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "whole rollouts"])
def test_a_step_multiplies_the_others_once(name, bound):
    live, with_gradient = live_rows(name), rows_with_gradient(name)
    assert with_gradient < live or name == "a KL of its own" or live == 0
    with gpu_pretended() as device:
        options = {"live_rows": live + 5} if bound else {}
        hidden, weight = device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())
        objective(name, **options)(hidden, weight, BATCH)
    _, *gradients = [(p.rows, p.inner, p.columns) for p in device.products] or [None]
    width = HIDDEN.shape[1]
    assert gradients == (
        [(with_gradient, V, width), (V, with_gradient, width)] if with_gradient else []
    )


def test_tables_on_the_device_say_nothing_to_the_host():
    live = live_rows("equal rewards")
    with gpu_pretended() as device:
        tables = {n: t if t is None else device.put(t) for n, t in vars(BATCH).items()}
        batch = wf.HybridBatch(**tables)
        hidden, weight = device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())
        with device.classes(LAYOUT):
            objective("equal rewards", live_rows=live)(hidden, weight, batch)
    assert [(p.rows, p.inner) for p in device.products[1:]] == [(live, V), (V, live)]


@pytest.mark.parametrize("budget", [None, checks.SMALL])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_keep_their_bits_and_gradients_are_those_of_the_reference(name, budget):
    found, leaves = [], []
    known = compaction.may_have_gradient
    with checks.on("definition"):
        for may in (known, lambda table: torch.ones_like(known(table))):
            with mock.patch.object(compaction, "may_have_gradient", may):
                leaves = [t.clone().requires_grad_() for t in (HIDDEN, WEIGHT)]
                out = objective(name, memory_budget=budget)(*leaves, BATCH)
                out.loss.backward()
                found.append((out.loss, out.logp, *out.metrics.values(), *leaves))
    for value, wanted in zip(*found, strict=True):
        assert torch.equal(value, wanted)
    exact = [t.clone().requires_grad_() for t in (HIDDEN, WEIGHT)]
    objective(name, backend="reference")(*exact, BATCH).loss.backward()
    for leaf, wanted in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad, wanted.grad, rtol=1e-10, atol=1e-13)
    assert live_rows(name) > 0 or not leaves[0].grad.any()


def test_ratios_of_whole_rollouts_are_differentiated_by_the_others_alone():
    with_gradient = rows_with_gradient("whole rollouts")
    assert with_gradient < live_rows("whole rollouts")
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    with checks.on("definition"):
        loss = objective("whole rollouts")(hidden, weight, BATCH).loss
        with mock.patch.object(torch, "mm", wraps=torch.mm) as products:
            loss.backward()
    left = [tuple(call.args[0].shape) for call in products.call_args_list]
    assert left == [(PRODUCT_ROWS, HIDDEN.shape[1]), (with_gradient, V), (V, with_gradient)]


def test_more_rows_than_a_product_are_ordered(rows=700):
    """Several chunks that mix rows with a gradient and others; the first has only the former."""
    g = torch.Generator().manual_seed(2)
    targets = torch.randint(0, V, (rows,), generator=g)
    group = torch.arange(rows) % 2  # every other rollout of the first group, none of the second
    batch = wf.HybridBatch(
        targets, 2 * group + torch.arange(rows) // 2 % 2, torch.full((rows,), -1),
        torch.tensor([[1.0, 5.0], [3.0, 3.0]]),
    )  # fmt: skip
    hidden, weight = torch.randn(rows, 6, generator=g), torch.randn(V, 6, generator=g)
    grads = []
    for backend, budget in (("reference", None), ("definition", None), ("definition", 1)):
        loss = wf.HybridObjective(
            LAYOUT, policy_scope="all", gate=1.0,
            options=wf.LossOptions(
                backend="reference" if backend == "reference" else "auto", memory_budget=budget
            ),
        )  # fmt: skip
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        with checks.on(backend):
            loss(*leaves, batch).loss.backward()
        grads.append([leaf.grad for leaf in leaves])
    for wanted, *found in zip(*grads, strict=True):
        for gradient in found:
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)
    assert not grads[1][0][group == 1].any()
