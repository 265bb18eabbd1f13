"""The host's work in a step on a GPU: launches, and copies to the device.

With a small head it is most of a step's time. The numbers here are today's and may only go down.
``pretended`` says what counts as a launch.
"""

import random
from types import SimpleNamespace

import pytest
import torch

import wavalign_fast as wf
from tests.gpu.chunk_loop.pretended import Pretended, gpu_pretended
from tests.losses.formula import LAYOUT, random_batch
from wavalign_fast.ops.chunked import autograd, compaction

BATCH, HIDDEN, WEIGHT = random_batch(random.Random(3), 2, 3, 2, reference=True, old=True)
KL = {"text_kl": 0.1, "speech_kl": 0.1}
EVERYTHING = {"policy_scope": "all", "clip": 0.2, "kl_scope": "completion"} | KL
PLAIN = wf.HybridBatch(BATCH.targets, BATCH.policy_row, BATCH.anchor_row, BATCH.rewards)


def step(
    device: Pretended, batch: wf.HybridBatch, config: dict, options: wf.LossOptions | None = None
) -> wf.HybridOutput:
    objective = wf.HybridObjective(LAYOUT, options=options, **config)
    hidden, weight = device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())
    device.launches.clear()
    return objective(hidden, weight, batch)


@pytest.mark.parametrize(
    ("batch", "config", "most"), [(PLAIN, {}, 56), (BATCH, EVERYTHING, 90)], ids=["plain", "all"]
)
def test_a_step_with_tables_on_the_cpu(batch, config, most):
    """One copy: all tables lie one after another in one pinned buffer."""
    with gpu_pretended() as device:
        step(device, batch, config)
    assert len(device.copies) == 1
    assert len(device.launches) <= most


@pytest.mark.parametrize(
    ("batch", "config", "most"), [(PLAIN, {}, 363), (BATCH, EVERYTHING, 504)], ids=["plain", "all"]
)
def test_a_step_with_tables_on_the_device(batch, config, most):
    with gpu_pretended() as device:
        moved = {n: None if t is None else device.put(t) for n, t in vars(batch).items()}
        bound = wf.LossOptions(live_rows=len(BATCH.targets))
        with device.classes(LAYOUT):
            step(device, wf.HybridBatch(**moved), config, bound)
    assert device.copies == []
    assert len(device.launches) <= most


def test_a_step_that_needs_whole_rollouts():
    with gpu_pretended() as device:
        step(device, BATCH, EVERYTHING | {"importance_sampling_level": "sequence"})
    assert len(device.copies) == 1 and len(device.launches) <= 105


@pytest.mark.parametrize("bound", [None, len(BATCH.targets)])
def test_log_probs(bound):
    with gpu_pretended() as device:
        hidden, weight = device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())
        wf.linear_logprob(hidden, weight, BATCH.targets, options=wf.LossOptions(live_rows=bound))
    assert len(device.copies) == 1 and len(device.launches) <= (12 if bound is None else 15)


def test_a_preference_loss_with_tables_on_the_cpu():
    """All of them are copied: none is left to be waited for once the GEMMs are running."""
    ids, pairs = torch.arange(len(HIDDEN)) % 2, torch.tensor([[0, 1]])
    given = {"ref_logp": torch.zeros(2), "normaliser": torch.tensor(1.0)}
    with gpu_pretended() as device:
        hidden, weight = device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())
        found = wf.fused_dpo_loss(
            hidden, weight, BATCH.targets, ids, pairs, layout=LAYOUT, scope="all", **given
        )
    assert len(device.copies) == 2 and found.loss.inner.isfinite()


def test_a_backward_pass():
    """Each gradient is scaled in place, and the rows are scattered back."""
    with gpu_pretended() as device:
        gradients = [device.put(t.bfloat16()) for t in (HIDDEN[:9], WEIGHT)]
        made = SimpleNamespace(
            saved_tensors=gradients, backend="definition", dtypes=[torch.bfloat16] * 2, spent=False
        )
        autograd._value_backward(made, device.put(torch.tensor(1.5)))
        index = device.put(torch.arange(9))
        compaction.scatter_live_rows(gradients[0], index, len(HIDDEN), "definition")
    assert device.launches == ["scale_", "scale_", "new_zeros", "scatter_rows_"]


def test_rewards_on_the_cpu_beside_tables_on_the_device():
    with gpu_pretended() as device:
        wanted = step(device, PLAIN, {"gate": 0.5})
        moved = {
            n: t if n == "rewards" or t is None else device.put(t) for n, t in vars(PLAIN).items()
        }
        bound = wf.LossOptions(live_rows=len(BATCH.targets))
        with device.classes(LAYOUT):
            found = step(device, wf.HybridBatch(**moved), {"gate": 0.5}, bound)
    assert float(found.loss.inner) == pytest.approx(float(wanted.loss.inner), rel=1e-6)


def test_numbers_on_the_device_beside_tables_on_the_cpu():
    with gpu_pretended() as device:
        objective = wf.HybridObjective(LAYOUT, gate=0.5)
        hidden, weight = device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())
        total = objective.normalisers(PLAIN)
        wanted = objective(hidden, weight, PLAIN, normalisers=total)
        there = wf.Normalisers(*(device.put(count) for count in vars(total).values()))
        rl_weight = device.put(torch.tensor(0.5))
        found = objective(hidden, weight, PLAIN, rl_weight=rl_weight, normalisers=there)
    assert torch.equal(found.loss.inner, wanted.loss.inner)


@pytest.mark.parametrize("positions", [0, 3])
def test_nothing_carries_loss(positions):
    nowhere = torch.full((positions,), -1)
    batch = wf.HybridBatch(torch.zeros(positions).long(), nowhere, nowhere, torch.zeros(0, 4))
    with gpu_pretended() as device:
        hidden, weight = device.put(torch.zeros(positions, 6)), device.put(WEIGHT.float())
        out = wf.HybridObjective(LAYOUT, gate=0.5)(hidden, weight, batch)
    assert float(out.loss.inner) == 0.0 and device.products == []
