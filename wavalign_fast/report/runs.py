"""A run directory, read as it lies: whatever is missing or half written is left out of the page."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError

PHASES = ("rollout", "reward", "reference", "forward_backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained arm."""

    name: str
    path: Path
    config: str
    steps: int
    seconds: float | None
    seed: int | None
    base: dict[str, float]
    final: dict[str, float]
    samples: list[dict[str, str]]
    curves: dict[str, list[tuple[float, float]]] = field(repr=False)
    """(step, value) by metric name; values that are not finite are left out."""

    def phase_seconds(self) -> dict[str, float]:
        """Mean seconds a step by phase, with what no phase accounts for as ``other``."""
        means = {
            phase: _mean(self.curves[f"perf/{phase}_s"])
            for phase in PHASES
            if self.curves.get(f"perf/{phase}_s")
        }
        if means and self.curves.get("perf/step_s"):
            means["other"] = max(0.0, _mean(self.curves["perf/step_s"]) - sum(means.values()))
        return means


def load_runs(run_dir: Path) -> list[Run]:
    """The arms under ``run_dir`` in the order they were started, or ``run_dir`` itself as one."""
    if (run_dir / "config.yaml").is_file():
        paths = [run_dir]
    else:
        configs = run_dir.glob("*/config.yaml")
        paths = [
            config.parent for config in sorted(configs, key=lambda file: file.stat().st_mtime_ns)
        ]
    if not paths:
        raise UserError(f"no run in {run_dir}: wanted config.yaml there or one folder below")
    runs = [_load_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    # The same arm with several seeds: the folder tells them apart.
    return [_load_run(path, name=path.name) for path in paths]


def _load_run(path: Path, name: str | None = None) -> Run:
    evaluation = _read_json(path / "evaluation.json", {})
    curves = _read_curves(path / "metrics.jsonl")
    logged = max((int(points[-1][0]) for points in curves.values()), default=0)
    samples = _read_json(path / "samples.json", [])
    return Run(
        name=name or str(evaluation.get("arm") or path.name),
        path=path,
        config=(path / "config.yaml").read_text(encoding="utf-8"),
        steps=int(evaluation.get("steps") or logged),
        seconds=_number(evaluation.get("seconds")),
        seed=evaluation.get("seed"),
        base=_figures(evaluation.get("base")),
        final=_figures(evaluation.get("final")),
        samples=[
            {key: str(value) for key, value in sample.items() if value is not None}
            for sample in samples
            if isinstance(sample, dict)
        ],
        curves=curves,
    )


def _read_json(path: Path, default: Any) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return value if isinstance(value, type(default)) else default


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    if not path.is_file():
        return curves
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            # A run that is still going, or was cut off, can end in half a line.
            continue
        step = _number(record.pop("step", None)) if isinstance(record, dict) else None
        if step is None:
            continue
        record.pop("time_s", None)
        for name, value in record.items():
            if (number := _number(value)) is not None:
                curves.setdefault(name, []).append((step, number))
    return curves


def _figures(values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    numbers = {str(name): _number(value) for name, value in values.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _mean(points: list[tuple[float, float]]) -> float:
    return sum(value for _, value in points) / len(points)
