"""LoRA in the trainer: the step, the reference without weights, checkpoints and export."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.ranks import run_ranks
from tests.train.test_checkpoint_ranks import Run, model_of
from tests.train.test_step import KL, SCOPES, Recorded, sharp
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.errors import UserError
from wavalign_fast.models import add_lora
from wavalign_fast.train.export import export_run
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, WithoutLora, wrapped
from wavalign_fast.train.trainer import Trainer

peft = pytest.importorskip("peft")

LORA = ("model.lora.rank=3", "model.lora.alpha=7")
HEAD = (*LORA, "model.lora.head=true")


def adapted(model, *, head: bool = True, fill: bool = True, **changes):
    """Puts adapters into ``model``; with ``fill`` their B is not 0."""
    settings = {"rank": 3, "alpha": 7, "targets": [], "head": head, "seed": 1} | changes
    add_lora(model, **settings)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if fill and "lora_B" in name:
            weight.data.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("head", [False, True])
def test_a_step_is_the_formula_over_pefts_own_logits(toy_task, make_config, monkeypatch, head):
    """Gradients of the adapters, and nothing else; the reference is the model without them."""
    task = toy_task()
    reference = sharp(task.load_model(), 1)
    recorded = Recorded(make_config(*SCOPES, *KL), task, monkeypatch, reference=reference)
    adapted(recorded.model, head=head)
    recorded.step.reference = WithoutLora(recorded.step.policy)
    trained = 0
    for name, (found, wanted) in recorded.gradients().items():
        assert (found is None) == (wanted is None) == ("lora_" not in name), name
        if wanted is not None:
            trained += 1
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-6)
            assert wanted.abs().max() > 1e-5
    assert trained == 2 * (2 * 7 + head)


def first_step(trainer: Trainer) -> dict[str, float]:
    clock, step = Stopwatch(), trainer.train_step
    examples = trainer.task.train_examples[: step.examples_needed]
    return step.backward(step.prepare(examples, 1, clock), clock).metrics


@pytest.fixture
def make_trainer(make_config, toy_task, tmp_path):
    return lambda *overrides: Trainer(make_config(*overrides), toy_task(), tmp_path)


def test_the_kl_to_the_reference_starts_at_0_and_leaves_it(make_trainer):
    trainer = make_trainer(*HEAD, *KL, "loss.policy_scope=all", "loss.mixing=1")
    assert isinstance(trainer.train_step.reference, WithoutLora)
    metrics = first_step(trainer)
    assert abs(metrics["kl"]) < 1e-7 and trainer.policy.training
    trainer.optimizer.zero_grad()
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    assert first_step(trainer)["kl"] > 1e-3


def test_the_optimizer_has_the_adapters_alone_and_they_move(train, toy_task):
    trainer = train(*HEAD)
    held = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    assert len(held) == 2 * (2 * 7 + 1) and all(weight.requires_grad for weight in held)
    before = toy_task().load_model().state_dict()
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            assert weight.abs().max() > 0, name
        elif "lora_A" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "")]), name


def test_a_resumed_run_has_the_same_bits(train):
    keys = (*HEAD, *KL, "model.activation_checkpointing=true")
    whole = train(*keys, name="whole")
    train(*keys, "train.steps=2", name="halves")
    resumed = train(*keys, name="halves")
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name


def test_the_export_of_a_run_is_pefts_merged_model(train, toy_task, tmp_path):
    trainer = train(*HEAD)
    model = toy_task().load_model()
    names = [name for name, it in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    wanted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, target_modules=names))
    loaded = wanted.base_model.model.load_state_dict(trainer.model.state_dict())
    assert not loaded.missing_keys and not loaded.unexpected_keys
    wanted = wanted.merge_and_unload().state_dict()
    out = export_run(tmp_path / "run", tmp_path / "out", base=toy_task().load_model)
    found = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-7)


def bfloat16_loss(head: bool) -> tuple[float, list[str]]:
    """A backward pass over weights in bfloat16 with adapters in float32."""
    run = Run("unused")
    model = adapted(model_of().to(torch.bfloat16), head=head)
    policy = wrapped(Policy(model), ParallelConfig(), run.ranks)
    seen = []

    def score(hidden, weight, bias):
        seen.append((hidden.dtype, weight.dtype))
        return (hidden @ weight.T).float().square().mean()

    loss = policy([torch.arange(18).view(2, 9)], score)
    loss.backward()
    ((hidden, weight),) = seen
    kinds = {weight.grad.dtype for weight in policy.parameters() if weight.grad is not None}
    return loss.item(), [str(it).removeprefix("torch.") for it in (hidden, weight, *kinds)]


@pytest.mark.parametrize("head", [False, True])
def test_float32_adapters_over_bfloat16_weights(head):
    alone, kinds = bfloat16_loss(head)
    wide = "float32" if head else "bfloat16"
    assert kinds == [wide, wide, "float32"]
    for loss, kinds in run_ranks(2, bfloat16_loss, head):
        assert loss == pytest.approx(alone, rel=0.02)
        assert kinds == ["bfloat16", "bfloat16", "float32"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("model.lora.head=true",), r"model\.lora: head given with rank 0, wanted a rank of 1"),
        (("model.lora.targets=[q_proj]",), r"model\.lora: targets given with rank 0"),
        ((*LORA, "model.lora.targets=[qproj]"), r"model\.lora: targets: .*'qproj', wanted some"),
    ],
)
def test_what_cannot_be_is_named(make_trainer, keys, message):
    with pytest.raises(UserError, match=message):
        make_trainer(*keys)


def test_without_peft_the_package_is_named(make_trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"model\.lora: adapters need the package peft"):
        make_trainer(*LORA)


def test_targets_choose_the_layers(make_trainer):
    model = make_trainer(*LORA, "model.lora.targets=[q_proj, down_proj]").model
    found = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert found == {"q_proj", "down_proj"}
    assert model.peft_config["default"].r == 3 and model.model.layers[0].mlp.down_proj.scaling == {
        "default": 7 / 3
    }
