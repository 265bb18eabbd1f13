"""The training loop of one run: steps, checkpoints, metrics. It is the same for every recipe."""

import copy
import logging
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, one_line
from wavalign_fast.gpu_monitor import GpuMonitor
from wavalign_fast.models import check_vocabulary, frozen_copy
from wavalign_fast.train.checkpoint import CheckpointStore, random_state, restore_random_state
from wavalign_fast.train.metric_writers import MetricWriter, open_writers
from wavalign_fast.train.model_setup import load_base_model, prepare_model
from wavalign_fast.train.nonfinite_guard import NonFiniteGuard
from wavalign_fast.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from wavalign_fast.train.progress import ProgressDisplay
from wavalign_fast.train.prompt_sampler import PromptSampler
from wavalign_fast.train.step import Stopwatch, TrainStep
from wavalign_fast.train.stop_signal import Stopped, StopSignal
from wavalign_fast.train.task_protocol import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

GPU_INTERVAL_S = 0.5


class Trainer:
    """One run in one directory, continued from its newest checkpoint if there is one."""

    def __init__(self, config: RunConfig, task: Task, directory: Path) -> None:
        self.config = config
        self.task = task
        self.directory = directory
        self.store = CheckpointStore(directory, config.train.keep_checkpoints)
        self.step = 0
        self.saved_step: int | None = None
        self.seconds = 0.0
        seed = config.train.seed
        torch.manual_seed(seed)
        random.seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = random.Random(seed)
        self.sampler = PromptSampler(len(task.train_examples), seed)
        self.guard = NonFiniteGuard(config.train.max_nonfinite_steps)
        self._load()

    def fit(self, console: Console) -> None:
        """Trains up to ``train.steps``; after a signal, saves and raises ``Stopped``."""
        train = self.config.train
        title = self.config.arm or self.config.recipe
        writers = open_writers(self.directory, self.step)
        display = ProgressDisplay(
            console, title=title, steps=train.steps, done=self.step, log_every=train.log_every
        )
        try:
            monitor = GpuMonitor(self.model.device, interval_s=GPU_INTERVAL_S)
            with StopSignal() as stop, display, monitor as gpu:
                if self.model.device.type == "cuda" and gpu.status is not None:
                    logger.warning("no gpu/ metrics: %s", gpu.status)
                while self.step < train.steps:
                    self._one_step(writers, display, gpu)
                    due = train.checkpoint_every and self.step % train.checkpoint_every == 0
                    if due or stop.received is not None:
                        self.save()
                    # Asked again after the save: the signal may arrive while it writes.
                    if stop.received is not None:
                        raise Stopped(stop.received, self.step, str(self.store.newest))
        finally:
            for writer in writers:
                writer.close()
        if self.saved_step != self.step:
            self.save()

    def save(self) -> None:
        """Saves a checkpoint with everything that the next step depends on."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "guard": self.guard.state_dict(),
            **self._position(),
        }
        self.store.save(self.model, self.optimizer, state)
        self.saved_step = self.step

    def _load(self) -> None:
        """Loads the base model, or the newest checkpoint of this run."""
        base = load_base_model(self.config.model, self.task)
        check_vocabulary(base, self.task.layout)
        reference = frozen_copy(base) if self.config.needs_reference else None
        self.model: PreTrainedModel = prepare_model(base, self.config.model)
        self.optimizer = build_optimizer(self.model, self.config.optimizer)
        with self.store.naming_an_older_one():
            state = self.store.load(self.model, self.optimizer)
        self.train_step = TrainStep(
            self.config, self.task, self.model, reference, self.generator, self.rng
        )
        if state is not None:
            with self.store.naming_an_older_one(), self.store.naming_damage():
                self._load_state(state)

    def _load_state(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.saved_step = self.step
        self.guard.load_state_dict(state["guard"])
        self._load_position(state)

    def _one_step(
        self, writers: list[MetricWriter], display: ProgressDisplay, gpu: GpuMonitor
    ) -> None:
        start = time.perf_counter()
        clock = Stopwatch()
        tensors = self._gradients(clock)
        with clock("optimizer"):
            rate, grad_norm, finite = self._update()
        self.step += 1
        values = torch.stack([value.double() for value in tensors.values()]).tolist()
        metrics = dict(zip(tensors, values, strict=True))
        elapsed = time.perf_counter() - start
        self.seconds += elapsed
        metrics["tokens_per_s"] = metrics.pop("tokens") / elapsed
        metrics |= {"grad_norm": grad_norm, "lr": rate, **clock.metrics(), "perf/step_s": elapsed}
        metrics |= gpu.metrics()
        try:
            self.guard.record(
                finite=finite, step=self.step, loss=metrics["loss/total"], grad_norm=grad_norm
            )
        except UserError:
            self.save()
            raise
        finally:
            metrics["skipped_steps"] = float(self.guard.skipped)
            for writer in writers:
                writer.write(self.step, self.seconds, metrics)
        display.update(self.step, metrics)

    def _gradients(self, clock: Stopwatch) -> dict[str, Tensor]:
        """Computes gradients and metrics of a step; if that fails, saves the steps before it."""
        before = self._position()
        try:
            taken = self.sampler.take(self.train_step.examples_needed)
            return self.train_step([self.task.train_examples[index] for index in taken], clock)
        except Exception as error:
            self._load_position(before)
            where = f"step {self.step + 1}{self._saved_after_failure()}"
            if isinstance(error, UserError):
                raise UserError(f"{where}: {error}") from error
            logger.error("failed in %s", where)
            raise

    def _saved_after_failure(self) -> str:
        """Saves the last complete step unless it is saved; returns a note for the error message."""
        if self.step in (0, self.saved_step):
            return ""
        try:
            self.save()
        except Exception as error:  # the caller raises the failure that led here
            return f" (checkpoint of step {self.step} could not be saved: {one_line(error)})"
        return f" (checkpoint of step {self.step} saved in {self.store.newest})"

    def _position(self) -> dict[str, Any]:
        """Returns the state that a step changes before it updates the weights."""
        return {
            "objective": copy.deepcopy(self.train_step.objective.state_dict()),
            "sampler": self.sampler.state_dict(),
            "random": random_state(self.generator, self.rng),
        }

    def _load_position(self, state: dict[str, Any]) -> None:
        self.train_step.objective.load_state_dict(state["objective"])
        self.sampler.load_state_dict(state["sampler"])
        restore_random_state(state["random"], self.generator, self.rng)

    def _update(self) -> tuple[float, float, bool]:
        """Clips and applies the gradients if they are finite; returns (rate, norm, finite)."""
        optimizer = self.config.optimizer
        rate = learning_rate(optimizer, self.step + 1, self.config.train.steps)
        set_learning_rate(self.optimizer, rate)
        limit = optimizer.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        finite = math.isfinite(norm)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate, norm, finite
