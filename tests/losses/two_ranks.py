"""What each of two ranks computes: λ of the rewards of both, and gradients of a sharded head."""

import datetime
import re

import torch
import torch.distributed as dist
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor, init_device_mesh

import wavalign_fast as wf

V, H, POSITIONS = 30, 8, 6
REWARDS = torch.tensor([[[1.0, 5.0], [2.0, 2.0]], [[3.0, 4.0], [float("nan")] * 2]])
"""[rank, B, G]"""
INFINITE = torch.tensor([[[1.0, 5.0], [2.0, 2.0]], [[3.0, 4.0], [2.0, float("inf")]]])
"""Those of rank 1 alone have one that is infinite."""


def operands() -> tuple[torch.Tensor, ...]:
    """Hidden states, head, bias and targets; each rank has half of the positions."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, H, generator=g) for n in (2 * POSITIONS, V))
    return hidden, weight, torch.randn(V, generator=g), torch.arange(2 * POSITIONS)


def loss_of(hidden, weight, bias, targets) -> torch.Tensor:
    return -wf.linear_logprob(hidden, weight, targets, bias=bias).logp.sum()


def as_advised(name: str, sharded: torch.Tensor, call) -> torch.Tensor:
    """``sharded`` after the conversion that the error message of ``call`` suggests."""
    try:
        call()
    except ValueError as error:
        found = re.match(rf"{name}: got a DTensor, want a local tensor: (\w+\(\S*\))", str(error))
        assert found is not None, error
        return eval(f"sharded.{found[1]}", {"sharded": sharded, "Partial": Partial})
    raise AssertionError(f"{name}: a DTensor was taken")


def refusal(call) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("an infinite reward was taken")


def objective_step(gate: wf.MixingGate, rewards: torch.Tensor) -> wf.HybridOutput:
    layout = wf.ModalityLayout(vocab_size=V, speech=((20, V),))
    row = torch.arange(4)
    batch = wf.HybridBatch(row, row, torch.full_like(row, -1), rewards)
    return wf.HybridObjective(layout, gate=gate)(torch.zeros(4, H), torch.zeros(V, H), batch)


def run(rank: int, store: str) -> dict[str, torch.Tensor | str]:
    """The results of one rank, with gradients gathered from both."""
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit
    )
    try:
        whole = wf.MixingGate(ema=0.5, initial=0.1)
        if rank == 0:  # alone: a collective would wait for the other rank
            whole(REWARDS.flatten(0, 1), reduce=False)
            assert "got inf" in refusal(lambda: whole(INFINITE.flatten(0, 1), reduce=False))
        gate = wf.MixingGate(ema=0.5, initial=0.1)
        results = {f"lambda {step}": gate(REWARDS[rank] + step) for step in (0, 1)}
        refused = {
            "gate": refusal(lambda: gate(INFINITE[rank])),
            "objective": refusal(lambda: objective_step(gate, INFINITE[rank])),
        }
        if rank == 1:
            whole(REWARDS.flatten(0, 1), reduce=False)
        results["lambda of whole rewards"] = whole.value
        results["lambda after"] = objective_step(gate, REWARDS[rank] + 2).rl_weight
        mesh = init_device_mesh("cpu", (2,))
        hidden, weight, bias, targets = operands()
        mine = slice(rank * POSITIONS, (rank + 1) * POSITIONS)
        local = (hidden[mine], weight, bias, targets[mine])
        leaves = {
            name: torch.nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]))
            for name, value in (("hidden", hidden), ("weight", weight), ("bias", bias))
        }
        placed = {"hidden": 0, "weight": 1, "bias": 2}
        full = list(local)
        for name, leaf in leaves.items():
            given = list(local)
            given[placed[name]] = leaf
            full[placed[name]] = as_advised(name, leaf, lambda given=given: loss_of(*given))
        loss_of(*full).backward()
        for name, leaf in leaves.items():
            results[f"grad of {name}"] = leaf.grad.redistribute(mesh, [Replicate()]).to_local()
        return refused | {name: value.detach().clone() for name, value in results.items()}
    finally:
        dist.destroy_process_group()
