"""The same few steps in the loops of four libraries, and what a run of them did to a model."""

import contextlib
import importlib.util
import io
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.integrations.tiny import PAD, VOCAB

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS, ACCUMULATE, ROWS, LENGTH = 3, 2, 3, 10
RATE = 1e-3


def rows():
    """Every second micro-batch has few labels; some rows are padded, one has no label."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(STEPS * ACCUMULATE * ROWS):
        ids = torch.randint(2, VOCAB, (LENGTH,), generator=generator)
        mask = (torch.arange(LENGTH) < LENGTH - number % 3).long()
        ids = ids.masked_fill(mask == 0, PAD)
        first = LENGTH - 4 if number // ROWS % 2 else 2
        labels = ids.masked_fill((mask == 0) | (torch.arange(LENGTH) < first), -100)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    made[4]["labels"] = torch.full((LENGTH,), -100)
    return made


def steps():
    """Lists of micro-batches."""
    made, batches = rows(), []
    for start in range(0, len(made), ROWS):
        part = made[start : start + ROWS]
        batches.append({name: torch.stack([row[name] for row in part]) for name in part[0]})
    return [batches[i : i + ACCUMULATE] for i in range(0, len(batches), ACCUMULATE)]


def labels_in(micro_batches):
    return sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro_batches)


def loaded(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example(name, monkeypatch, *, fused):
    """A module of ``examples/other_loops``; not fused, it trains on the model's own loss."""
    monkeypatch.syspath_prepend(EXAMPLES / "other_loops")
    module = loaded(EXAMPLES / "other_loops" / f"{name}.py")
    if not fused:
        module.fused_loss = contextlib.nullcontext
    return module


def hf_trainer(model, *, loss_func=None):
    import transformers

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        output_dir="unused", use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=ROWS, gradient_accumulation_steps=ACCUMULATE, max_steps=STEPS,
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0, logging_strategy="no",
    )  # fmt: skip
    trainer = InOrder(model, arguments, train_dataset=rows(), compute_loss_func=loss_func)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()


def lightning_trainer(module, tmp_path):
    import lightning

    counted = [
        {**batch, "num_items_in_batch": labels_in(step)} for step in steps() for batch in step
    ]
    lightning.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=ACCUMULATE, logger=False,
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, torch.utils.data.DataLoader(counted, batch_size=None))  # fmt: skip


class Run:
    """The losses of a run, the gradients at each update, and how far the weights went."""

    def __init__(self, model, loop):
        self.losses, self.gradients = [], []
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        before = _flat(trained)
        handles = [
            model.register_forward_hook(self._keep_output),
            register_optimizer_step_pre_hook(
                lambda *_: self.gradients.append(_flat([weight.grad for weight in trained]))
            ),
        ]
        try:
            loop(self)
        finally:
            for handle in handles:
                handle.remove()
        self.way = _flat(trained) - before

    def _keep_output(self, module, args, output):
        self.keep(output.get("loss"))

    def keep(self, loss):
        if loss is not None:
            self.losses.append(float(loss.detach()))

    def losses_of_steps(self):
        return [
            sum(self.losses[i : i + ACCUMULATE]) for i in range(0, len(self.losses), ACCUMULATE)
        ]

    def check(self, wanted):
        """Equal to another run, up to relative differences.

        Key biases have a gradient of 0, and Adam divides the rounding of it by itself: weights
        differ more than gradients, and gradients more with each step.
        """
        assert len(self.losses) == len(wanted.losses) == STEPS * ACCUMULATE
        assert len(self.gradients) == len(wanted.gradients) == STEPS
        assert apart(torch.tensor(self.losses), torch.tensor(wanted.losses)) < 1e-6
        for mine, theirs in zip(self.gradients, wanted.gradients, strict=True):
            assert apart(mine, theirs) < 3e-5
        assert apart(self.way, wanted.way) < 2e-3


def apart(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def _flat(tensors):
    return torch.cat([x.detach().double().flatten() for x in tensors])
