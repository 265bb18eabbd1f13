"""Evaluates a model without changing the random state of training."""

import random
from typing import TYPE_CHECKING

import torch

from wavalign_fast.config.schema import TrainConfig
from wavalign_fast.data.records import Evaluation
from wavalign_fast.train.task_protocol import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(config: TrainConfig, task: Task, model: "PreTrainedModel") -> Evaluation | None:
    """Runs the task's evaluation on ``train.eval_items`` answers; ``None`` if that is 0."""
    if config.eval_items == 0:
        return None
    python_state = random.getstate()
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            return task.evaluate(model, items=config.eval_items, seed=config.eval_seed)
    finally:
        random.setstate(python_state)
        model.train(was_training)
