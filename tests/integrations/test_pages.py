"""The code of docs/hf_trainer.md runs, block after block, on a tiny model."""

import pytest
import torch
import transformers

from tests.docs.pages import ROOT, blocks_of
from tests.integrations.loops import ROWS, rows, steps
from tests.integrations.tiny import tiny_model, with_adapter

PAGE = ROOT / "docs" / "hf_trainer.md"
BLOCKS = [block.text for block in blocks_of(PAGE)]
QUIET = dict(
    accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip


def scene():
    """What a reader of the page has."""
    model = with_adapter(tiny_model(), "q_proj", "lm_head")
    batches = [batch for micro_batches in steps() for batch in micro_batches]
    ids = batches[0]["input_ids"]
    return {
        "arguments": transformers.TrainingArguments(
            output_dir="unused", use_cpu=True, report_to="none", save_strategy="no", max_steps=1,
            per_device_train_batch_size=ROWS, disable_tqdm=True, logging_strategy="no",
        ),
        "dataset": rows(),
        "steps": steps(),
        "batches": torch.utils.data.DataLoader(batches, batch_size=None),
        "quiet": QUIET,
        "input_ids": ids,
        "attention_mask": batches[0]["attention_mask"],
        "is_completion": batches[0]["labels"] != -100,
        "old_logp": torch.full(ids.shape, -2.0),
        "advantages": torch.tensor([[1.0], [-1.0], [0.5]]),
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "torch": torch,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_each_block_of_the_page_trains_the_model(tmp_path, monkeypatch, capsys):
    pytest.importorskip("accelerate")
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names = scene()
    weights = [weight for weight in names["model"].parameters() if weight.requires_grad]
    assert len(BLOCKS) == 6
    for number, block in enumerate(BLOCKS):
        before = [weight.detach().clone() for weight in weights]
        names["model"].zero_grad()
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
        moved = any(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
        graded = all(weight.grad is not None and weight.grad.any() for weight in weights)
        assert graded if "on_head" in block else moved, number
