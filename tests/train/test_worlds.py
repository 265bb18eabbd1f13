"""The same run at any number of ranks: λ, rewards and rows bit for bit, weights to rounding."""

import copy
import dataclasses
import importlib.util

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from tests.train.two_stream_task import TwoStreamTask
from wavalign_fast.models import PromptEmbeddings, frozen_copy, set_attention
from wavalign_fast.train import step_batch
from wavalign_fast.train.deal import deal
from wavalign_fast.train.model_setup import prepare_model
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, WithoutLora, wrapped
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import TrainStep

STEPS = 2
"""The second begins with weights, moments and λ that the first has changed."""
EXACT = ("gate/lambda", "reward/mean", "reward/std", "tokens/policy_text", "completion_length")
BOTH = ("loss.policy_scope=all", "loss.anchor_scope=all")
CASES = {
    "dealt": BOTH,
    "sequence ratios and a KL": (
        *BOTH, "loss.importance_sampling_level=sequence", "loss.text_kl=0.2", "loss.speech_kl=0.1",
    ),
    "one row a micro-batch, a KL of its own": (
        "train.block_tokens=1", "loss.kl_scope=completion", "loss.text_kl=0.2",
        "loss.speech_kl=0.1",
    ),
    "policy alone": ("anchor.rows=0", "loss.mixing=1"),
    "fewer rows than ranks": ("loss.mixing=0", "anchor.rows=1"),
    "all rows on one rank": (*BOTH, "loss.text_kl=0.1"),
    "kinds apart": (*BOTH, "loss.text_kl=0.1"),
    "tied, token normalisation": (*BOTH, "loss.normalisation=token"),
    "vectors in prompts, packed": (*BOTH, "loss.text_kl=0.1", "model.attention=varlen"),
    "copies": BOTH,
    "a copy on every two ranks": (*BOTH, "parallel.reshard=false"),
    "a copy on every two ranks, sharded head": (
        *BOTH, "parallel.head=sharded", "loss.text_kl=0.1",
    ),
    "sharded head, kinds apart": (*BOTH, "parallel.head=sharded"),
    "two streams": (
        *BOTH, "loss.text_kl=0.2", "loss.speech_kl=0.1", "rollout.max_new_tokens=20",
        "rollout.temperature=0.9",
    ),
    "adapters, two streams": (
        *BOTH, "loss.text_kl=0.2", "rollout.max_new_tokens=20", "model.lora.rank=2",
        "model.lora.head=true",
    ),
    "adapters": (*BOTH, "loss.text_kl=0.1", "model.lora.rank=2", "model.lora.head=true"),
    "adapters, sharded head": (*BOTH, "model.lora.rank=2", "parallel.head=sharded"),
}  # fmt: skip


def ranks_here() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def all_on_one(rows, *, world, beside=(), **options):
    return [deal(rows, world=1, **options)[0], *[[]] * (world - 1)]


def kinds_apart(rows, *, world, beside=(), **options):
    """Completions on the first rank, demonstrations on the last; the others are idle."""
    if world == 1:
        return deal(rows, world=1, **options)
    first, last = (
        deal([row for row in rows if row.is_rollout is kind], world=1, **options)[0]
        for kind in (True, False)
    )
    return [first, *[[]] * (world - 2), last]


AT_FOUR = (
    "fewer rows than ranks", "kinds apart", "copies", "a copy on every two ranks",
    "a copy on every two ranks, sharded head",
)  # fmt: skip
"""The cases for four ranks: idle ranks and copies. What the others add, two ranks show."""
IN_FLOAT32 = ("dealt", "kinds apart", "sharded head, kinds apart")
"""The kernels' cases: whole head, idle ranks, slices. What the others add, float64 shows."""
DEALS = {
    "all rows on one rank": all_on_one,
    "kinds apart": kinds_apart,
    "sharded head, kinds apart": kinds_apart,
}


def with_vectors(task):
    """The task with two vectors at the end of each prompt, other ones in each of three clips."""
    task, table = copy.copy(task), PromptEmbeddings(task.layout.vocab_size)
    rows = torch.randn(3, 2, task.hidden, generator=torch.Generator().manual_seed(0))
    task.train_examples = [
        dataclasses.replace(
            example,
            prompt_ids=(*example.prompt_ids, *table.ids(n % 3, 2, lambda n=n: rows[n % 3])),
        )
        for n, example in enumerate(task.train_examples)
    ]
    task.prompt_embeddings = table
    return task


def run(name, task, make_config, dtype):
    """Trains ``STEPS`` steps; returns metrics and norms of each, and the weights."""
    ranks = ranks_here()
    copies = {"copies": ranks.world}.get(name, max(ranks.world // 2, 1))
    shape = (f"parallel.replicate={copies}",) if name.startswith(("copies", "a copy")) else ()
    backend = "reference" if dtype == torch.float64 else "cpu"
    config = make_config(*CASES[name], *shape, f"loss.backend={backend}")
    if name.startswith("vectors in prompts"):
        task = with_vectors(task)
    if name.endswith("two streams"):
        task = TwoStreamTask(hidden=task.hidden)
    vectors, streams = (getattr(task, key, None) for key in ("prompt_embeddings", "streams"))
    base = task.load_model()
    if name.startswith("tied"):
        base.config.tie_word_embeddings = True
        base.tie_weights()
        base.lm_head.weight = base.get_input_embeddings().weight
    set_attention(base, config.model.attention)
    reference = None
    if name.startswith("adapters"):
        prepare_model(base, config.model, seed=1)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(dtype)
    policy = Policy(base, vectors, streams)
    if config.needs_reference:
        reference = WithoutLora(policy)
        if not name.startswith("adapters"):
            copied = Policy(frozen_copy(base), vectors, streams)
            reference = wrapped(copied, config.parallel, ranks)
    wrapped(policy, config.parallel, ranks)
    taken = TrainStep(config, task, policy, reference, ranks)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, fused=True)
    trace = []
    for number in range(1, STEPS + 1):
        at = number % 5
        examples = task.train_examples[at : at + taken.examples_needed]
        clock = Stopwatch()
        metrics = taken.backward(taken.prepare(examples, number, clock), clock).metrics
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        metrics["norm"] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        optimizer.step()
        optimizer.zero_grad()
        trace.append(metrics)
    whole = {
        key: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().double()
        for key, p in policy.named_parameters()
    }
    return trace, whole


def run_cases(names, task, make_config, dtype):
    found = {}
    for name in names:
        step_batch.deal = DEALS.get(name, deal)
        try:
            found[name] = run(name, task, make_config, dtype)
        finally:
            step_batch.deal = deal
    return found


@pytest.mark.parametrize(
    ("world", "names", "dtype", "loss", "norm", "weights"),
    [
        (2, tuple(CASES), torch.float64, 1e-11, 1e-11, 1e-9),
        # Slow, so that other releases of torch do without it.
        pytest.param(4, AT_FOUR, torch.float64, 1e-11, 1e-11, 1e-9, marks=pytest.mark.slow),
        (2, IN_FLOAT32, torch.float32, 1e-5, 1e-4, 1e-3),
    ],
    ids=["two", "four", "two-float32"],
)
def test_any_world_trains_the_same(toy_task, make_config, world, names, dtype, loss, norm, weights):
    import torch.distributed.fsdp  # noqa: F401  before the fork, so that no rank imports it again

    if importlib.util.find_spec("peft") is None:
        names = [name for name in names if not name.startswith("adapters")]
    wanted = run_cases(names, toy_task(), make_config, dtype)
    by_rank = run_ranks(world, run_cases, names, toy_task(), make_config, dtype, deadline=300)
    for found in by_rank:
        for name, (trace, whole) in found.items():
            for ours, alone in zip(trace, wanted[name][0], strict=True):
                assert ours.keys() == alone.keys(), name
                for key in EXACT:
                    assert ours.get(key) == alone.get(key), (name, key)
                assert ours["loss/total"] == pytest.approx(alone["loss/total"], rel=loss), name
                assert ours["norm"] == pytest.approx(alone["norm"], rel=norm), name
            for key, value in whole.items():
                error = (value - wanted[name][1][key]).abs().max()
                scale = value.abs().max()  # 0 for a frozen bias
                assert error <= weights * scale, (name, key, float(error))
