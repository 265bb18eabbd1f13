"""One short run of a trainer of TRL on completions that are given, and what it did."""

import contextlib
import io
import tempfile
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback

from tests.integrations.tiny import EOS, VOCAB, tiny_model, tokenizer
from wavalign_fast.integrations import trl as ours

GROUP, LENGTH = 4, 8
PROMPTS = [" ".join(f"w{(3 * i + j) % 90}" for j in range(2 + i % 4)) for i in range(16)]
ANSWERS = [" " + " ".join(f"w{(7 * i + 5 * j) % 90}" for j in range(1 + i % 6)) for i in range(32)]
ONLINE = ("GRPO", "RLOO")
COLUMNS = {
    "GRPO": {"prompt": PROMPTS},
    "RLOO": {"prompt": PROMPTS},
    "SFT": {"prompt": PROMPTS, "completion": ANSWERS[:16]},
    "DPO": {"prompt": PROMPTS, "chosen": ANSWERS[:16], "rejected": ANSWERS[16:]},
    "KTO": {
        "prompt": PROMPTS, "completion": ANSWERS[:16], "label": [i % 2 == 0 for i in range(16)],
    },
}  # fmt: skip


def reward(completion_ids, **_):
    values: list[float | None] = [1 + sum(ids) % 7 / 2 for ids in completion_ids]
    values[1] = None  # cannot be scored
    return values


class Recorded:
    """Keeps the loss of every micro-batch."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.__dict__.setdefault("losses", []).append(loss.detach().double())
        return loss


class Scripted(Recorded):
    """Completions from a generator of their own, some of them truncated."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        round_ = self.__dict__.setdefault("rounds", 0)
        self.rounds += 1
        rng = torch.Generator().manual_seed(100 + round_)
        completions = []
        for _ in prompt_ids:
            length = int(torch.randint(2, LENGTH + 3, (), generator=rng))
            ids = torch.randint(2, VOCAB, (min(length, LENGTH),), generator=rng).tolist()
            completions.append(ids if length > LENGTH else [*ids[:-1], EOS])
        return completions if isinstance(self, trl.RLOOTrainer) else (completions, None)


class OfATool(Scripted):
    """Every third token is not the model's."""

    def _generate(self, prompts):
        prompt_ids, ids, _, *rest = super()._generate(prompts)
        return prompt_ids, ids, [[int(i % 3 > 0) for i in range(len(one))] for one in ids], *rest


class FullLogits:
    """GRPO's scores from logits in plain torch, as TRL had them before its fused head."""

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, compute_entropy=False, **_
    ):
        with self.accelerator.autocast():
            out = model(input_ids=input_ids, attention_mask=attention_mask)
        logits = out.logits[:, :-1][:, -logits_to_keep:].float() / self.temperature
        logp = logits.log_softmax(-1)
        padding = attention_mask[:, -logits_to_keep:] == 0
        chosen = logp.gather(-1, input_ids[:, -logits_to_keep:, None])[..., 0]
        entropy = -(logp.exp() * logp).sum(-1).masked_fill(padding, 0) if compute_entropy else None
        return chosen.masked_fill(padding, 0), entropy, out.get("aux_loss")


class FullLogitsOverOurs(FullLogits, ours.FusedGRPOTrainer):
    """Where TRL's class refuses: an adapter on the head, by its own forward pass."""


class FullLogitsOverTRL(FullLogits, trl.GRPOTrainer):
    pass


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        self.seen.append(torch.cat([grad.double().flatten() for grad in grads]))


@dataclass
class Run:
    """What a trainer did."""

    losses: torch.Tensor
    gradients: list[torch.Tensor]
    """Of each optimizer step, accumulated and clipped."""
    moved: torch.Tensor
    """How far each trained weight went."""
    logs: list[dict[str, Any]]
    trainer: Any = field(repr=False, default=None)


def config(kind, folder, **options):
    settings = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none",
        "learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
        "max_steps": 3, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant",
    }  # fmt: skip
    if kind in ONLINE:
        settings |= {"num_generations": GROUP, "max_completion_length": LENGTH}
    return getattr(trl, f"{kind}Config")(**settings | options)


@contextlib.contextmanager
def quiet():
    """A folder for a run whose output goes nowhere."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield folder


def run(
    kind, base, *, script=None, family="plain", dtype=torch.float32, lora=None, more=None, **options
):
    """Trains a tiny model with ``base``, a class of TRL's or of ours.

    Args:
        kind: of trainer, such as "GRPO".
        script: where completions come from.
        lora: names of layers with an adapter.
        more: further arguments of the trainer.
        options: of TRL's configuration.
    """
    torch.manual_seed(0)
    script = script or (Scripted if kind in ONLINE else Recorded)
    more, gradients = dict(more or {}), Gradients()
    if lora:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(r=4, target_modules=lora, init_lora_weights="gaussian")
    if kind in ONLINE:
        more.setdefault("reward_funcs", reward)
    with quiet() as folder:
        model = tiny_model(family, dtype)
        if kind != "GRPO" or options.get("beta"):  # TRL reads its reference from there
            model.save_pretrained(f"{folder}/base")
            model = type(model).from_pretrained(f"{folder}/base", dtype=dtype)
        trainer = type("Trainer", (script, base), {})(
            model=model,
            args=config(kind, folder, **options),
            processing_class=tokenizer(),
            train_dataset=Dataset.from_dict(more.pop("columns", COLUMNS[kind])),
            callbacks=[gradients, *more.pop("callbacks", ())],
            **more,
        )
        weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        start = [weight.detach().double().clone() for weight in weights]
        trainer.train()
    moved = [
        (weight.detach().double() - before).flatten()
        for weight, before in zip(weights, start, strict=True)
    ]
    logs = [one for one in trainer.state.log_history if "loss" in one]
    return Run(torch.stack(trainer.losses), gradients.seen, torch.cat(moved), logs, trainer)


def apart(found: Run, wanted: Run) -> dict[str, float]:
    """The largest relative differences: of a micro-batch's loss, of the gradient of the first and
    of any step, of the way that the weights went, of a logged number."""
    loss = (found.losses - wanted.losses).abs() / wanted.losses.abs().clamp(min=1e-2)
    gradients = [
        float((x - y).norm() / y.norm())
        for x, y in zip(found.gradients, wanted.gradients, strict=True)
    ]
    logged = 0.0
    for one, other in zip(found.logs, wanted.logs, strict=True):
        assert one.keys() == other.keys(), one.keys() ^ other.keys()
        for name in one:
            if not any(timed in name for timed in ("time", "per_second")) and one[name] is not None:
                gap = abs(one[name] - other[name]) / max(abs(other[name]), 1e-2)
                logged = max(logged, gap)
    return {
        "loss": float(loss.max()),
        "first gradient": gradients[0],
        "gradient": max(gradients),
        "weights": float((found.moved - wanted.moved).norm() / wanted.moved.norm()),
        "logged": logged,
    }


OURS = {kind: getattr(ours, f"Fused{kind}Trainer") for kind in COLUMNS}
THEIRS = {kind: getattr(trl, f"{kind}Trainer") for kind in COLUMNS}
FULL_LOGITS = {"TRL": FullLogitsOverTRL, "ours": FullLogitsOverOurs}
