"""MTP layers are trained on the demonstrations of a step, the same at any number of ranks."""

import dataclasses
import random
import types

import pytest
import torch
import torch.distributed as dist

from tests.models.families.golden import GOLDEN
from tests.ranks import run_ranks
from wavalign_fast.data.records import Demonstration, Example
from wavalign_fast.errors import UserError
from wavalign_fast.models import set_attention
from wavalign_fast.models.families.checkpoint import load_family
from wavalign_fast.models.families.vita_mtp import open_mtp
from wavalign_fast.train.model_setup import load_mtp
from wavalign_fast.train.mtp import MtpLoss
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import TrainStep

WEIGHT = 0.7
LENGTHS = ((3, 9), (2, 1), (4, 6), (2, 4), (3, 5))
"""Ids of prompts and answers; the second row is too short for the last layer, of three."""


def demonstrations(vocab_size: int) -> list[Demonstration]:
    draw = random.Random(0)
    rows = [[[draw.randrange(vocab_size) for _ in range(n)] for n in two] for two in LENGTHS]
    shown = [Demonstration(prompt_ids=tuple(p), answer_ids=tuple(a)) for p, a in rows]
    return [dataclasses.replace(shown[0], history=(1,)), *shown[1:]]


def stepped(make_config, *overrides: str):
    """Returns the metrics and the gradients of a step, in float64."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    config = make_config(
        "loss.mixing=0", "anchor.rows=5", "loss.anchor_scope=all", "loss.backend=reference",
        f"anchor.mtp_loss_weight={WEIGHT}", "train.block_tokens=12", *overrides,
    )  # fmt: skip
    loaded = load_family(GOLDEN / "vita_audio", torch.float64)
    set_attention(loaded.model, config.model.attention)
    layout = loaded.files.layout
    shown = demonstrations(layout.stream.vocab_size)
    task = types.SimpleNamespace(
        layout=layout.stream, pad_id=layout.stop[-1], eos_id=layout.stop,
        train_examples=[Example(id="", prompt="", prompt_ids=(1,), reference="")] * len(shown),
        demonstrations=lambda examples, rng: shown,
    )  # fmt: skip
    head = open_mtp(loaded.family, loaded.files, loaded.model)
    policy = wrapped(Policy(loaded.model, mtp=head), config.parallel, ranks)
    step = TrainStep(config, task, policy, None, ranks)
    clock = Stopwatch()
    metrics = step.backward(step.prepare(task.train_examples, 1, clock), clock).metrics
    grads = {
        name: (w.grad.full_tensor() if hasattr(w.grad, "full_tensor") else w.grad)
        for name, w in policy.named_parameters()
    }
    return metrics, grads


def by_hand() -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the layers row by row, its mean over the layers, and its gradients."""
    loaded = load_family(GOLDEN / "vita_audio", torch.float64)
    body, head = loaded.model, open_mtp(loaded.family, loaded.files, loaded.model)
    sums, counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3)
    for row in demonstrations(loaded.files.layout.stream.vocab_size):
        ids = torch.tensor([row.prompt_ids + row.answer_ids])
        learnt = [*row.history, *range(len(row.prompt_ids), ids.shape[1])]
        hidden = body.model(ids[:, :-1]).last_hidden_state
        for k, layer in enumerate(head.layers):
            if hidden.shape[1] < 2:
                break
            embedded = body.get_input_embeddings()(ids[:, k + 1 : -1])
            hidden = body.model.norm(layer(embedded, hidden[:, :-1], first=k + 1))
            logp = body.lm_head(hidden)[0].log_softmax(-1)
            for place in learnt:
                if place >= k + 2:
                    sums[k] -= logp[place - k - 2, ids[0, place]]
                    counts[k] += 1
    loss = (sums / counts).mean()
    loss.backward()
    return loss.item(), {f"mtp.{n}": w.grad for n, w in head.named_parameters()}


def test_a_step_trains_the_layers_by_the_loss_of_the_family(make_config):
    metrics, grads = stepped(make_config)
    wanted, own = by_hand()
    assert metrics["loss/mtp"] == pytest.approx(wanted, rel=1e-6)
    total = metrics["loss/anchor"] + WEIGHT * metrics["loss/mtp"]
    assert metrics["loss/total"] == pytest.approx(total, rel=1e-6)
    for name, grad in own.items():
        torch.testing.assert_close(grads[name], WEIGHT * grad, rtol=1e-4, atol=1e-8)


def test_the_loss_has_the_weight_of_the_anchor():
    loss = MtpLoss(torch.nn.Identity(), weight=WEIGHT, learnt=[True])
    sums, counts = torch.tensor([6.0, 2.0]), torch.tensor([3.0, 4.0])
    share = loss.share(sums, counts, torch.tensor(0.25))
    assert share.item() == pytest.approx((1 - 0.25) * WEIGHT * (2.0 + 0.5) / 2)


def test_packed_rows_and_two_ranks_train_the_same(make_config):
    import torch.distributed.fsdp

    metrics, grads = stepped(make_config)
    others = [stepped(make_config, "model.attention=varlen")]
    others += run_ranks(2, stepped, make_config)
    for found, theirs in others:
        assert found["loss/mtp"] == pytest.approx(metrics["loss/mtp"], rel=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(theirs[name], grad, rtol=1e-4, atol=1e-8)


def test_who_has_no_layers_is_refused_by_name(toy_task, make_config):
    with pytest.raises(UserError, match=r"anchor\.mtp_loss_weight: ToyTask has no MTP layers"):
        load_mtp(make_config("anchor.mtp_loss_weight=model"), toy_task(), None)
    assert load_mtp(make_config(), toy_task(), None) is None
    plus = load_family(GOLDEN / "vita_audio_plus")
    with pytest.raises(UserError, match="vita_audio has no MTP layers"):
        open_mtp(plus.family, plus.files, plus.model)
    with pytest.raises(UserError, match=r"model\.lora\.rank: 2 given with anchor\.mtp_loss_weight"):
        make_config("anchor.mtp_loss_weight=model", "model.lora.rank=2")
