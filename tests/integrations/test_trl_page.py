"""The code of docs/trl.md runs, block after block, on a tiny model."""

import re
from pathlib import Path

import pytest

pytest.importorskip("trl")

from datasets import Dataset

from tests.integrations.tiny import VOCAB, tiny_model, tokenizer
from tests.integrations.trl_runs import ANSWERS, PROMPTS, quiet, reward

PAGE = Path(__file__).parents[2] / "docs" / "trl.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_each_block_of_the_page_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    names = {
        "MODEL": "model", "tokenizer": tokenizer(), "VOCAB": VOCAB, "SPEECH_START": 50,
        "reward": reward,
        "dataset": Dataset.from_dict({"prompt": PROMPTS}),
        "answers": Dataset.from_dict({"prompt": PROMPTS, "completion": ANSWERS[:16]}),
        "demonstrations": ANSWERS[:16],
    }  # fmt: skip
    assert len(BLOCKS) == 4
    with quiet():
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 2
    assert 0 < trainer.gate.value <= trainer.gate.lambda_max
