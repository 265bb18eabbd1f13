"""Reports a run while it trains: metrics, progress, the use of the machine, a profile.

The trainer calls one object, on all ranks alike; the main rank alone writes, prints and profiles.
"""

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from typing_extensions import Self

from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import one_line
from wavalign_fast.gpu_monitor import GpuMonitor
from wavalign_fast.gpu_specifications import peak_flops
from wavalign_fast.train.flops import ModelSize, StepTokens, mfu, model_size, step_flops
from wavalign_fast.train.memory import memory_in_use
from wavalign_fast.train.metric_writers import JsonlWriter, MetricWriter, open_tensorboard
from wavalign_fast.train.owned_files import METRICS_FILE
from wavalign_fast.train.profile_window import ProfileWindow
from wavalign_fast.train.progress import ProgressDisplay
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.trackers import open_tracker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

GPU_INTERVAL_S = 0.5


class Telemetry:
    """Reports the steps of one run. ``gpu/`` metrics are those of the main rank's GPU.

    Args:
        model: whose matrices the model flops are counted from.
        done: the step that the run starts after.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        ranks: Ranks,
        model: "PreTrainedModel",
        *,
        done: int,
        console: Console,
    ) -> None:
        self.config = config
        self.directory = directory
        self.ranks = ranks
        self.console = console
        self._step = done
        self._size = _size(model)
        self._peak = _peak(ranks.device, config)
        window = config.telemetry.profile_steps if ranks.is_main else None
        self._profile = ProfileWindow(window, directory)
        self._open = ExitStack()
        self._writers: list[MetricWriter] = []
        self._display: ProgressDisplay | None = None
        self._gpu: GpuMonitor | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.push(self._open)  # closes what was opened if the rest, or another rank, fails
            with self.ranks.failing_together():
                if self.ranks.is_main:
                    self._start()
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            self._profile.close(self._step)

    def before_step(self, step: int) -> None:
        """Call this first in every step."""
        self._profile.before_step(step)

    def measured(self, work: StepTokens, tokens: float, elapsed: float) -> dict[str, float]:
        """Returns the metrics of what a step cost. All ranks must call this: they communicate.

        Args:
            work: the tokens of the step over all ranks, by what was computed of them.
            tokens: the ids of its prompts and answers.
            elapsed: its seconds.
        """
        world = self.ranks.world
        metrics = {"tokens_per_s": tokens / elapsed}
        if world > 1:
            metrics["tokens_per_s_per_rank"] = tokens / elapsed / world
        if self._size is not None:
            flops = step_flops(self._size, work).model
            metrics["perf/model_tflops_per_rank"] = flops / elapsed / world / 1e12
            if self._peak is not None:
                metrics["perf/mfu"] = mfu(flops, elapsed, self._peak, devices=world)
        memory = memory_in_use(self.ranks.device)
        metrics |= zip(memory, self.ranks.largest(list(memory.values())), strict=True)
        return metrics | (self._gpu.metrics() if self._gpu is not None else {})

    def after_step(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Writes and shows the metrics of a step; ``seconds`` is the training time so far."""
        self._step = step
        self._profile.after_step(step)
        for writer in self._writers:
            writer.write(step, seconds, metrics)
        if self._display is not None:
            self._display.update(step, metrics)

    def _start(self) -> None:
        """Opens the writers and the display, which ``self._open`` closes in reverse order."""
        telemetry, train = self.config.telemetry, self.config.train
        self._add(JsonlWriter(self.directory / METRICS_FILE, self._step))
        if telemetry.tracker is not None:
            self._add(open_tracker(self.directory, self.config))
        if telemetry.tensorboard and (events := open_tensorboard(self.directory, self._step)):
            self._add(events)
        self._display = self._open.enter_context(
            ProgressDisplay(
                self.console,
                title=self.config.arm or self.config.recipe,
                steps=train.steps,
                done=self._step,
                log_every=train.log_every,
            )
        )
        monitor = GpuMonitor(self.ranks.device, interval_s=GPU_INTERVAL_S)
        self._gpu = self._open.enter_context(monitor)
        if self.ranks.device.type == "cuda" and monitor.status is not None:
            logger.warning("no gpu/ metrics: %s", monitor.status)

    def _add(self, writer: MetricWriter) -> None:
        self._writers.append(writer)
        self._open.callback(writer.close)


def _size(model: "PreTrainedModel") -> ModelSize | None:
    """Returns what the model flops depend on; ``None`` for a model that cannot be counted."""
    try:
        return model_size(model)
    except (AttributeError, TypeError) as error:  # a config without attention heads, for example
        logger.warning("no model flops: %s", one_line(error))
        return None


def _peak(device: torch.device, config: RunConfig) -> float | None:
    """Returns the peak flops per second of a rank's GPU; ``None`` if they are not known.

    Products run in the dtype of the forward and backward pass, not in that of stored weights.
    """
    if device.type != "cuda":
        return None
    dtype = config.model.compute_dtype or config.model.dtype
    return peak_flops(torch.cuda.get_device_name(device), getattr(torch, dtype))
