"""Ranks on GPUs: order of sums, streams, overlap, a sharded head, packed attention."""

import random
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

import wavalign_fast as wf
from tests.gpu.chunk_loop.checks import on
from tests.gpu.trainer.overlap import gathers_hidden, hidden_share
from tests.gpu.trainer.places import (
    MIXED,
    WORLDS,
    need_gpus,
    on_ranks,
    ranks_of,
    synchronise,
    toy_config,
    trained,
    weights_of,
)
from tests.losses import formula
from tests.train.conftest import ToyTask
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.models import PackedRows, compile_layers, hidden_states, set_attention
from wavalign_fast.ops import backend_status
from wavalign_fast.ops.sharded import exchange
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.step import TrainStep

# 1. The order of NCCL's sums


def whole_and_in_parts(device: str, directory) -> list[dict[str, torch.Tensor]]:
    """The weights of a run without and with a stop after its first step."""
    ranks = ranks_of(device)
    found = []
    for name, parts in (("whole", (2,)), ("parts", (1, 2))):
        for steps in parts:
            config = toy_config(*MIXED, f"train.steps={steps}")
            trainer = trained(config, directory / name, ranks)
        found.append(weights_of(trainer))
    return found


@pytest.mark.parametrize(("device", "world"), WORLDS)
def test_a_resumed_run_has_the_bits_of_the_whole_run(device, world, tmp_path):
    """bfloat16 over float32 weights, at the same world. If it fails on GPUs: NCCL_ALGO=Ring."""
    for whole, parts in on_ranks(device, world, whole_and_in_parts, device, tmp_path):
        assert all(weight.dtype == torch.float32 for weight in whole.values())
        assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


# 2. Streams


def gradients_by_schedule(device: str) -> list[dict[str, torch.Tensor]]:
    """Gradients of one step: twice as it is, with explicit prefetch, and one kernel at a time."""
    ranks = ranks_of(device)
    config = toy_config(*MIXED, "loss.policy_scope=all", "loss.anchor_scope=all")
    policy = Policy(ToyTask().load_model().to(ranks.device))
    wrapped(policy, config.parallel, ranks, compute_dtype=torch.bfloat16)
    step = TrainStep(config, ToyTask(), policy, None, ranks)
    examples = step.task.train_examples[: step.examples_needed]
    found = []
    for schedule in ("as it is", "as it is", "prefetch", "alone"):
        blocks = [m for m in policy.model.model.layers if isinstance(m, FSDPModule)]
        if schedule == "prefetch":
            blocks[0].set_modules_to_forward_prefetch(blocks[1:])
            blocks[-1].set_modules_to_backward_prefetch(blocks[:-1])
        if schedule == "alone":
            for module in policy.model.model.layers.modules():
                module.register_forward_hook(lambda *args: synchronise(device))
                if isinstance(module, torch.nn.Linear):
                    weight = module.weight
                    weight.register_hook(lambda grad: synchronise(device))
        clock = Stopwatch()
        step.backward(step.prepare(examples, 1, clock), clock)
        found.append(
            {name: p.grad.to_local().cpu().clone() for name, p in policy.named_parameters()}
        )
        policy.zero_grad()
    return found


@pytest.mark.parametrize(("device", "world"), WORLDS)
def test_gradients_do_not_depend_on_how_kernels_and_gathers_overlap(device, world):
    for first, *others in on_ranks(device, world, gradients_by_schedule, device):
        assert any(gradient.any() for gradient in first.values())
        for other in others:
            assert all(torch.equal(other[name], gradient) for name, gradient in first.items())


# 3. Overlap


def test_a_share_of_hidden_time_is_that_of_the_intervals():
    assert hidden_share((0, 10), [(2, 4), (3, 6), (9, 20)]) == pytest.approx(0.5)
    assert hidden_share((0, 10), []) == 0 and hidden_share((5, 6), [(0, 9)]) == 1


def hidden_shares() -> list[float]:
    """How much of the head's gather the blocks before it hide, in three steps."""
    config = body_and_head()
    policy = Policy(config.to(ranks_of("cuda").device))
    wrapped(policy, ParallelConfig(), ranks_of("cuda"), compute_dtype=torch.bfloat16)
    ids = torch.randint(0, 64000, (4, 1024))

    def score(hidden, weight, bias):
        return wf.linear_logprob(hidden, weight, ids.flatten()).logp.sum()

    policy([ids], score).backward()
    return gathers_hidden(lambda: policy([ids], score).backward(), steps=3)


def body_and_head():
    """A model of whose gathers the head's is by far the longest."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8,
            num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=False,
        )
    )  # fmt: skip


@pytest.mark.gpu
def test_the_gather_of_the_head_is_hidden_behind_the_last_blocks():
    need_gpus(2)
    for shares in on_ranks("cuda", 2, hidden_shares):
        assert len(shares) == 3 and min(shares) > 0.5, shares


# 5. The head in slices


def sharded_errors(device: str, backend: str) -> list[float]:
    """Errors of loss, log-probs and gradients with a sharded head; then chunks and exchanges."""
    batch, hidden, weight = formula.random_batch(
        random.Random(3), 3, 2, 2, reference=True, old=False
    )
    settings = dict(policy_scope="all", text_kl=0.1, speech_kl=0.3, gate=0.4)
    exact = wf.HybridObjective(
        formula.LAYOUT, options=wf.LossOptions(backend="reference"), **settings
    )
    whole = [t.float().double().requires_grad_() for t in (hidden, weight)]
    wanted = exact(*whole, batch, normalisers=exact.normalisers(batch))
    wanted.loss.backward()
    world, rank = dist.get_world_size(), dist.get_rank()
    each = -(-len(weight) // world)
    mine = weight[rank * each : (rank + 1) * each].float().to(device).requires_grad_()
    states = hidden.float().to(device).requires_grad_()
    live = exact.token_weights(batch).live
    shard = wf.HeadShard(
        weight=mine, start=rank * each, vocab_size=len(weight), group=dist.group.WORLD,
        height=int(live.sum()),
    )  # fmt: skip
    counted = mock.Mock(side_effect=exchange.whole_stats)
    objective = wf.HybridObjective(formula.LAYOUT, **settings)
    # Each rank has all rows, so the sums over the ranks are `world` times the loss.
    with mock.patch("wavalign_fast.ops.sharded.steps.whole_stats", counted), on(backend):
        out = objective(states, shard, batch, normalisers=exact.normalisers(batch))
        out.loss.backward()
    pairs = [
        (out.loss, wanted.loss),
        (out.logp, torch.where(live, wanted.logp, 0.0)),
        (states.grad, whole[0].grad),
        (mine.grad, world * whole[1].grad[rank * each : (rank + 1) * each]),
    ]
    errors = [
        float((a.detach().cpu().double() - b.detach()).abs().max() / b.detach().abs().max())
        for a, b in pairs
    ]
    return [max(errors), counted.call_count]


def loop_backends() -> list:
    """The chunk loop with its definition here, and with each kind of kernels on a GPU."""
    found = [("cpu", "definition")]
    return found + [
        pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ("cuda", "triton")
    ]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("device", "backend"), loop_backends())
def test_row_kernels_make_the_gradients_of_a_head_in_slices_by_one_exchange(device, backend, world):
    if device == "cuda" and (reason := backend_status()[backend]):
        pytest.skip(f"{backend}: {reason}")
    for error, exchanges in on_ranks(device, world, sharded_errors, device, backend):
        assert error < 1e-4 and exchanges == 1


# 6. Packed attention


@pytest.mark.parametrize(
    ("device", "compiled"),
    [
        ("cpu", False),
        pytest.param("cuda", False, marks=pytest.mark.gpu),
        pytest.param("cuda", True, marks=pytest.mark.gpu),
    ],
)
def test_packed_rows_by_varlen_are_rows_alone_by_sdpa(device, compiled):
    """bfloat16 on a GPU, as training has it: only then is torch's kernel used."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = [torch.randint(2, 20, (length,)) for length in (7, 33, 1, 12)]
    found = []
    for attention in ("varlen", "sdpa"):
        model = ToyTask(hidden=128).load_model().to(device)
        for weight in model.parameters():  # not the buffers: rotary frequencies stay in float32
            weight.data = weight.data.to(dtype if attention == "varlen" else torch.float32)
        set_attention(model, attention)
        model.train()
        if compiled and attention == "varlen":
            compile_layers(model)
        blocks = [PackedRows.of(rows)] if attention == "varlen" else [row[None] for row in rows]
        hidden = hidden_states(model, [block.to(torch.device(device)) for block in blocks])
        hidden.float().square().mean().backward()
        values = [hidden, *(p.grad for p in model.model.parameters())]
        found.append([value.detach().cpu().float() for value in values])
    limit = 5e-2 if dtype == torch.bfloat16 else 1e-5
    for ours, wanted in zip(*found, strict=True):
        assert (ours - wanted).norm() <= limit * wanted.norm() + 1e-7
