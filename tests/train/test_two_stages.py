"""SFT first, then RL from its result, as the paper's two-stage run: two runs by configuration."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from wavalign_fast.train.trainer import Trainer

SFT = ("loss.mixing=0", "optimizer.lr=1e-2")
RL = ("loss.mixing=1", "anchor.rows=0", "loss.text_kl=0.1")


def test_the_second_run_starts_from_the_first_ones_weights(
    train, make_config, toy_task, tmp_path, metrics_of
) -> None:
    first = train(*SFT, name="sft")
    path = tmp_path / "sft" / "checkpoint"
    started = Trainer(make_config(*RL, f"model.path={path}"), toy_task(), tmp_path / "new")
    # The reference of the KL is what the first stage ended with, too.
    saved = AutoModelForCausalLM.from_pretrained(path)
    for model in (started.model, started.train_step.reference.model, saved):
        for ours, wanted in zip(model.parameters(), first.model.parameters(), strict=True):
            assert torch.equal(ours, wanted)
    train(*RL, f"model.path={path}", name="rl")
    records = metrics_of(tmp_path / "rl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[0]["kl"] == pytest.approx(0, abs=1e-6) and "loss/anchor" not in records[0]
