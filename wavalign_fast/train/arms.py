"""Trains and evaluates the arms of one ``train`` command; evaluates the base model once."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Completion, Evaluation, Preference
from wavalign_fast.errors import UserError, did_you_mean, shown, user_input
from wavalign_fast.ops import backend_status
from wavalign_fast.train import same_on_all
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.disk_space import check_space
from wavalign_fast.train.evaluation import evaluate, sampled_on_all
from wavalign_fast.train.evaluation_schedule import check_metric
from wavalign_fast.train.export import export_run, is_sharded
from wavalign_fast.train.model_setup import check_kernels, load_base_model
from wavalign_fast.train.owned_files import (
    CONFIG_FILE,
    drop_replaced,
    put_back,
    recorded_arms,
    set_aside,
)
from wavalign_fast.train.pairs import offline_pairs
from wavalign_fast.train.provenance import record_start
from wavalign_fast.train.ranks import Ranks
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
from wavalign_fast.train.trackers import check_tracker
from wavalign_fast.train.trainer import Trainer
from wavalign_fast.train.two_streams import check_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


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


def run_all(
    specs: Sequence[RunSpec], *, resume: bool, overwrite: bool, console: Console, ranks: Ranks
) -> None:
    """Trains and evaluates each run in turn; with ``resume``, skips the finished ones.

    All ranks train, and share the sampling of evaluations. The main rank alone judges answers,
    evaluates the base model and writes files, and its ``console`` alone prints. The caller holds
    the lock of every directory and has checked that it can take its run.
    """
    with ranks.failing_together():
        for spec in specs:
            _check_backend(spec.config.loss.backend)
            check_kernels(spec.config.model)
            check_tracker(spec.config.telemetry.tracker)
    named = [{"task": s.config.task, "model": s.config.model.model_dump()} for s in specs]
    same_on_all.check_same_files(named, ranks)
    if any(spec.config.loss.clip is not None for spec in specs):
        _say_what_is_clipped(specs)
    bases: dict[tuple[Any, ...], Evaluation | None] = {}
    finals: dict[str, dict[str, float]] = {}
    todo = []
    for spec in specs:
        finished = ranks.on_main(partial(_finished, spec, resume))
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
        with ranks.failing_together():
            task = spec.make_task()
            for later in todo[number:]:  # an arm of the same model, before the first one trains
                if _base_of(later.config) == _base_of(config):
                    check_options(later.config, task)
            pairs = offline_pairs(config.dpo, task) if config.method == "dpo" else []
            data = fingerprint(task.train_examples, pairs)
            if resume and ranks.is_main:
                check_same_data(spec.directory, data)
        same_on_all.check_same_data(data, ranks)
        key = _base_of(config)
        if key not in bases:
            continued = [s for s in todo[number:] if resume and _base_of(s.config) == key]
            with ranks.waiting_for("the evaluation of the base model on rank 0"):
                base = ranks.on_main(
                    partial(_evaluate_base, todo[number:], continued, task, ranks.world, console)
                )
            bases[key] = base
            finals["base"] = base.metrics if base else {}
        arm = _Arm(spec, task, pairs, data, ranks, console)
        finals[spec.label] = _train(arm, bases[key], resume=resume, overwrite=overwrite)
    # The base first, then the arms in the order of the command, whenever they were finished.
    order = [name for name in ("base", *(spec.label for spec in specs)) if name in finals]
    if table := result_table({name: finals[name] for name in order}, width=console.width):
        console.print(table, highlight=False, markup=False, soft_wrap=True)


def _finished(spec: RunSpec, resume: bool) -> dict[str, float] | None:
    return finished_metrics(spec.directory, spec.config) if resume else None


def _base_of(config: RunConfig) -> tuple[Any, ...]:
    """What the base model and its evaluation depend on."""
    train, model = config.train, config.model
    return train.eval_items, train.eval_seed, model.path, model.dtype


def _evaluate_base(
    specs: Sequence[RunSpec],
    continued: Sequence[RunSpec],
    task: Task,
    world: int,
    console: Console,
) -> Evaluation | None:
    """Checks the disk for these runs, and evaluates the base model as the first one asks.

    What the runs keep the best of must be among its metrics: a mistake ends no run after hours.
    The checkpoints of those that are ``continued`` must be of this model.

    The base is freed on return: training loads a model of its own.
    """
    with user_input("task"):
        model = load_base_model(specs[0].config.model, task)
    for spec in continued:
        CheckpointStore(spec.directory).check_model(model)
    check_space([(spec.config, spec.directory) for spec in specs], model, world)
    config = specs[0].config
    if config.train.eval_items:
        console.print("evaluating the base model", highlight=False)
    base = evaluate(config.train, task, model)
    if base is not None:
        for spec in specs:
            check_metric(spec.config.train.keep_best, base.metrics)
    return base


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


def _say_what_is_clipped(specs: Sequence[RunSpec]) -> None:
    """Logs once, in terms of the configuration, what the losses would warn about."""
    warnings.filterwarnings("ignore", message="clip = ")
    once = [spec for spec in specs if spec.config.train.updates_per_rollout == 1]
    if any(spec.config.loss.clip is not None for spec in once):
        logger.warning(
            "loss.clip changes nothing: with train.updates_per_rollout 1 each batch of rollouts is "
            "used for one update, so every probability ratio is 1"
        )


@dataclass(frozen=True)
class _Arm:
    """One run that is about to be trained."""

    spec: RunSpec
    task: Task
    pairs: Sequence[Preference]
    """The offline pairs of DPO."""
    data: dict[str, Any]
    """The fingerprint of the training examples."""
    ranks: Ranks
    console: Console


def _train(
    arm: _Arm, base: Evaluation | None, *, resume: bool, overwrite: bool
) -> dict[str, float]:
    """Trains and evaluates; returns the metrics of the evaluation."""
    spec, ranks, directory = arm.spec, arm.ranks, arm.spec.directory
    folder = directory.parent
    resume = ranks.on_main(lambda: resume and (directory / CONFIG_FILE).is_file())
    new_arm = ranks.on_main(
        lambda: spec.in_folder_of_arms and directory.name not in recorded_arms(folder)
    )
    trainer = _start(arm, resume=resume, overwrite=overwrite)
    try:
        trainer.fit(arm.console)
    except BaseException:
        # Nothing was trained, so nothing is left behind.
        if not resume and trainer.step == 0 and ranks.is_main:
            put_back(directory)
            if new_arm:
                remove_arm(folder, directory.name)
        raise

    def evaluated(
        model: "PreTrainedModel", answers: Sequence[Completion] | None
    ) -> dict[str, float]:
        if is_sharded(trainer.store.newest):
            began_with = partial(load_base_model, spec.config.model, arm.task)
            model_in = export_run(directory, base=began_with)
            arm.console.print(f"model:  {model_in}", highlight=False, soft_wrap=True)
        final = evaluate(spec.config.train, arm.task, model, answers)
        write_evaluation(directory, spec.config, seconds=trainer.seconds, base=base, final=final)
        return final.metrics if final else {}

    with trainer.whole_model() as model, ranks.waiting_for("the evaluation on rank 0"):
        answers = sampled_on_all(spec.config.train, arm.task, model, ranks)
        return ranks.on_main(partial(evaluated, model, answers))


def _start(arm: _Arm, *, resume: bool, overwrite: bool) -> Trainer:
    """Prepares a trainer; if that fails, restores the directory."""
    spec, ranks, directory = arm.spec, arm.ranks, arm.spec.directory
    if overwrite:
        ranks.on_main(partial(set_aside, directory))
    try:
        trainer = Trainer(spec.config, arm.task, directory, ranks, pairs=arm.pairs)
        lines = ranks.on_main(partial(_started, arm, trainer.step, resume=resume))
    except BaseException:
        if not resume and ranks.is_main:
            put_back(directory)
        raise
    ranks.on_main(partial(drop_replaced, directory))
    for line in lines:
        arm.console.print(f"{spec.label}: {line}", highlight=False, markup=False, soft_wrap=True)
    return trainer


def _started(arm: _Arm, done: int, *, resume: bool) -> list[str]:
    """Marks the directory as a run that has ``done`` steps; returns what to tell the user."""
    spec, directory = arm.spec, arm.spec.directory
    lines: list[str] = []
    if resume:
        check_steps(directory, spec.config, done)
        where = f"step {done} of {spec.config.train.steps}" if done else "the start, no checkpoint"
        lines = [f"continuing {directory} from {where}", *changes(directory, spec.config)]
    start_run(directory, spec.config, data=arm.data)
    record_start(
        directory,
        words=spec.words,
        step=done,
        reward_scale=getattr(arm.task, "reward_scale", None),
    )
    if spec.in_folder_of_arms:
        add_arm(directory.parent, directory.name)
    return lines
