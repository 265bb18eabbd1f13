"""A toy task: a tiny random model whose reward counts one text token."""

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from rich.console import Console

from wavalign_fast.cli import main
from wavalign_fast.config.layers import parse_overrides, resolve_config
from wavalign_fast.data.records import (
    Completion,
    Demonstration,
    Evaluation,
    Example,
    SpokenSample,
)
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.train.run_directory import fingerprint, start_run
from wavalign_fast.train.trainer import Trainer

VOCAB = 24
PAD, EOS, WANTED = 0, 1, 7
SPEECH = (12, 22)

FAST = [
    "rollout.prompts=3",
    "rollout.group_size=4",
    "rollout.max_new_tokens=8",
    "anchor.rows=4",
    "loss.gate.threshold=1",
    "loss.gate.variance_scale=1",
    "optimizer.lr=3e-3",
    "train.steps=4",
    "train.eval_items=2",
    "train.checkpoint_every=0",
    "train.block_tokens=40",
]


class ToyTask:
    """Prompts of ids 2…5, demonstrations of speech ids, reward = how often WANTED was written."""

    pad_id = PAD
    eos_id = EOS

    def __init__(self, *, hidden: int = 16, broken_judge: bool = False) -> None:
        self.hidden = hidden
        self.broken_judge = broken_judge
        self.layout = ModalityLayout(
            vocab_size=VOCAB, speech=(SPEECH,), eos=(EOS,), eos_as="speech"
        )
        self.train_examples = [
            Example(
                id=str(i), prompt=f"prompt {i}", prompt_ids=(2, *[3] * (i % 3), 4), reference=""
            )
            for i in range(10)
        ]
        self.calls: dict[str, int] = {}

    def load_model(self):
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self._count("load_model")
        config = Qwen2Config(
            vocab_size=VOCAB,
            hidden_size=self.hidden,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Qwen2ForCausalLM(config).eval()

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        self._count("demonstrations")
        return [
            Demonstration(
                prompt_ids=example.prompt_ids,
                answer_ids=(WANTED, *range(12, 12 + rng.randrange(1, 5)), EOS),
            )
            for example in examples
        ]

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        self._count("rewards")
        return [
            None if self.broken_judge and index % 4 == 0 else float(done.ids.count(WANTED))
            for index, done in enumerate(completions)
        ]

    def evaluate(self, model, *, items: int, seed: int) -> Evaluation:
        self._count("evaluate")
        torch.manual_seed(seed)  # a task may disturb the global state; training must not notice
        wave = np.linspace(-2, 2, 80, dtype=np.float32)
        sample = SpokenSample(
            prompt="p", reference="r", text="t", heard="h", waveform=wave, sample_rate=8000
        )
        norm = sum(float(weight.detach().norm()) for weight in model.parameters())
        return Evaluation(metrics={"norm": norm}, samples=[sample] * items)

    def answer(self, model, prompt: str, *, seed: int) -> Evaluation:
        if prompt != "hello":
            raise ValueError(f"prompt is {prompt!r},\nwanted 'hello'")
        return self.evaluate(model, items=1, seed=seed)

    def _count(self, call: str) -> None:
        self.calls[call] = self.calls.get(call, 0) + 1


ARMS = {
    "both": {},
    "rl": {"anchor": {"rows": 0}, "loss": {"mixing": 1.0}},
    "sft": {"loss": {"mixing": 0.0, "anchor_scope": "all"}},
}


@pytest.fixture
def toy_task() -> type[ToyTask]:
    return ToyTask


@pytest.fixture
def make_config() -> Callable:
    def make(*overrides: str):
        return resolve_config(
            [{"recipe": "toy"}, parse_overrides(FAST), parse_overrides(overrides)]
        )

    return make


@pytest.fixture
def train(tmp_path, make_config) -> Callable:
    """Trains the toy and returns the trainer; continues a run called ``name`` if there is one."""

    def run(*overrides: str, name: str = "run", task: ToyTask | None = None) -> Trainer:
        config, task = make_config(*overrides), task or ToyTask()
        start_run(tmp_path / name, config, data=fingerprint(task.train_examples))
        trainer = Trainer(config, task, tmp_path / name)
        trainer.fit(Console(file=open("/dev/null", "w")))  # noqa: SIM115
        return trainer

    return run


@pytest.fixture
def metrics_of() -> Callable:
    def read(directory) -> list[dict]:
        return [json.loads(line) for line in (directory / "metrics.jsonl").open()]

    return read


@pytest.fixture
def no_report(monkeypatch):
    """Replaces the report by a list of the runs that it was written for."""
    written = []
    module = type("report", (), {"write_report": lambda root: written.append(root) or "page"})
    monkeypatch.setitem(sys.modules, "wavalign_fast.report", module)
    return written


class Payload:
    """A pickle that makes the directory ``harm`` when it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.fixture
def payload() -> Payload:
    return Payload()


@pytest.fixture
def stop_at(monkeypatch) -> Callable:
    """Sends signals to this process after a step, once; Ctrl-C by default."""

    def arm(step: int, *numbers: int) -> None:
        one_step = Trainer._one_step

        def stopping(self, *args):
            one_step(self, *args)
            if self.step == step:
                monkeypatch.setattr(Trainer, "_one_step", one_step)
                for number in numbers or (signal.SIGINT,):
                    signal.raise_signal(number)

        monkeypatch.setattr(Trainer, "_one_step", stopping)

    return arm


@pytest.fixture
def in_tmp_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def error_line(capsys) -> Callable:
    """Runs a command that must fail with exit status 2; returns its one line on stderr."""

    def run(*argv: str) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and len(err) < 700, err
        return err

    return run


@pytest.fixture
def train_toy() -> Callable:
    """``wavalign-fast train --recipe toy``."""
    return lambda *argv: main(["train", "--recipe", "toy", *argv])


@pytest.fixture
def refused(error_line) -> Callable:
    """Runs a training command that must be refused; returns its line on stderr."""
    return lambda *argv: error_line("train", "--recipe", "toy", *argv)


@pytest.fixture
def toy_recipe(monkeypatch) -> None:
    """Makes ``--recipe toy`` known to the command line."""
    import wavalign_fast.recipes as recipes

    def load_recipe(name: str):
        if name != "toy":
            raise ValueError(f"{name!r} given, wanted one of toy")
        return {"recipe": "toy", "arm": "both", **parse_overrides(FAST)}, ARMS, ToyTask

    monkeypatch.setattr(recipes, "load_recipe", load_recipe, raising=False)
