"""FSDP2 with a head in slices: it is never gathered, and trains as in one process."""

import random

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, H, V, random_batch
from tests.ranks import run_ranks
from wavalign_fast.errors import UserError
from wavalign_fast.models import check_head_can_be_sharded, sharded_head
from wavalign_fast.ops.sharded.head import sum_over_copies

STEPS = 3


class Model(nn.Module):
    """A layer and a head with a bias."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.lm_head = nn.Linear(H, H), nn.Linear(H, V)
        # Not called; of another size than the head, so that its gather is not taken for the head's.
        self.embedding = nn.Embedding(V + 1, H)
        if tied:
            self.lm_head.weight = self.embedding.weight
        self.double()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, states: torch.Tensor, score) -> torch.Tensor:
        return score(states + self.body(states.tanh()))


def sharded(mesh) -> nn.Module:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = Model()
    for module in (model.body, model.lm_head, model):
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def objective() -> wf.HybridObjective:
    return wf.HybridObjective(
        LAYOUT, policy_scope="all", clip=0.2, text_kl=0.1, gate=0.4,
        options=wf.LossOptions(backend="reference"),
    )  # fmt: skip


def batch_of(step: int) -> tuple[wf.HybridBatch, torch.Tensor]:
    batch, states, _ = random_batch(random.Random(step), 4, 2, 2, reference=True, old=True)
    return batch, states


def part_of(batch: wf.HybridBatch) -> wf.HybridBatch:
    """This rank's rows; the last rank has none."""
    row = torch.where(batch.policy_row >= 0, batch.policy_row, batch.anchor_row)
    mine = row % max(1, dist.get_world_size() - 1) == dist.get_rank()
    rows = {name: torch.where(mine, getattr(batch, name), -1) for name in ("policy_row",)}
    rows["anchor_row"] = torch.where(mine, batch.anchor_row, -1)
    return wf.HybridBatch(**{**batch.__dict__, **rows})


class Gathers(TorchDispatchMode):
    """The sizes of the slices of parameters that FSDP2 has gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fsdp" and "all_gather_copy_in" in str(func):
            leaves = tree_leaves((args, kwargs))
            self.sizes |= {t.numel() for t in leaves if isinstance(t, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def trained(mesh) -> tuple[dict[str, torch.Tensor], list[float], bool]:
    """Weights after some steps, the norms of their gradients, whether the head stayed in slices."""
    loss_of, in_slices = objective(), True
    model = Model() if mesh is None else sharded(mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    norms = []
    for step in range(STEPS):
        batch, states = batch_of(step)
        by = loss_of.normalisers(batch)
        mine = batch if mesh is None else part_of(batch)
        height = loss_of.token_weights(mine).live.sum()
        if mesh is not None:
            dist.all_reduce(height, op=dist.ReduceOp.MAX)

        def score(hidden, mine=mine, by=by, height=height):
            weight, bias, _ = wf.output_head(model)
            if mesh is not None:
                weight, bias = sharded_head(model, height=int(height))
            return loss_of(hidden, weight, mine, bias, normalisers=by).loss

        with Gathers() as seen:
            model(states, score).backward()
        if mesh is not None:
            in_slices &= model.lm_head.weight.to_local().numel() not in seen.sizes
            for parameter in model.lm_head.parameters():
                sum_over_copies(parameter)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        optimizer.step()
        optimizer.zero_grad()
    if mesh is not None:  # a rollout calls the head, which gathers it
        with torch.no_grad(), Gathers() as seen:
            model.lm_head(states)
        in_slices &= model.lm_head.weight.to_local().numel() in seen.sizes
        model.lm_head.reshard()
    whole = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }
    return whole, norms, in_slices


def differences(shape: tuple[int, int]) -> tuple[float, float, bool]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
    (wanted, norms, _), (found, lengths, in_slices) = trained(None), trained(mesh)
    gaps = [float((found[name] - wanted[name]).abs().max()) for name in wanted]
    return max(gaps), max(abs(a - b) for a, b in zip(norms, lengths, strict=True)), in_slices


@pytest.mark.parametrize("shape", [(1, 2), (2, 2)], ids=str)
def test_steps_of_adamw_are_those_of_one_process(shape: tuple[int, int]) -> None:
    import torch.distributed.fsdp  # noqa: F401  (before the fork)

    for gap, norm, in_slices in run_ranks(shape[0] * shape[1], differences, shape):
        assert gap < 1e-11 and norm < 1e-11 and in_slices


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"got a head tied to the input embedding, want an nn.Linear"
    ):
        check_head_can_be_sharded(Model(tied=True))
    check_head_can_be_sharded(Model())


@pytest.mark.parametrize(
    "settings", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_a_head_of_peft_is_refused(settings: dict) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, **({"target_modules": ["body"]} | settings))
    model = peft.get_peft_model(Model(), config).get_base_model()
    with pytest.raises(UserError, match=r"got a peft\.\S+, want an nn.Linear"):
        check_head_can_be_sharded(model)


def test_a_head_that_is_not_in_slices_is_refused() -> None:
    with pytest.raises(ValueError, match="head: got a Parameter, want a DTensor"):
        sharded_head(Model(), height=4)
