"""The trainer with its model on one GPU: values, resume, and the waits of the host.

Here a pretended GPU takes the place of the real one.
"""

import contextlib
import json
import warnings

import pytest
import torch

from tests.gpu.trainer.places import toy_config, trained, weights_of
from tests.gpu.trainer.pretended import pretended_gpu
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.ranks import Ranks

GPU = [pytest.param("pretended"), pytest.param("cuda", marks=pytest.mark.gpu)]
DEVICE = torch.device("cuda:0")
EVERYTHING = (
    "loss.policy_scope=all", "loss.anchor_scope=all", "loss.text_kl=0.2", "loss.speech_kl=0.1",
    "loss.importance_cap=2", "train.updates_per_rollout=2", "train.steps=2",
)  # fmt: skip
VARIANTS = {
    "plain": (),
    "everything": EVERYTHING,
    "packed": ("model.attention=varlen", "loss.policy_scope=all"),
    "anchor alone": ("loss.mixing=0",),
}


def at(place: str, *overrides: str) -> tuple:
    """The context of a place, and the toy's configuration there."""
    if place == "cuda":
        return contextlib.nullcontext(), toy_config("train.eval_items=0", *overrides)
    config = toy_config("train.eval_items=0", "loss.backend=reference", *overrides)
    return pretended_gpu(), config


def values_of(directory) -> list[dict]:
    """The metrics of each step, without times and machine."""
    timed = ("perf/", "memory/", "time_s", "tokens_per_s", "gpu/")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.startswith(timed)} for x in lines]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", GPU)
def test_a_run_on_a_gpu_is_that_of_the_cpu(place, variant, tmp_path):
    """Same rollouts, so the same losses, to the rounding of float32 over four steps of AdamW."""
    overrides = VARIANTS[variant]
    _, config = at(place, *overrides)
    wanted = trained(config, tmp_path / "cpu", Ranks())
    context, config = at(place, *overrides)
    with context:
        found = weights_of(trained(config, tmp_path / "gpu", Ranks(device=DEVICE)))
    for ours, theirs in zip(values_of(tmp_path / "gpu"), values_of(tmp_path / "cpu"), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    for name, weight in weights_of(wanted).items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("place", GPU)
def test_a_resumed_run_on_a_gpu_has_the_bits_of_the_whole_run(place, tmp_path):
    runs = []
    for name, parts in (("whole", (3,)), ("parts", (1, 3))):
        for steps in parts:
            context, config = at(place, f"train.steps={steps}")
            with context:
                trainer = trained(config, tmp_path / name, Ranks(device=DEVICE))
                assert trainer.policy.model.device.type == "cuda"
                runs.append(weights_of(trainer))
    whole, _, parts = runs
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


NOT_ON_A_GPU = (" in reference.py:", " in operands.py: ids = ids.to(", " in layout.py: table = ")
"""Waits of the reference backend, and of a table that is kept where its tensor is a real one."""


@pytest.mark.parametrize("place", GPU)
def test_the_host_waits_for_a_gpu_as_often_as_is_counted(place, tmp_path):
    """An update waits for its metrics, its clipping and its norm, and for each micro-batch once.

    That one is in transformers, which looks for packed rows among the positions.
    """
    few, many = (waits(place, tmp_path / str(size), size) for size in (1000, 12))
    assert many[0] > few[0]
    assert many[1] - many[0] == few[1] - few[0] <= 3, (few, many)


def waits(place: str, directory, block_tokens: int) -> tuple[int, int]:
    """The micro-batches of an update, and how often the host waits for the device in it.

    All micro-batches are known once the update has waited for its rewards.
    """
    context, config = at(place, f"train.block_tokens={block_tokens}", "train.steps=1")
    with context as device:
        trainer = trained(config, directory, Ranks(device=DEVICE))
        examples = trainer.task.train_examples[: trainer.train_step.examples_needed]
        batch = trainer.train_step.prepare(examples, 2, Stopwatch())
        if place == "pretended":
            device.waits.clear()
            update(trainer, batch)
            found = sum(not any(part in one for part in NOT_ON_A_GPU) for one in device.waits)
            return len(batch.micro_batches), found
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                update(trainer, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found = sum("synchronizing CUDA operation" in str(one.message) for one in seen)
        return len(batch.micro_batches), found


def update(trainer, batch) -> None:
    trainer.train_step.backward(batch, Stopwatch())
    trainer._update()
