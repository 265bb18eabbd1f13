"""Steps in a CUDA graph: tables on the device are captured, tables on the CPU are refused."""

import random
from dataclasses import replace

import pytest
import torch

import wavalign_fast as wf
from tests.gpu.chunk_loop.pretended import OnGpu, Pretended, gpu_pretended
from tests.losses.formula import LAYOUT, random_batch

BATCH, HIDDEN, WEIGHT = random_batch(
    random.Random(3), 2, 3, 2, reference=True, old=True, importance=True
)
KL = {"policy_scope": "all", "text_kl": 0.1, "speech_kl": 0.1}
BOUND = wf.LossOptions(live_rows=len(BATCH.targets))
COUNTS = wf.Normalisers(*(torch.tensor(3.0) for _ in range(4)))


def on_gpu(device: Pretended, *, but: str | None = None) -> wf.HybridBatch:
    """The batch on the device, except for one table."""
    given = {name: table for name, table in vars(BATCH).items() if table is not None}
    tables = {name: table for name, table in given.items() if name != but}
    return replace(BATCH, **{name: device.put(table) for name, table in tables.items()})


def objective(gate: wf.MixingGate | float = 0.5) -> wf.HybridObjective:
    return wf.HybridObjective(LAYOUT, gate=gate, options=BOUND, **KL)


def operands(device: Pretended) -> tuple[OnGpu, OnGpu]:
    return device.put(HIDDEN.bfloat16()), device.put(WEIGHT.bfloat16())


def moved_gate(device: Pretended) -> wf.MixingGate:
    gate = wf.MixingGate()
    gate.value = device.put(torch.tensor(0.5))
    return gate


@pytest.mark.parametrize("own", ["gate", "number", "tensor", "normalisers"])
def test_a_step_on_the_device_is_captured(own):
    with gpu_pretended() as device:
        loss = objective(moved_gate(device) if own == "gate" else 0.5)
        batch, given = on_gpu(device), {}
        if own == "tensor":
            given["rl_weight"] = device.put(torch.tensor(0.5))
        if own == "normalisers":
            given["normalisers"] = wf.Normalisers(*(device.put(n) for n in vars(COUNTS).values()))
        # A step before the capture creates what later steps reuse.
        with device.classes(LAYOUT):
            device.copies.clear()
            device.capturing = True
            out = loss(*operands(device), batch, **given)
            scores = wf.linear_logprob(*operands(device), batch.targets, options=BOUND)
    assert device.copies == [] and out.loss.inner.isfinite() and scores.logp.inner.isfinite().all()


@pytest.mark.parametrize("name", ["rewards", "ref_logp", "old_logp", "importance"])
def test_a_table_on_the_cpu_is_refused(name):
    """The others are in one place, also with a bound on the rows, and before the gate moves."""
    with gpu_pretended() as device:
        loss = objective(moved_gate(device))
        before = loss.gate.value
        batch = on_gpu(device, but=name)
        device.capturing = True
        with pytest.raises(ValueError, match=f"^batch.{name}: got a tensor on the CPU"):
            loss(*operands(device), batch)
        assert loss.gate.value is before and device.copies == []


@pytest.mark.parametrize("name", ["gate.value", "rl_weight", "normalisers.policy"])
def test_a_number_on_the_cpu_is_refused(name):
    with gpu_pretended() as device:
        loss = objective(wf.MixingGate(initial=0.5) if name == "gate.value" else 0.5)
        given = {"rl_weight": torch.tensor(0.5)} if name == "rl_weight" else {}
        if name == "normalisers.policy":
            given["normalisers"] = COUNTS
        batch = on_gpu(device)
        device.capturing = True
        with pytest.raises(ValueError, match=f"^{name}: got a tensor on the CPU while"):
            loss(*operands(device), batch, **given)


@pytest.mark.parametrize("options", [None, BOUND])
def test_targets_on_the_cpu_are_refused(options):
    with gpu_pretended() as device:
        given = operands(device)
        device.capturing = True
        with pytest.raises(ValueError, match=r"^targets: got a tensor on the CPU while"):
            wf.linear_logprob(*given, BATCH.targets, options=options)


@pytest.mark.parametrize("name", ["targets", "sequence_id", "pairs", "ref_logp", "normaliser"])
def test_a_table_of_pairs_on_the_cpu_is_refused(name):
    rows = torch.arange(len(HIDDEN))
    tables = {
        "targets": BATCH.targets,
        "sequence_id": rows % 2,
        "pairs": torch.tensor([[0, 1]]),
        "ref_logp": torch.zeros(2),
        "normaliser": torch.tensor(1.0),
    }
    with gpu_pretended() as device:
        given = {key: table if key == name else device.put(table) for key, table in tables.items()}
        device.capturing = True
        with pytest.raises(ValueError, match=f"^{name}: got a tensor on the CPU while"):
            wf.fused_dpo_loss(*operands(device), layout=LAYOUT, options=BOUND, **given)


def test_tables_on_the_cpu_are_taken_where_nothing_is_captured():
    with gpu_pretended() as device:
        out = objective()(*operands(device), BATCH)
    assert device.copies and out.loss.inner.isfinite()
