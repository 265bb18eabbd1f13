"""Runs of two ranks: what happens to one happens to both, and no rank waits for a lost one."""

import json
import math
import os
import signal
import sys

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from tests.ranks import run_ranks
from wavalign_fast.errors import UserError
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.stop_signal import Stopped
from wavalign_fast.train.trainer import Trainer


def trained(task, config, directory):
    """Trains as this rank; returns the trainer and what ended the run, if anything did."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    trainer = Trainer(config, task, directory, ranks)
    try:
        trainer.fit(Console(quiet=True))
    except (UserError, Stopped) as ended:
        return trainer, ended
    return trainer, None


def on_rank(rank: int) -> bool:
    return dist.get_rank() == rank


def stopped_run(task, config, directory):
    rewards = task.rewards

    def interrupted(completions):
        if on_rank(1) and task.calls.get("rewards", 0) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return rewards(completions)

    task.rewards = interrupted
    trainer, ended = trained(task, config, directory)
    return [trainer.step, str(ended)]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(toy_task, make_config, tmp_path):
    found = run_ranks(2, stopped_run, toy_task(), make_config(), tmp_path)
    for step, message in found:
        assert step == 2 and message.startswith("stopped by SIGTERM after step 2")
    contents = json.loads((tmp_path / "checkpoint" / "contents.json").read_text())
    assert contents["step"] == 2


def broken_run(task, config, directory):
    """From step 2 on the longest row of rank 1 has hidden states that are not finite."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    trainer = Trainer(config, task, directory, ranks)

    def poison(module, args, output):
        if on_rank(1) and trainer.step >= 1:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden.index_fill(0, torch.tensor([0]), math.nan)

    trainer.model.base_model.register_forward_hook(poison)
    with pytest.raises(UserError) as error:
        trainer.fit(Console(quiet=True))
    weights = [weight.to_local() for weight in trainer.policy.parameters()]
    finite = all(bool(weight.isfinite().all()) for weight in weights)
    saved = json.loads((directory / "checkpoint" / "contents.json").read_text())["step"]
    return [trainer.step, trainer.guard.skipped, finite, saved, str(error.value)]


@pytest.mark.parametrize("kind", ["rollout", "demonstration"])
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all_and_names_the_rows(
    toy_task, make_config, tmp_path, kind
):
    alone = ["anchor.rows=0", "loss.mixing=1"] if kind == "rollout" else ["loss.mixing=0"]
    config = make_config("train.max_nonfinite_steps=2", *alone, "train.block_tokens=1000")
    for step, skipped, finite, saved, message in run_ranks(
        2, broken_run, toy_task(), config, tmp_path
    ):
        assert (step, skipped, finite, saved) == (3, 2, True, 3)
        assert "step 3: " in message and "not finite 2 steps in a row" in message
        named = message.partition("in a row (train.max_nonfinite_steps); in ")[2]
        assert named.startswith(f"{kind} ") and named.count(kind) == 1, message
        assert ("(prompt " in named) == (kind == "rollout")


def judge_fails(task, config, directory):
    rewards = task.rewards

    def failing(completions):
        if on_rank(1) and task.calls.get("rewards", 0) == 2:
            raise UserError("no judge here")
        return rewards(completions)

    task.rewards = failing
    trainer, ended = trained(task, config, directory)
    return [trainer.step, type(ended).__name__, str(ended)]


def test_a_judge_that_fails_on_one_rank_ends_all_with_the_last_step_saved(
    toy_task, make_config, tmp_path
):
    (main, main_kind, main_message), (other, kind, message) = run_ranks(
        2, judge_fails, toy_task(), make_config(), tmp_path
    )
    saved = f"step 3 (checkpoint of step 2 saved in {tmp_path}/checkpoint)"
    assert (main, other) == (2, 2) and (main_kind, kind) == ("OtherRankError", "UserError")
    assert message == f"{saved}: no judge here"
    assert main_message == f"{saved}: rank 1 of 2 failed: no judge here"


def mistaken(task, config, directory):
    """Returns kind and message of what ends the setup of a run whose head is tied."""
    load = task.load_model

    def tied():
        model = load()
        model.config.tie_word_embeddings = True
        model.tie_weights()
        return model

    task.load_model = tied
    with pytest.raises(UserError) as ended:
        trained(task, config, directory)
    return [ended.type.__name__, str(ended.value)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("parallel.replicate=3", "parallel: replicate 3 × shard all given for 2 ranks"),
        ("parallel.head=sharded", "parallel.head: sharded output head: got a head tied"),
        ("optimizer.name=adamw8bit", "adamw8bit needs the package torchao"),
    ],
)
def test_of_a_mistake_in_setup_that_all_ranks_find_one_has_the_report(
    toy_task, make_config, tmp_path, monkeypatch, setting, message
):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    main, other = run_ranks(2, mistaken, toy_task(), make_config(setting), tmp_path)
    assert main[0] == "UserError" and message in main[1]
    assert other == ["OtherRankError", f"rank 0 of 2 failed: {main[1]}"]


def lost_rank(task, config, directory):
    if on_rank(1):
        os._exit(0)  # as a rank whose machine is gone
    try:
        trained(task, config, directory)
    except RuntimeError as error:
        return str(error)
    return None


def test_a_rank_that_is_gone_ends_the_others(toy_task, make_config, tmp_path):
    with pytest.raises(Exception, match=r"(?i)process 1|connection|rank 1"):
        run_ranks(2, lost_rank, toy_task(), make_config(), tmp_path, deadline=60)


def whole_weights(task, config, directory):
    """Trains, and returns the whole weights by name."""
    trainer, ended = trained(task, config, directory)
    whole = {
        name: weight.full_tensor().detach() for name, weight in trainer.policy.named_parameters()
    }
    return [whole, str(ended)]


def test_a_resumed_run_of_two_ranks_has_the_bits_of_the_whole_run(toy_task, make_config, tmp_path):
    def run(steps: int, name: str):
        (tmp_path / name).mkdir(exist_ok=True)
        config = make_config(f"train.steps={steps}")
        return run_ranks(2, whole_weights, toy_task(), config, tmp_path / name)

    whole = run(4, "whole")
    run(2, "parts")
    parts = run(4, "parts")
    for (wanted, _), (found, _) in zip(whole, parts, strict=True):
        for name, weight in wanted.items():
            assert torch.equal(found[name], weight), name
