"""Trains and evaluates the arms of one ``train`` command; evaluates the base model once."""

import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Evaluation
from wavalign_fast.errors import UserError, did_you_mean, one_line, shown, user_input
from wavalign_fast.ops import backend_status
from wavalign_fast.outputs import reserve
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.model_setup import load_base_model
from wavalign_fast.train.owned_files import (
    CONFIG_FILE,
    drop_replaced,
    put_back,
    recorded_arms,
    set_aside,
)
from wavalign_fast.train.provenance import record_start
from wavalign_fast.train.result_table import result_table
from wavalign_fast.train.run_directory import (
    add_arm,
    changes,
    check_same_data,
    check_steps,
    fingerprint,
    finished_metrics,
    remove_arm,
    start_run,
    write_evaluation,
)
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

PROBE_LIMIT = 1 << 30
"""Largest file, in bytes, that is created to test whether the disk takes a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of the command: its config, its directory, and how to make its task."""

    config: RunConfig
    directory: Path
    make_task: Callable[[], Task]
    in_folder_of_arms: bool = False
    """Whether the directory is one of several in a folder of arms."""
    words: Sequence[str] = ()
    """The arguments of the command, as the user typed them."""

    @property
    def label(self) -> str:
        """The name of the run in messages and tables."""
        return self.config.arm or self.config.recipe


def run_all(specs: Sequence[RunSpec], *, resume: bool, overwrite: bool, console: Console) -> None:
    """Trains and evaluates each run in turn; with ``resume``, skips the finished ones.

    The caller holds the lock of every directory and has checked that it can take its run.
    """
    for spec in specs:
        _check_backend(spec.config.loss.backend)
    if any(spec.config.loss.clip is not None for spec in specs):
        _say_that_nothing_is_clipped()
    bases: dict[tuple[Any, ...], Evaluation | None] = {}
    finals: dict[str, dict[str, float]] = {}
    todo = []
    for spec in specs:
        finished = finished_metrics(spec.directory, spec.config) if resume else None
        if finished is None:
            todo.append(spec)
            continue
        console.print(
            f"{spec.label}: finished before, in {spec.directory}", highlight=False, soft_wrap=True
        )
        finals[spec.label] = finished
    for number, spec in enumerate(todo):
        config = spec.config
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        task = spec.make_task()
        data = fingerprint(task.train_examples)
        if resume:
            check_same_data(spec.directory, data)
        key = (
            config.train.eval_items,
            config.train.eval_seed,
            config.model.path,
            config.model.dtype,
        )
        if key not in bases:
            base = bases[key] = _evaluate_base(todo[number:], task, console)
            finals["base"] = base.metrics if base else {}
        final = _train(spec, task, data, bases[key], console, resume=resume, overwrite=overwrite)
        finals[spec.label] = final.metrics if final else {}
    # The base first, then the arms in the order of the command, whenever they were finished.
    order = [name for name in ("base", *(spec.label for spec in specs)) if name in finals]
    if table := result_table({name: finals[name] for name in order}, width=console.width):
        console.print(table, highlight=False, markup=False, soft_wrap=True)


def _evaluate_base(specs: Sequence[RunSpec], task: Task, console: Console) -> Evaluation | None:
    """Checks the disk for these runs, and evaluates the base model as the first one asks.

    The base is freed on return: training loads a model of its own.
    """
    with user_input("task"):
        model = load_base_model(specs[0].config.model, task)
    _check_space(specs, model)
    config = specs[0].config
    if config.train.eval_items:
        console.print("evaluating the base model", highlight=False)
    return _evaluate(config, task, model)


def _check_backend(backend: str) -> None:
    """Raises ``UserError`` for an unusable backend now, instead of in the first step."""
    source = "loss.backend"
    if backend == "auto":
        source, backend = "WAVALIGN_BACKEND", os.environ.get("WAVALIGN_BACKEND", "auto")
    status = backend_status()
    if backend != "auto" and backend not in status:
        raise UserError(
            f"{source}: {shown(backend)} given, wanted auto or one of {', '.join(status)}"
            f"{did_you_mean(backend, status)}"
        )
    if backend != "auto" and (reason := status[backend]) is not None:
        raise UserError(f"{source}: {backend} cannot be used here: {reason}")


def _say_that_nothing_is_clipped() -> None:
    """Logs once, in terms of the configuration, what the losses would warn about."""
    warnings.filterwarnings("ignore", message="clip = ")
    logger.warning(
        "loss.clip changes nothing: each batch of rollouts is used for one update, so every "
        "probability ratio is 1"
    )


def _check_space(specs: Sequence[RunSpec], model: "PreTrainedModel") -> None:
    """Raises ``UserError`` if the disk has no room for the checkpoints."""
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # A checkpoint has the weights and AdamW's two moments. The last one is removed only afterwards.
    largest, size = 2 * weights, 3 * weights
    count = 1
    for spec in specs:
        train = spec.config.train
        saves = train.steps // train.checkpoint_every + 1 if train.checkpoint_every else 1
        has_one = CheckpointStore(spec.directory).newest.exists()
        count += 0 if has_one else min(train.keep_checkpoints, saves)
    directory = specs[0].directory
    disk = shutil.disk_usage(directory)
    mib = (size >> 20) + 1
    if disk.total and disk.free < count * size:  # some file systems report 0
        raise UserError(
            f"{directory}: {disk.free >> 20} MiB free on its disk, wanted {count * mib} MiB "
            f"for {count} checkpoints of {mib} MiB"
        )
    try:
        reserve(directory, min(largest, PROBE_LIMIT))
    except OSError as error:
        raise UserError(
            f"{directory} does not take a checkpoint of {mib} MiB: {one_line(error)}"
        ) from error


def _train(
    spec: RunSpec,
    task: Task,
    data: dict[str, Any],
    base: Evaluation | None,
    console: Console,
    *,
    resume: bool,
    overwrite: bool,
) -> Evaluation | None:
    directory = spec.directory
    resume = resume and (directory / CONFIG_FILE).is_file()
    new_arm = spec.in_folder_of_arms and directory.name not in recorded_arms(directory.parent)
    trainer = _start(spec, task, data, console, resume=resume, overwrite=overwrite)
    try:
        trainer.fit(console)
    except BaseException:
        if not resume and trainer.step == 0:  # nothing was trained, so nothing is left behind
            put_back(directory)
            if new_arm:
                remove_arm(directory.parent, directory.name)
        raise
    final = _evaluate(spec.config, task, trainer.model)
    write_evaluation(directory, spec.config, seconds=trainer.seconds, base=base, final=final)
    return final


def _start(
    spec: RunSpec,
    task: Task,
    data: dict[str, Any],
    console: Console,
    *,
    resume: bool,
    overwrite: bool,
) -> Trainer:
    """Prepares a trainer; if that fails, restores the directory."""
    directory, steps = spec.directory, spec.config.train.steps
    if overwrite:
        set_aside(directory)
    try:
        trainer = Trainer(spec.config, task, directory)
        lines = []
        if resume:
            check_steps(directory, spec.config, trainer.step)
            done = f"step {trainer.step} of {steps}" if trainer.step else "the start, no checkpoint"
            lines = [f"continuing {directory} from {done}", *changes(directory, spec.config)]
        start_run(directory, spec.config, data=data)
        record_start(
            directory,
            words=spec.words,
            step=trainer.step,
            reward_scale=getattr(task, "reward_scale", None),
        )
        if spec.in_folder_of_arms:
            add_arm(directory.parent, directory.name)
    except BaseException:
        if not resume:
            put_back(directory)
        raise
    drop_replaced(directory)
    for line in lines:
        console.print(f"{spec.label}: {line}", highlight=False, markup=False, soft_wrap=True)
    return trainer


def _evaluate(config: RunConfig, task: Task, model: "PreTrainedModel") -> Evaluation | None:
    """Runs the task's evaluation without changing the random state of training."""
    if config.train.eval_items == 0:
        return None
    python_state = random.getstate()
    model.eval()
    with torch.random.fork_rng(devices=[]):
        evaluation = task.evaluate(
            model, items=config.train.eval_items, seed=config.train.eval_seed
        )
    random.setstate(python_state)
    return evaluation
