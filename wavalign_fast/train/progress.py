"""Shows the progress of a run: a live panel on a terminal, plain lines elsewhere."""

import math
from collections import deque
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from typing_extensions import Self

PHASES = ("rollout", "reward", "reference", "forward_backward", "exchange", "optimizer")
SMALLEST_SHARE = 0.005
"""Share of the time below which a phase is not shown: it would read 0 %."""
SHOWN = {
    "reward": ("reward/mean", "{:.2f}"),
    "failed": ("reward/failed", "{:.1f}"),
    "λ": ("gate/lambda", "{:.3f}"),
    "policy": ("loss/policy", "{:+.4f}"),
    "anchor": ("loss/anchor", "{:.4f}"),
    "loss": ("loss/total", "{:+.4f}"),
    "kl": ("kl", "{:.4f}"),
    "tokens/s": ("tokens_per_s", "{:.0f}"),
    "MFU": ("perf/mfu", "{:.1%}"),
}


class ProgressDisplay:
    """Shows means over the last ``log_every`` steps of an arm."""

    def __init__(
        self, console: Console, *, title: str, steps: int, done: int, log_every: int
    ) -> None:
        self.console = console
        self.title = title
        self.steps = steps
        self.log_every = log_every
        self._recent: deque[Mapping[str, float]] = deque(maxlen=log_every)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(title, total=steps, completed=done)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            # Only ``update`` draws: a refresh thread would compete with training for a core.
            self._live = Live(self._bar, console=self.console, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of ``step``."""
        self._recent.append(metrics)
        if self._live is not None:
            self._bar.update(self._task, completed=step)
            self._live.update(Group(self._bar, self._panel()), refresh=True)
        elif step % self.log_every == 0 or step == self.steps:
            self.console.print(self._line(step), highlight=False, soft_wrap=True)

    def _mean(self, name: str) -> float | None:
        given = (metrics.get(name, math.nan) for metrics in self._recent)
        values = [value for value in given if math.isfinite(value)]
        return sum(values) / len(values) if values else None

    def _figures(self) -> dict[str, str]:
        means = {label: (self._mean(name), form) for label, (name, form) in SHOWN.items()}
        if means["failed"][0] == 0:
            del means["failed"]  # shown only if there are missing rewards
        figures = {
            label: form.format(mean) for label, (mean, form) in means.items() if mean is not None
        }
        if skipped := self._recent[-1].get("skipped_steps"):  # a count since the start, no mean
            figures["skipped"] = f"{skipped:.0f}"
        return figures

    def _time_split(self) -> dict[str, str]:
        seconds = {phase: self._mean(f"perf/{phase}_s") for phase in PHASES}
        total = sum(value for value in seconds.values() if value) or 1.0
        return {
            phase.replace("_", "/"): f"{value / total:.0%}"
            for phase, value in seconds.items()
            if value and value >= SMALLEST_SHARE * total
        }

    def _line(self, step: int) -> str:
        parts = [f"{self.title} step {step}/{self.steps}"]
        parts += [f"{label} {figure}" for label, figure in self._figures().items()]
        parts += [f"{label} {share}" for label, share in self._time_split().items()]
        return "  ".join(parts)

    def _panel(self) -> Group:
        figures = self._figures()
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for label in figures:
            table.add_column(label, justify="right", no_wrap=True)
        table.add_row(*figures.values())
        shares = "  ".join(f"{phase} {share}" for phase, share in self._time_split().items())
        return Group(table, Text(f"time  {shares}", style="dim"))
