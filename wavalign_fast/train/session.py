"""One ``train`` command: one or several runs, the base model evaluated once for all of them."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from wavalign_fast.config import RunConfig
from wavalign_fast.data.records import Evaluation
from wavalign_fast.errors import UserError
from wavalign_fast.ops import backend_status
from wavalign_fast.train.loop import Trainer
from wavalign_fast.train.run_dir import check_run, finished_metrics, start_run, write_evaluation
from wavalign_fast.train.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run to do: its config, where it goes, and how its task is made."""

    config: RunConfig
    directory: Path
    make_task: Callable[[], Task]


def run_plans(plans: Sequence[Plan], *, resume: bool, overwrite: bool, console: Console) -> None:
    """Trains and evaluates every plan in turn; ``resume`` leaves finished ones as they are."""
    if resume and not any(plan.directory.exists() for plan in plans):
        raise UserError(f"nothing to resume in {plans[0].directory}")
    for plan in plans:
        _check_backend(plan.config.loss.backend)
        check_run(plan.directory, plan.config, resume=resume, overwrite=overwrite)
    base_metrics: dict[tuple[int, int], dict[str, float]] = {}
    finals: dict[str, dict[str, float]] = {}
    for plan in plans:
        config = plan.config
        label = config.arm or config.recipe
        finished = finished_metrics(plan.directory, config) if resume else None
        if finished is not None:
            console.print(f"{label}: finished before, in {plan.directory}", highlight=False)
            finals[label] = finished
            continue
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        task = plan.make_task()
        key = (config.train.eval_items, config.train.eval_seed)
        if key not in base_metrics:
            console.print("evaluating the base model", highlight=False)
            base = _evaluate(config, task, task.load_model())
            base_metrics[key] = base.metrics if base else {}
            finals["base"] = base_metrics[key]
        start_run(plan.directory, config, overwrite=overwrite)
        final = _train(plan, task, base_metrics[key], console)
        finals[label] = final.metrics if final else {}
    _print_table(finals, console)


def _check_backend(backend: str) -> None:
    """Finds out before anything is trained; the loss would say so in its first step."""
    source = "loss.backend"
    if backend == "auto":
        source, backend = "WAVALIGN_BACKEND", os.environ.get("WAVALIGN_BACKEND", "auto")
    status = backend_status()
    if backend != "auto" and backend not in status:
        raise UserError(f"{source}: {backend!r} given, wanted auto or one of {', '.join(status)}")
    if backend != "auto" and (reason := status[backend]) is not None:
        raise UserError(f"{source}: {backend} cannot be used here: {reason}")


def _train(plan: Plan, task: Task, base: dict[str, float], console: Console) -> Evaluation | None:
    trainer = Trainer(plan.config, task, plan.directory)
    trainer.fit(console)
    final = _evaluate(plan.config, task, trainer.model)
    write_evaluation(plan.directory, plan.config, seconds=trainer.seconds, base=base, final=final)
    return final


def _evaluate(config: RunConfig, task: Task, model: "PreTrainedModel") -> Evaluation | None:
    """The task's evaluation, apart from the random state of training."""
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


def _print_table(finals: dict[str, dict[str, float]], console: Console) -> None:
    names = list(dict.fromkeys(name for metrics in finals.values() for name in metrics))
    if not names:
        return
    table = Table(box=None, header_style="bold")
    table.add_column("held out")
    for label in finals:
        table.add_column(label, justify="right")
    for name in names:
        cells = [f"{metrics[name]:.3f}" if name in metrics else "" for metrics in finals.values()]
        table.add_row(name, *cells)
    console.print(table)
