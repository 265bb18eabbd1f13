"""The MTP layers of VITA-Audio compute, lose and generate as the published code does."""

import pytest
import torch

from tests.models.families.golden import CLOSE, GOLDEN, loaded
from wavalign_fast.models.families.checkpoint import read_aside
from wavalign_fast.models.families.vita_mtp import (
    MtpHead,
    generate_with_mtp,
    load_mtp,
    mtp_hidden,
    mtp_tensors,
)


@pytest.fixture(scope="module")
def case():
    checkpoint, golden = loaded("vita_audio")
    aside = read_aside(GOLDEN / "vita_audio", checkpoint.table)
    layers = load_mtp(checkpoint.model, checkpoint.files.config, aside)
    return checkpoint.model, layers, golden, aside, checkpoint.files.config


def inputs_of(model, ids):
    return model.get_input_embeddings()(ids), model.model(ids).last_hidden_state


def losses(head, model, ids, labels):
    """The mean of each layer, from labels that are not shifted; they are one longer than inputs."""
    targets = labels[:, 1:]
    sums = head(model, *inputs_of(model, ids[:, :-1]), targets)
    counts = [(targets[:, k + 1 :] != -100).sum().clamp(min=1) for k in range(len(sums))]
    return sums / torch.stack(counts)


def test_each_layer_reads_one_token_further(case):
    model, layers, golden, *_ = case
    ids = golden["input_ids"][:1]
    with torch.no_grad():
        states = mtp_hidden(layers, model, *inputs_of(model, ids))
        assert len(states) == 3
        for k, hidden in enumerate(states):
            torch.testing.assert_close(hidden, golden[f"mtp.{k}.hidden"], **CLOSE)
            torch.testing.assert_close(model.lm_head(hidden), golden[f"mtp.{k}.logits"], **CLOSE)


def test_losses_are_those_of_the_family(case):
    model, layers, golden, _, config = case
    head = MtpHead(layers, config)
    with torch.no_grad():
        found = losses(head, model, golden["input_ids"][:1], golden["mtp.labels"])
    torch.testing.assert_close(found, golden["mtp.losses"], **CLOSE)
    total = golden["main.ce"] + head.loss_weight * found.mean()
    torch.testing.assert_close(total, golden["mtp.total_loss"], **CLOSE)


@pytest.mark.parametrize("plus", [False, True])
def test_gradients_reach_the_body_but_of_plus(case, plus):
    model, layers, golden, _, config = case
    head = MtpHead(layers, config | ({"model_type": "qwen2_mtp_sensevoice"} if plus else {}))
    loss = losses(head, model, golden["input_ids"][:1], golden["mtp.labels"]).sum()
    body = [model.get_input_embeddings().weight, model.model.layers[0].mlp.down_proj.weight]
    wanted = [*body, layers[0].proj.weight, model.lm_head.weight]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    assert [grad is None for grad in grads] == [plus, plus, False, False]


def test_a_row_without_labels_has_no_loss(case):
    model, layers, golden, _, config = case
    ids = golden["input_ids"][:1]
    none = torch.full_like(ids, -100)
    assert losses(MtpHead(layers, config), model, ids, none).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("kind", "mode"), [("vanilla", [8192, 0]), ("mtp", [1, 2, 1, 3])])
def test_greedy_tokens_are_those_of_the_family(case, kind, mode):
    model, layers, golden, *_ = case
    prompt, wanted = golden["gen.prompt"][0].tolist(), golden[f"gen.{kind}"][0].tolist()
    said = generate_with_mtp(layers, model, prompt, mode=mode, max_new_tokens=24)
    assert said == wanted
    stopped = generate_with_mtp(
        layers, model, prompt, mode=mode, max_new_tokens=24, stop=[wanted[4]]
    )
    assert stopped == wanted[:5]


def test_a_layer_sees_all_tokens_whatever_the_plan(case):
    """Every token is what its layer says when it reads the whole row at once."""
    model, layers, golden, *_ = case
    prompt = golden["gen.prompt"][0].tolist()
    said = generate_with_mtp(layers, model, prompt, mode=[3, 2, 2, 3, 1, 1], max_new_tokens=14)
    ids = torch.tensor([prompt + said])
    with torch.no_grad():
        embedded, hidden = inputs_of(model, ids)
        states = [hidden, *mtp_hidden(layers, model, embedded, hidden)]
    speakers = [0, 0, 0, 1, 2, 0, 0, 1, 2, 3, 0, 1, 0, 1]
    for place, (token, k) in enumerate(zip(said, speakers, strict=True), start=len(prompt) - 1):
        assert model.lm_head(states[k][0, place - k]).argmax() == token


@pytest.mark.parametrize("mode", [[], [1], [0, 1], [1, 4], [1, -1]])
def test_a_mode_that_cannot_be_followed_is_refused(case, mode):
    model, layers, *_ = case
    with pytest.raises(ValueError, match=r"mode .*: wanted"):
        generate_with_mtp(layers, model, [1, 2], mode=mode, max_new_tokens=2)


def test_trained_layers_go_back_under_their_stored_names(case):
    _, layers, _, aside, config = case
    tensors = mtp_tensors(dict(layers.named_parameters()), config)
    assert tensors.keys() == aside.keys()
    assert all(torch.equal(tensors[name], aside[name]) for name in aside)
