"""Our trainer, through its public classes and a configuration."""

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from wavalign_fast.config.layers import choose_arm, resolve_config
from wavalign_fast.recipes import load_recipe
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.trainer import Trainer

from .work import RATE, Ready, Recorded, Size

RECIPE, ARM = "spoken-sums", "rl-all"
"""The arm without demonstrations, whose loss is on every token, as TRL's."""


def prepare(
    size: Size,
    task: Recorded,
    settings: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    directory: Path,
    clip_norm: float,
) -> Ready:
    """A run of ``steps`` steps, with ``settings`` as the last layer of its configuration."""
    defaults, arms, _ = load_recipe(RECIPE)
    own = {
        "rollout": {
            "prompts": size.prompts,
            "group_size": size.group,
            "max_new_tokens": size.length,
        },
        "loss": {"advantage_std": "sample"},  # TRL's
        "optimizer": {"lr": RATE, "clip_norm": clip_norm},
        "train": {"steps": steps, "seed": seed, "eval_items": 0, "checkpoint_every": 0},
    }
    config = resolve_config([defaults, choose_arm(arms, ARM), own, settings])
    trainer = Trainer(config, cast(Task, task), directory)
    return Ready(trainer.model, partial(trainer.fit, Console(file=io.StringIO())))
