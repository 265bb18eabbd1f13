"""Decides after which steps to evaluate, which evaluation is the best, and when to stop early."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wavalign_fast.errors import UserError, did_you_mean, shown


def check_metric(name: str | None, metrics: Mapping[str, float]) -> None:
    """Raises ``UserError`` if ``train.keep_best`` is none of an evaluation's metrics."""
    if name is not None and name not in metrics:
        raise UserError(
            f"train.keep_best: {shown(name)} given, wanted a metric of the evaluation: "
            f"{', '.join(metrics) or 'it has none'}{did_you_mean(name, metrics)}"
        )


@dataclass(kw_only=True)
class EvaluationSchedule:
    """The evaluations during training: the best one so far, and the number of worse ones since.

    Args:
        every: steps between two evaluations; 0 = none.
        metric: the metric of an evaluation that tells which is the best; ``None`` = none is.
        best_is: whether the best value is the highest or the lowest.
        patience: evaluations in a row that are not the best, after which training stops; 0 = never.
    """

    every: int
    metric: str | None = None
    best_is: Literal["highest", "lowest"] = "highest"
    patience: int = 0
    best: float | None = None
    best_step: int | None = None
    worse: int = 0

    def due(self, step: int) -> bool:
        """Whether to evaluate after ``step``."""
        return self.every > 0 and step % self.every == 0

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Notes the metrics of the evaluation after ``step``.

        A metric that is NaN, or is missing because a judge failed, is worse than any other. Of
        equal ones the first is the best.
        """
        if self.metric is None:
            return
        value = metrics.get(self.metric, math.nan)
        if self._is_better(value):
            self.best, self.best_step, self.worse = value, step, 0
        else:
            self.worse += 1

    @property
    def stops(self) -> bool:
        """Whether training stops, because none of the last evaluations was the best."""
        return 0 < self.patience <= self.worse

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        return value > self.best if self.best_is == "highest" else value < self.best

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for ``load_state_dict``."""
        return {"best": self.best, "best_step": self.best_step, "worse": self.worse}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.worse = int(state["worse"])
