"""A model of two streams in the trainer: what it scores is what it sampled; what it refuses."""

import pytest
import torch

from tests.train.two_stream_task import BLANK, ROWS, TwoStreamTask
from wavalign_fast.errors import UserError
from wavalign_fast.models import frozen_copy
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import TrainStep
from wavalign_fast.train.two_streams import check_heads, check_options

REFUSED = {
    "method": ("method=dpo", "dpo.chosen=best", "anchor.rows=0"),
    "rollout.engine": ("rollout.engine=vllm", "rollout.vllm.url=http://127.0.0.1:1"),
    "parallel.head": ("parallel.head=sharded",),
    "loss.importance_sampling_level": ("loss.importance_sampling_level=sequence",),
    "model.kernels": ("model.kernels=liger",),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_two_streams_cannot_honour_is_refused_by_name(toy_task, make_config, key):
    config = make_config(*REFUSED[key])
    check_options(config, toy_task())
    with pytest.raises(UserError, match=rf"{key}: \w+ given, wanted \w+ for two streams"):
        check_options(config, TwoStreamTask())


def test_a_position_of_two_streams_needs_two_ids(toy_task, make_config):
    config = make_config("rollout.max_new_tokens=1")
    check_options(config, toy_task())
    with pytest.raises(UserError, match=r"rollout\.max_new_tokens: 1 given, wanted at least 2"):
        check_options(config, TwoStreamTask())


def test_a_step_scores_what_it_sampled(toy_task, make_config):
    config = make_config(
        "loss.policy_scope=all", "loss.text_kl=0.2", "loss.speech_kl=0.1",
        "rollout.max_new_tokens=21", "rollout.temperature=0.9", "loss.backend=reference",
    )  # fmt: skip
    task = TwoStreamTask()
    model = task.load_model()
    check_heads(model, task)
    with pytest.raises(UserError, match="24 and 0 rows in the two heads, wanted 24"):
        check_heads(toy_task().load_model(), task)
    policy, reference = (
        Policy(m, task.prompt_embeddings, task.streams) for m in (model, frozen_copy(model))
    )
    step = TrainStep(config, task, policy, reference, Ranks())
    clock = Stopwatch()
    batch = step.prepare(task.train_examples[: step.examples_needed], 1, clock)
    metrics = step.backward(batch, clock).metrics
    for kind in ("text", "speech"):
        assert metrics[f"logp_diff/{kind}_mean"] < 1e-6, kind
        assert abs(metrics[f"{kind}_kl"]) < 1e-9, kind
        assert metrics[f"tokens/policy_{kind}"] > 0
    forced, chosen = task.streams.forced, 0
    for done in batch.completions:
        assert len(done.ids) <= 20 and len(done.ids) % 2 == 0
        own = torch.tensor(done.ids) != forced
        assert (done.logps[own] < 0).all() and (done.logps[~own] == 0).all()
        assert not own[1:12:2].any(), "ids before the speech"
        assert all(index < ROWS for index in done.ids[0::2] if index != forced)
        chosen += int(own.sum())
    assert metrics["tokens/policy_text"] + metrics["tokens/policy_speech"] == chosen
    # A position has two ids, and each forward pass has half as many positions as ids.
    assert sum(batch.work.prompts) == sum(
        len(example.prompt_ids) // 2 for example in task.train_examples[:3]
    )
    assert task.streams.apart([forced, forced]) == ([BLANK], [BLANK])
    for head in (model.lm_head, model.mimo_output):
        assert head.weight.grad.abs().max() > 0
