"""bfloat16 compute over float32 weights, alone and on two ranks; compiled layers."""

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from tests.models.tiny import gradients, rows_of, tiny_model
from tests.ranks import run_ranks
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.models import compile_layers, frozen_copy, recompute_activations
from wavalign_fast.ops import linear_logprob
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks

LENGTHS = (9, 14, 5, 11)


def block(step: int) -> torch.Tensor:
    """One row of each rank's two; every step has a shape of its own."""
    return torch.stack(rows_of(LENGTHS[step], LENGTHS[step], seed=step))


def backward(policy, ids, *, zero: bool = True):
    def score(hidden, weight, bias):
        targets = ids.roll(-1, 1).flatten()
        return linear_logprob(hidden, weight, targets).logp.float().mean(dtype=torch.float64)

    if zero:
        policy.zero_grad()
    policy([ids], score).backward()


def whole(policy) -> dict[str, torch.Tensor]:
    return {
        name: gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        for name, gradient in gradients(policy).items()
    }


def mixed(tied: bool):
    """The gradients of this rank's rows, summed, and the dtypes of weights and gradients."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    policy = wrapped(
        Policy(tiny_model(torch.float32, tie_word_embeddings=tied)),
        ParallelConfig(),
        ranks,
        compute_dtype=torch.bfloat16,
    )
    backward(policy, block(1)[ranks.rank :: ranks.world])
    dtypes = {str(p.dtype) for p in policy.parameters()}
    return whole(policy), sorted(dtypes | {str(p.grad.dtype) for p in policy.parameters()})


def bfloat16_copies(tied: bool, parts) -> dict[str, torch.Tensor]:
    """What a copy of the model in bfloat16 computes for each part of the rows, summed."""
    total: dict[str, torch.Tensor] = {}
    for part in parts:
        copy = Policy(tiny_model(torch.bfloat16, tie_word_embeddings=tied))
        backward(copy, part)
        for name, gradient in gradients(copy).items():
            total[name] = total.get(name, 0) + gradient.float()
    return total


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_bfloat16_compute_has_the_gradients_of_a_bfloat16_copy(world, tied):
    """The mean of each rank's rows is its share here, so the sum is over the ranks."""
    wanted = bfloat16_copies(tied, [block(1)[rank::world] for rank in range(world)])
    for found, dtypes in run_ranks(world, mixed, tied):
        assert dtypes == ["torch.float32"]
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            # The gradient of a key's bias is a sum that cancels: nothing but rounding.
            if not name.endswith("k_proj.bias"):
                error = float((found[name] - gradient).abs().max() / gradient.abs().max())
                assert error < 1e-2, (name, error)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_are_one_graph_in_training_and_none_in_rollouts(checkpointed):
    """Three shapes. Traced here, but not compiled to C++, which takes a minute."""
    plain, policy = (Policy(tiny_model(torch.float32)) for _ in range(2))
    if checkpointed:
        recompute_activations(policy.model)
    compile_layers(policy.model, backend="eager")
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        policy.model.eval()(block(0))
    assert counters["stats"]["unique_graphs"] == 0
    policy.train()
    for step in range(3):
        for each in (plain, policy):
            backward(each, block(step))
        found, wanted = gradients(policy), gradients(plain)
        assert found.keys() == wanted.keys()
        largest = max(float(value.abs().max()) for value in wanted.values())
        for name, gradient in wanted.items():
            assert float((found[name] - gradient).abs().max()) < 1e-5 * largest, name
    assert counters["stats"]["unique_graphs"] == 1
    assert sum(counters["graph_break"].values()) == 0


def reference_logps(narrow: bool) -> list[torch.Tensor]:
    """Log-probs under a frozen copy that is stored in float32, or in the dtype that it computes."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    model = tiny_model(torch.float32)
    copy = frozen_copy(model, torch.bfloat16 if narrow else None)
    wanted = torch.bfloat16 if narrow else torch.float32
    assert {weight.dtype for weight in copy.parameters()} == {wanted}
    assert all(torch.equal(b, model.get_buffer(name)) for name, b in copy.named_buffers())
    reference = wrapped(Policy(copy), ParallelConfig(), ranks, compute_dtype=torch.bfloat16)
    ids = block(0)[ranks.rank :: ranks.world]
    with torch.no_grad():
        return [reference([ids], lambda h, w, b: linear_logprob(h, w, ids.flatten()).logp)]


def test_a_reference_has_the_same_bits_in_the_dtype_that_it_computes_in():
    for world in (1, 2):
        found = run_ranks(world, reference_logps, True)
        for (logp,), (wanted,) in zip(found, run_ranks(world, reference_logps, False), strict=True):
            assert torch.equal(logp, wanted) and logp.min() < -1


def test_a_frozen_copy_of_tied_weights_is_tied_and_apart_from_the_model():
    model = tiny_model(torch.float32, tie_word_embeddings=True)
    copy = frozen_copy(model, torch.bfloat16)
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    assert not any(weight.requires_grad for weight in copy.parameters()) and not copy.training
    same = frozen_copy(model)
    same.lm_head.weight.data.zero_()
    assert model.lm_head.weight.abs().max() > 0
    assert all(weight.requires_grad for weight in model.parameters())


def trained(everything: bool):
    """Weights after two AdamW steps on this rank's rows, and the numbers of graphs and breaks.

    Args:
        everything: layers that are checkpointed, compiled, and sharded over the ranks, in the order
            of a run. Otherwise this process alone adds up what the two ranks compute.
    """
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if everything else Ranks()
    policy = Policy(tiny_model(torch.float32))
    if everything:
        torch._dynamo.reset()
        counters.clear()
        recompute_activations(policy.model)
        compile_layers(policy.model, backend="eager")
    policy = wrapped(policy, ParallelConfig(), ranks).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, fused=True)
    for step in range(2):
        optimizer.zero_grad()
        for rank in [ranks.rank] if everything else range(2):
            backward(policy, rows_of(LENGTHS[2 * step + rank], seed=rank)[0][None], zero=False)
        optimizer.step()
    weights = {
        name: (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach()
        for name, weight in policy.named_parameters()
    }
    return weights, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def test_compiled_and_checkpointed_layers_on_two_ranks_train_as_plain_ones_alone():
    """Rows of four lengths, and one graph for all of them; old torch has one of the first alone."""
    wanted, *_ = trained(everything=False)
    for found, graphs, breaks in run_ranks(2, trained, True):
        assert 1 <= graphs <= 2 and breaks == 0
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            if not name.endswith("k_proj.bias"):  # AdamW makes steps of its gradient's rounding
                torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)
