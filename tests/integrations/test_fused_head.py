"""``on_head`` against the model's own logits, alone and through peft, DDP and FSDP2."""

import copy

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import wavalign_fast as wf
from tests.integrations.tiny import (
    FAMILIES,
    SIZES,
    VOCAB,
    distance,
    gradients,
    tiny_model,
    with_adapter,
)
from tests.ranks import run_ranks
from wavalign_fast.errors import UserError
from wavalign_fast.integrations import attach_head, detach_head
from wavalign_fast.integrations.attach import shifted
from wavalign_fast.integrations.fused_head import check_head

IDS = torch.randint(2, VOCAB, (6, 7), generator=torch.Generator().manual_seed(0))
LABELS = IDS.masked_fill(torch.arange(7) < 3, -100)
LABELS[4:] = -100
COUNT = int((LABELS[:, 1:] != -100).sum())
TEMPERATURE = 0.7


def fused_loss(model, rows=slice(None), count=COUNT):
    def score(hidden, head):
        targets = shifted(LABELS[rows])
        return -head.logprob(hidden, targets, temperature=TEMPERATURE).logp.sum() / count

    return model(input_ids=IDS[rows], on_head=score)


def eager_loss(model):
    logits = model(input_ids=IDS).logits / TEMPERATURE
    logp = logits.log_softmax(-1)
    targets = shifted(LABELS)
    chosen = logp.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return -chosen[targets != -100].sum() / COUNT


def both_gradients(model):
    """Gradients of the fused and of the eager loss, whose values must be equal."""
    losses = {"fused": fused_loss(model), "eager": eager_loss(model)}
    torch.testing.assert_close(losses["fused"], losses["eager"], rtol=1e-5, atol=0)
    found = []
    for loss in losses.values():
        model.zero_grad()
        loss.backward()
        found.append(gradients(model))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_and_its_gradients_are_those_of_the_logits(family):
    model = tiny_model(family).eval()
    attach_head(model)
    found, wanted = both_gradients(model)
    assert distance(found, wanted) < 1e-5


@pytest.mark.parametrize("targets", [("q_proj",), ("lm_head",), ("q_proj", "lm_head")])
def test_adapters_are_trained_also_on_the_head(targets):
    model = with_adapter(tiny_model(), *targets)
    attach_head(model)
    found, wanted = both_gradients(model)
    assert distance(found, wanted) < 1e-5
    assert {name.split(".")[-4] for name in found} == set(targets)


def test_the_objective_takes_the_head():
    model = tiny_model("soft cap").eval()
    attach_head(model)
    layout = wf.ModalityLayout(vocab_size=VOCAB, speech=((50, VOCAB),))
    batch = wf.HybridBatch.from_padded(
        IDS, torch.ones(4, 3), LABELS.flip(0), torch.tensor([[1.0, 2.0], [5.0, 3.0]]),
        torch.tensor([4, 4]),
    )  # fmt: skip
    objective = wf.HybridObjective(layout, gate=0.5)

    def fused(hidden, head):
        return objective(hidden, head.weight, batch, head.bias, transform=head.transform).loss

    hidden = model.base_model(input_ids=IDS).last_hidden_state
    cap = wf.LogitTransform(softcap=2.0)
    wanted = objective(hidden, model.lm_head.weight, batch, transform=cap).loss
    assert wanted != 0
    assert model(input_ids=IDS, on_head=fused) == wanted


def test_a_copy_calls_itself_and_detaching_leaves_nothing():
    model = tiny_model()
    attach_head(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert twin(input_ids=IDS).logits.abs().max() == 0
    assert fused_loss(twin).item() == pytest.approx(torch.log(torch.tensor(VOCAB)).item())
    assert model(input_ids=IDS).logits.abs().max() > 1
    detach_head(model)
    assert "forward" not in vars(model)
    assert model(input_ids=IDS, on_head=lambda *_: 0).logits is not None


def weights_of(model):
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value
             for name, value in gradients(model).items()}  # fmt: skip
    return {name.removeprefix("module."): value for name, value in whole.items()}


def gradients_of_a_rank(wrapper):
    """Those of the whole batch, though the second rank has one row with labels and two without."""
    rank = torch.distributed.get_rank()
    model = tiny_model("bias").eval()
    attach_head(model)
    if wrapper == "DDP":
        model = DistributedDataParallel(model)
    else:
        for layer in model.base_model.layers:
            fully_shard(layer)
        fully_shard(model)
    # Wrappers average over the ranks.
    fused_loss(model, slice(3 * rank, 3 * rank + 3), COUNT / 2).backward()
    return weights_of(model)


@pytest.mark.parametrize("wrapper", ["DDP", "FSDP2"])
def test_two_ranks_find_the_gradient_of_one(wrapper):
    single = tiny_model("bias").eval()
    attach_head(single)
    fused_loss(single).backward()
    for found in run_ranks(2, gradients_of_a_rank, wrapper):
        assert distance(found, weights_of(single)) < 1e-5


def test_what_cannot_be_honoured_is_refused_at_once(monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations import deepspeed

    for option, named in (({"lora_dropout": 0.1}, "lora_dropout"), ({"use_dora": True}, "Dora")):
        config = LoraConfig(r=2, target_modules=["lm_head"], **option)
        model = get_peft_model(tiny_model(), config).eval()
        with pytest.raises(UserError, match=named):
            attach_head(model)
        assert not any(module.training for module in model.modules())
    adapted = with_adapter(tiny_model(), "lm_head").get_base_model()
    with pytest.raises(UserError, match="a head in float32: got Linear, want"):
        check_head(adapted, fp32=True)
    for kind in ("bert", "modernbert-decoder"):
        config = AutoConfig.for_model(kind, **SIZES | {"bos_token_id": 1}, is_decoder=True)
        with pytest.raises(UserError, match="want a body and then its head"):
            attach_head(AutoModelForCausalLM.from_config(config))
    monkeypatch.setattr(deepspeed, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(UserError, match="ZeRO-3"):
        attach_head(tiny_model())
