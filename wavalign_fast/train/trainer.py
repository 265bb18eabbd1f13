"""The training loop of one run: steps, checkpoints, metrics. It is the same for every recipe."""

import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.data.records import Preference
from wavalign_fast.errors import UserError, is_shared, one_line, shared
from wavalign_fast.models import frozen_copy
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.evaluation import evaluate, sampled_on_all
from wavalign_fast.train.evaluation_schedule import EvaluationSchedule
from wavalign_fast.train.model_setup import (
    compute_dtype,
    fill_base_model,
    load_base_model,
    load_mtp,
    middle_rows_of,
    prepare_model,
    set_kernels,
)
from wavalign_fast.train.nonfinite_guard import NonFiniteGuard
from wavalign_fast.train.nonfinite_rows import listed
from wavalign_fast.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from wavalign_fast.train.pairs import offline_pairs
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, WithoutLora, wrapped
from wavalign_fast.train.preference_step import PairBatch, PreferenceStep
from wavalign_fast.train.prompt_sampler import PromptSampler
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.same_on_all import check_same_weights
from wavalign_fast.train.step import StepResult, TrainStep
from wavalign_fast.train.step_batch import StepBatch
from wavalign_fast.train.stop_signal import Stopped, StopSignal
from wavalign_fast.train.task_protocol import Task
from wavalign_fast.train.telemetry import Telemetry
from wavalign_fast.train.two_streams import check_heads, streams_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Trainer:
    """One run in one directory, continued from its newest checkpoint if there is one.

    Every rank has a trainer, and all take the same steps. The main rank alone writes files.

    Args:
        pairs: the offline pairs of DPO, if they are read already.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        directory: Path,
        ranks: Ranks | None = None,
        *,
        pairs: Sequence[Preference] | None = None,
    ) -> None:
        self.config = config
        self.task = task
        self.directory = directory
        self.ranks = ranks or Ranks()
        self.store = CheckpointStore(
            directory,
            config.train.keep_checkpoints,
            self.ranks,
            aside=config.train.async_checkpoint,
        )
        self.step = 0
        self.saved_step: int | None = None
        self.seconds = 0.0
        self.guard = NonFiniteGuard(config.train.max_nonfinite_steps)
        self.schedule = EvaluationSchedule(
            every=config.train.eval_every,
            metric=config.train.keep_best,
            best_is=config.train.best_is,
            patience=config.train.early_stop,
        )
        with self.ranks.failing_together():
            base = load_base_model(config.model, task, in_shards=self.ranks.world > 1)
            check_heads(base, task)
            # Before the reference is copied, so that both round alike.
            set_kernels(base, config.model)
        check_same_weights(partial(middle_rows_of, base, config.model), self.ranks)
        reference: Policy | WithoutLora | None = None
        adapted = config.model.lora.rank > 0
        if config.needs_reference and not adapted:
            # It is never updated, so it needs no more digits than its products have.
            reference = self._wrapped(frozen_copy(base, compute_dtype(config.model)))
        with self.ranks.failing_together():
            prepared = prepare_model(base, config.model, seed=config.train.seed)
            mtp = load_mtp(config, task, prepared)
        self.policy = self._wrapped(prepared, mtp)
        if config.needs_reference and adapted:
            reference = WithoutLora(self.policy)
        with self.ranks.failing_together():
            self.optimizer = build_optimizer(self.policy, config.optimizer)
        with self.store.naming_an_older_one():
            state = self.store.load(self.policy, self.optimizer)
        self.train_step = self._build_step(reference, pairs)
        self.sampler = PromptSampler(len(self.train_step.data), config.train.seed)
        if state is not None:
            with (
                self.ranks.failing_together(),
                self.store.naming_an_older_one(),
                self.store.naming_damage(),
            ):
                self._load_state(state)

    def _build_step(
        self, reference: Policy | WithoutLora | None, pairs: Sequence[Preference] | None
    ) -> Any:  # one of two kinds
        """Returns what a step of ``method`` is computed by."""
        if self.config.method == "dpo":
            assert reference is not None  # `needs_reference` says so
            with self.ranks.failing_together():
                if pairs is None:
                    pairs = offline_pairs(self.config.dpo, self.task)
                return PreferenceStep(
                    self.config, self.task, self.policy, reference, self.ranks, pairs
                )
        return TrainStep(self.config, self.task, self.policy, reference, self.ranks)

    @property
    def model(self) -> "PreTrainedModel":
        """The model that is trained."""
        return self.policy.model

    @contextmanager
    def whole_model(self) -> "Iterator[PreTrainedModel]":
        """Lends the model with whole weights to a block. Every rank must enter it."""
        twin = self.train_step.twin
        twin.refresh()
        try:
            yield twin.model
        finally:
            twin.release()

    def fit(self, console: Console) -> None:
        """Trains up to ``train.steps`` or an early stop.

        Raises:
            Stopped: a signal arrived; a checkpoint is saved.
        """
        try:
            with self.store.finishing():
                self._fit(console)
                if self.saved_step != self.step:
                    self.save()
        finally:
            self.train_step.collect.engine.close()
        self._say_which_is_best(console)

    def _fit(self, console: Console) -> None:
        train = self.config.train
        telemetry = Telemetry(
            self.config, self.directory, self.ranks, self.model, done=self.step, console=console
        )
        with StopSignal() as stop, telemetry:
            while self.step < train.steps and not self.schedule.stops:
                with self.ranks.waiting_for(f"step {self.step + 1} of the other ranks"):
                    self._one_step(telemetry)
                due = train.checkpoint_every and self.step % train.checkpoint_every == 0
                due = due or self.schedule.best_step == self.step
                received = self._stop_signal(stop)
                if due or received:
                    self.save()
                    # Asked again after the save: the signal may arrive while it writes.
                    received = self._stop_signal(stop)
                if received:
                    self.store.finish()
                    raise Stopped(received, self.step, str(self.store.newest))

    def _say_which_is_best(self, console: Console) -> None:
        """Prints why the run stopped early, and where the best checkpoint is."""
        schedule = self.schedule
        if schedule.best_step is None:
            return
        early = f"stopped at step {self.step}, " if self.step < self.config.train.steps else ""
        console.print(
            f"{early}best evaluation at step {schedule.best_step}: {schedule.metric} "
            f"{schedule.best:.4g}, in {self.store.of_step(schedule.best_step)}",
            highlight=False,
            soft_wrap=True,
        )

    def save(self) -> None:
        """Saves a checkpoint with everything that the next step depends on."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "guard": self.guard.state_dict(),
            "evaluations": self.schedule.state_dict(),
            **self._position(),
        }
        best_step = self.schedule.best_step
        self.store.save(self.policy, self.optimizer, state, best_step=best_step)
        self.saved_step = self.step

    def _wrapped(self, model: "PreTrainedModel", mtp: nn.Module | None = None) -> Policy:
        hollow = any(weight.is_meta for weight in model.parameters())
        vectors = getattr(self.task, "prompt_embeddings", None)
        policy = wrapped(
            Policy(model, vectors, streams_of(self.task), mtp),
            self.config.parallel,
            self.ranks,
            compute_dtype=compute_dtype(self.config.model),
        )
        if hollow:
            with self.ranks.failing_together():
                fill_base_model(model, self.config.model)
        return policy

    def _stop_signal(self, stop: StopSignal) -> int:
        """Returns the signal that some rank received, 0 for none: all stop after the same step."""
        return int(self.ranks.largest([stop.received or 0])[0])

    def _load_state(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.saved_step = self.step
        self.guard.load_state_dict(state["guard"])
        self.schedule.load_state_dict(state["evaluations"])
        self._load_position(state)

    def _one_step(self, telemetry: Telemetry) -> None:
        telemetry.before_step(self.step + 1)
        start = time.perf_counter()
        clock = Stopwatch()
        batch, updates = self._updates(clock)
        self.step += 1
        elapsed = time.perf_counter() - start
        self.seconds += elapsed
        metrics = _means([update.metrics for update in updates])
        metrics |= {**clock.metrics(), "perf/step_s": elapsed}
        metrics |= telemetry.measured(batch.work, batch.tokens, elapsed)
        metrics |= self._evaluated()
        try:
            self._record(metrics, updates)
        finally:
            metrics["skipped_steps"] = float(self.guard.skipped)
            telemetry.after_step(self.step, self.seconds, metrics)

    def _evaluated(self) -> dict[str, float]:
        """Evaluates if that is due after this step, and returns the metrics as ``eval/...``."""
        if not self.schedule.due(self.step):
            return {}
        start = time.perf_counter()
        with self.whole_model() as model:
            answers = sampled_on_all(self.config.train, self.task, model, self.ranks)

            def metrics_of() -> dict[str, float]:
                found = evaluate(self.config.train, self.task, model, answers)
                return found.metrics if found else {}

            found = self.ranks.on_main(metrics_of)
        self.schedule.record(self.step, found)
        seconds = time.perf_counter() - start
        return {f"eval/{name}": value for name, value in found.items()} | {
            "perf/evaluation_s": seconds
        }

    def _record(self, metrics: dict[str, float], updates: "Sequence[_Update]") -> None:
        """Counts a step with an update left out, names its rows; the last one in a row saves."""
        rows = ""
        broken = next((update.result for update in updates if not update.finite), None)
        if broken is not None:
            rows = listed(broken.broken.names(self.ranks))
            if self.ranks.is_main:
                logger.warning("step %d is skipped, not finite: %s", self.step, rows)
        try:
            self.guard.record(
                finite=broken is None,
                step=self.step,
                loss=metrics["loss/total"],
                grad_norm=metrics["grad_norm"],
                rows=rows,
            )
        except UserError:
            self.save()
            raise

    def _updates(self, clock: Stopwatch) -> "tuple[StepBatch | PairBatch, list[_Update]]":
        """Makes the updates of a step; if the first fails, saves the steps before it."""
        before = self._position()
        step = self.step + 1
        self._seed_globals(step)
        updates: list[_Update] = []
        try:
            taken = self.sampler.take(self.train_step.examples_needed)
            examples = [self.train_step.data[index] for index in taken]
            with self.ranks.waiting_for("the other ranks"):
                batch = self.train_step.prepare(examples, step, clock)
                for _ in range(self.config.train.updates_per_rollout):
                    result = self.train_step.backward(batch, clock)
                    with clock("optimizer"):
                        updates.append(_Update(result, *self._update(skip=result.empty)))
            return batch, updates
        except Exception as error:
            self._load_position(before)
            # After an update the weights are no longer those of a whole step.
            note = "" if updates else self._saved_after_failure(error)
            where = f"step {step}{note}"
            if isinstance(error, UserError):
                named = type(error)(f"{where}: {error}")
                raise (shared(named) if is_shared(error) else named) from error
            logger.error("failed in %s", where)
            raise

    def _seed_globals(self, step: int) -> None:
        """Makes what a task or a dropout layer draws a function of seed, step and rank.

        So a resumed run draws the same, and a checkpoint has no random state.
        """
        source = random.Random(f"step:{self.config.train.seed}:{step}:{self.ranks.rank}")
        torch.manual_seed(source.getrandbits(63))
        random.seed(source.getrandbits(63))

    def _saved_after_failure(self, error: Exception) -> str:
        """Saves the last complete step unless it is saved; returns a note for the error message.

        All ranks save together, so a failure of one rank alone saves nothing.
        """
        if self.step in (0, self.saved_step) or (self.ranks.world > 1 and not is_shared(error)):
            return ""
        try:
            self.save()
            self.store.finish()
        except Exception as unsaved:  # the caller raises the failure that led here
            return f" (checkpoint of step {self.step} could not be saved: {one_line(unsaved)})"
        return f" (checkpoint of step {self.step} saved in {self.store.newest})"

    def _position(self) -> dict[str, Any]:
        """Returns the state that a step changes before it updates the weights."""
        return {
            **self.train_step.state_dict(),
            "sampler": self.sampler.state_dict(),
        }

    def _load_position(self, state: dict[str, Any]) -> None:
        self.train_step.load_state_dict(state)
        self.sampler.load_state_dict(state["sampler"])

    def _update(self, *, skip: bool = False) -> tuple[float, float, bool]:
        """Clips and applies the gradients if they are finite; returns (rate, norm, finite).

        Args:
            skip: leave the weights alone, which the moments of the optimizer would move.
        """
        optimizer = self.config.optimizer
        rate = learning_rate(optimizer, self.step + 1, self.config.train.steps)
        set_learning_rate(self.optimizer, rate)
        limit = optimizer.clip_norm or math.inf
        total = nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        # Of sharded gradients the norm is a DTensor; the whole one is the same on all ranks.
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
        finite = math.isfinite(norm)
        if finite and not skip:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate, norm, finite


@dataclass(frozen=True)
class _Update:
    """One update of the weights, or one that was left out because it was not finite."""

    result: StepResult
    rate: float
    grad_norm: float
    finite: bool

    @property
    def metrics(self) -> dict[str, float]:
        return self.result.metrics | {"grad_norm": self.grad_norm, "lr": self.rate}


def _means(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the updates that have it."""
    names = dict.fromkeys(name for metrics in updates for name in metrics)
    found = {name: [m[name] for m in updates if name in m] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}
