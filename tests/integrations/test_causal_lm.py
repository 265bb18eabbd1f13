"""``fused_loss`` in the loops of other libraries, against the model's own loss in them."""

import contextlib
import copy
import inspect
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Qwen2ForCausalLM

from tests.integrations.loops import (
    ACCUMULATE,
    EXAMPLES,
    RATE,
    Run,
    apart,
    example,
    hf_trainer,
    labels_in,
    lightning_trainer,
    loaded,
    steps,
)
from tests.integrations.tiny import tiny_model, with_adapter
from tests.ranks import run_ranks
from wavalign_fast.errors import UserError
from wavalign_fast.integrations.causal_lm import fused_causal_lm_loss, fused_loss
from wavalign_fast.integrations.lightning import FusedCausalLM


def plain(lora):
    return with_adapter(tiny_model(), "q_proj", "lm_head") if lora else tiny_model()


def both_runs(make_model, loop):
    """Runs of ``loop(model, run, fused)`` with the fused loss and with the model's own."""
    return [
        Run(model, lambda run, model=model, fused=fused: loop(model, run, fused))
        for fused in (True, False)
        for model in [make_model()]
    ]


LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA on the head"])


@pytest.fixture
def accelerate():
    """It keeps the precision of a process; each test here has its own."""
    module = pytest.importorskip("accelerate")
    module.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield module
    module.state.AcceleratorState._reset_state(reset_partial_state=True)


@LORA
def test_transformers_trainer(lora):
    def loop(model, run, fused):
        with fused_loss(model) if fused else contextlib.nullcontext():
            hf_trainer(model)

    found, wanted = both_runs(lambda: plain(lora), loop)
    found.check(wanted)


def test_compute_loss_func_of_a_model_that_takes_no_count():
    def eager(outputs, labels, num_items_in_batch):
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch

    def loop(model, run, fused):
        def kept(*args, **kwargs):
            loss = (fused_causal_lm_loss if fused else eager)(*args, **kwargs)
            run.keep(loss)
            return loss

        model.accepts_loss_kwargs = False
        with fused_loss(model, score_inputs=True) if fused else contextlib.nullcontext():
            hf_trainer(model, loss_func=kept)

    found, wanted = both_runs(tiny_model, loop)
    found.check(wanted)


@LORA
def test_accelerate(lora, accelerate, monkeypatch):
    def loop(model, run, fused):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
        train = example("accelerate_loop", monkeypatch, fused=fused).train
        returned = train(model, steps(), accelerator, learning_rate=RATE)
        assert returned == pytest.approx(run.losses_of_steps())

    found, wanted = both_runs(lambda: plain(lora), loop)
    found.check(wanted)


# Lightning 2.6 looks at torch's tree specs in a way that torch 2.13 warns of.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@LORA
def test_lightning(lora, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Base(lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    class Eager(Base):
        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss * ACCUMULATE

    class Fused(FusedCausalLM, Base):
        pass

    def loop(model, run, fused):
        lightning_trainer((Fused if fused else Eager)(model), tmp_path)

    found, wanted = both_runs(lambda: plain(lora), loop)
    found.check(wanted)


@pytest.mark.parametrize("family", ["plain", "tied", "bias", "scale", "soft cap"])
def test_plain_torch(family, monkeypatch):
    def loop(model, run, fused):
        train = example("plain_loop", monkeypatch, fused=fused).train
        assert train(model, steps(), learning_rate=RATE) == pytest.approx(run.losses_of_steps())

    found, wanted = both_runs(lambda: tiny_model(family), loop)
    found.check(wanted)


@pytest.mark.parametrize("name", ["plain_loop", "accelerate_loop"])
def test_an_example_trains_a_model_on_a_file(name, accelerate, tmp_path, monkeypatch, capsys):
    make_files = loaded(EXAMPLES / "own_model" / "make_files.py")
    tokenizer = make_files.make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    make_files.make_model(tokenizer).save_pretrained(tmp_path)
    lines = ["say red, say green"[: 4 + number] for number in range(16)]
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    losses = []
    for fused in (True, False):
        example(name, monkeypatch, fused=fused).main(tmp_path, text)
        losses.append([float(line) for line in capsys.readouterr().out.split()])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def gradients_of_a_rank():
    """Each rank has a micro-batch of a step; the second rank's has few labels."""
    batch = steps()[0][torch.distributed.get_rank()]
    count = labels_in(steps()[0]) / 2  # wrappers average over the ranks
    found = []
    for wrapper, scored in product(("DDP", "FSDP2", "FSDP2, a head of its own"), (False, True)):
        model = tiny_model()
        if wrapper == "DDP":  # as transformers' Trainer does it
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        else:
            for layer in model.base_model.layers:
                fully_shard(layer)
            if wrapper != "FSDP2":
                fully_shard(model.lm_head)
            wrapped = fully_shard(model)
        model.train()
        with fused_loss(model, score_inputs=scored):
            if scored:
                labels, inputs = batch["labels"], {**batch, "labels": None}
                loss = fused_causal_lm_loss(wrapped(**inputs), labels, count)
            else:
                loss = wrapped(**batch, num_items_in_batch=count).loss
            loss.backward()
        found.append(gradient_of(model))
    return torch.stack(found)


def gradient_of(model):
    whole = (
        weight.grad.full_tensor() if hasattr(weight.grad, "full_tensor") else weight.grad
        for weight in model.parameters()
    )  # fmt: skip
    return torch.cat([gradient.double().flatten() for gradient in whole])


def test_two_ranks_find_the_gradient_of_one():
    single, micro_batches = tiny_model().train(), steps()[0]
    for batch in micro_batches:
        single(**batch, num_items_in_batch=labels_in(micro_batches)).loss.backward()
    wanted = gradient_of(single)
    for found in run_ranks(2, gradients_of_a_rank):
        for gradient in found:
            assert apart(gradient, wanted) < 1e-5


BATCH = steps()[0][0]


def own_logits(model):
    """Whether a call with labels in training mode returns logits, as the class defines it."""
    return model.train()(**BATCH).logits is not None


def test_it_leaves_nothing_behind_and_sees_to_one_model():
    own = Qwen2ForCausalLM.forward
    first, second = tiny_model(), tiny_model()
    with pytest.raises(KeyboardInterrupt), fused_loss(first):
        assert inspect.signature(Qwen2ForCausalLM.forward) == inspect.signature(own)
        assert not own_logits(first) and own_logits(second)
        twin = copy.deepcopy(first)
        assert own_logits(twin)
        assert first.eval()(**BATCH).logits is not None
        assert first.train()(BATCH["input_ids"]).logits is not None
        raise KeyboardInterrupt
    assert Qwen2ForCausalLM.forward is own
    assert own_logits(first) and own_logits(twin)
    assert all("forward" not in vars(model) for model in (first, second, twin))


def test_contexts_may_end_in_any_order():
    own = Qwen2ForCausalLM.forward
    first, second = tiny_model(), tiny_model()
    contexts = [fused_loss(model) for model in (first, second, second)]
    for context in contexts:
        context.__enter__()
    contexts[0].__exit__(None, None, None)
    assert own_logits(first) and not own_logits(second)
    contexts[2].__exit__(None, None, None)
    assert not own_logits(second)
    contexts[1].__exit__(None, None, None)
    assert own_logits(second) and Qwen2ForCausalLM.forward is own


def test_autocast_of_accelerate_stays(accelerate):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = tiny_model()
    with fused_loss(model):
        wrapped = accelerator.prepare(model)
        assert wrapped(**BATCH).logits is None
    assert wrapped(**BATCH).logits is not None
    with pytest.raises(UserError, match=r"enter fused_loss before accelerator\.prepare"):
        fused_loss(model).__enter__()


def test_generation_in_training_mode_is_the_models():
    model = tiny_model()
    with fused_loss(model, score_inputs=True):
        found = model.train().generate(BATCH["input_ids"], max_new_tokens=2, do_sample=False)
    assert torch.equal(found, model.generate(BATCH["input_ids"], max_new_tokens=2, do_sample=False))


def test_inputs_are_scored_but_not_padding():
    mask = BATCH["attention_mask"]
    assert (mask == 0).any()
    model = tiny_model().train()
    with fused_loss(model, score_inputs=True):
        scored = model(BATCH["input_ids"], attention_mask=mask)
    wanted = F.pad(BATCH["input_ids"].masked_fill(mask == 0, -100)[:, 1:], (0, 1), value=-100)
    assert torch.equal(scored.targets, wanted)
    assert torch.equal(scored.logps < 0, wanted != -100)


def test_what_cannot_be_honoured_is_refused():
    model = tiny_model()
    with fused_loss(model):
        for argument in (
            {"logits_to_keep": 2},
            {"ignore_index": 3},
            {"output_router_logits": True},
        ):
            with pytest.raises(UserError, match=f"{next(iter(argument))}: got"):
                model(**BATCH, **argument)
        with pytest.raises(UserError, match=r"got CausalLMOutputWithPast without logps"):
            fused_causal_lm_loss(model(**BATCH), BATCH["labels"])
    with fused_loss(model, score_inputs=True), pytest.raises(UserError, match="another token"):
        fused_causal_lm_loss(model(BATCH["input_ids"]), BATCH["labels"] + 1)
    with pytest.raises(UserError, match="output_router_logits: got True, want False"):
        fused_loss(tiny_model("experts")).__enter__()
    with pytest.raises(UserError, match="got a Linear, want a model of transformers"):
        fused_loss(model.lm_head).__enter__()
    model.loss_function = F.cross_entropy
    with pytest.raises(UserError, match="loss_function: got"):
        fused_loss(model).__enter__()
