"""Evaluates a model without changing the random state of training."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from wavalign_fast.config.schema import TrainConfig
from wavalign_fast.data.records import Completion, Evaluation
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.task_protocol import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(
    config: TrainConfig,
    task: Task,
    model: "PreTrainedModel",
    answers: Sequence[Completion] | None = None,
) -> Evaluation | None:
    """Runs the task's evaluation on ``train.eval_items`` answers; ``None`` if that is 0.

    Args:
        answers: what ``sampled_on_all`` has sampled, if it has.
    """
    if config.eval_items == 0:
        return None
    with _undisturbed(model):
        if answers is not None:
            found: Evaluation = task.judge_evaluation(answers)  # type: ignore[attr-defined]
            return found
        return task.evaluate(model, items=config.eval_items, seed=config.eval_seed)


def sampled_on_all(
    config: TrainConfig, task: Task, model: "PreTrainedModel", ranks: Ranks
) -> list[Completion] | None:
    """Samples the answers of an evaluation, each rank its share; every rank must call this.

    Args:
        model: with whole weights on every rank.

    Returns:
        All answers in order, on all ranks. ``None`` if ``evaluate`` samples them: on one rank, or
        if the task cannot share its evaluation.
    """
    sample: Callable[..., list[Completion]] | None = getattr(task, "sample_evaluation", None)
    if config.eval_items == 0 or ranks.world == 1 or sample is None:
        return None
    given = {"items": config.eval_items, "seed": config.eval_seed}

    def mine() -> list[Completion]:
        with _undisturbed(model):
            return sample(model, **given, rank=ranks.rank, world=ranks.world)

    parts = ranks.on_each(mine)
    total = sum(map(len, parts))
    return [parts[item % ranks.world][item // ranks.world] for item in range(total)]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode, and keeps the random state of training."""
    python_state = random.getstate()
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        model.train(was_training)
