"""Loads the runs of a directory, as far as their files can be read."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from wavalign_fast.errors import UserError
from wavalign_fast.report.provenance import Start
from wavalign_fast.report.run_files import RunFiles, is_file
from wavalign_fast.report.statistics import mean_value

PHASES = ("rollout", "reward", "reference", "forward_backward", "exchange", "optimizer")
SMALLEST_SHARE = 0.005
"""Share of a step below which a phase is counted as ``other``."""
RESULTS = ("metrics.jsonl", "evaluation.json")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained arm."""

    name: str
    path: Path
    config: str
    """The text of ``config.yaml``."""
    settings: dict[str, str] | None
    """Its values by dotted key; ``None`` if it cannot be read."""
    starts: list[Start]
    """The first start of the run and every time it was continued."""
    steps: int
    seconds: float | None
    base: dict[str, float]
    final: dict[str, float]
    base_samples: list[dict[str, str]]
    """Answers of the base model to the prompts of ``samples``."""
    samples: list[dict[str, str]]
    notes: list[str]
    """Notes about missing or damaged files."""
    curves: dict[str, list[tuple[float, float]]] = field(repr=False)
    """(step, value) pairs by metric name, without values that are not finite."""

    def phase_seconds(self) -> dict[str, float]:
        """Returns the mean seconds per step and phase; ``other`` is the time outside all phases."""
        means = {
            phase: mean_value(self.curves[f"perf/{phase}_s"])
            for phase in PHASES
            if self.curves.get(f"perf/{phase}_s")
        }
        if means and self.curves.get("perf/step_s"):
            step = mean_value(self.curves["perf/step_s"])
            means = {phase: s for phase, s in means.items() if s >= SMALLEST_SHARE * step}
            means["other"] = max(0.0, step - sum(means.values()))
        return means


def load_runs(run_dir: Path) -> list[Run]:
    """Loads the arms under ``run_dir`` in the order of their start, or ``run_dir`` as one run.

    Raises:
        UserError: there is no run, or no run with anything to show.
    """
    paths = [run_dir] if _first_file(run_dir) else []
    if not paths:
        started = [(file, file.parent) for path in run_dir.glob("*") if (file := _first_file(path))]
        paths = [path for _, path in sorted(started, key=lambda pair: pair[0].stat().st_mtime_ns)]
    if not paths:
        raise UserError(f"no run in {run_dir}: wanted config.yaml there or one folder below")
    if not any(is_file(path / name) for path in paths for name in RESULTS):
        raise UserError(
            f"nothing to report in {run_dir}: {' and '.join(RESULTS)} are missing; either no step "
            "was trained yet, or this is not a run"
        )
    runs = [_load_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    # The same arm with several seeds; the folder distinguishes them.
    return [replace(run, name=run.path.name) for run in runs]


def _first_file(path: Path) -> Path | None:
    """Returns the first file that a run writes and that exists; ``None`` if it is not a run."""
    return next((path / name for name in ("config.yaml", *RESULTS) if is_file(path / name)), None)


def _load_run(path: Path) -> Run:
    files = RunFiles(path)
    config, curves, evaluation = files.config(), files.curves(), files.evaluation()
    samples, base_samples = [], []
    if evaluation:
        samples, base_samples = files.samples(), files.base_samples()
        files.checkpoint()
    logged = max((step for points in curves.values() for step, _ in points), default=0)
    return Run(
        name=evaluation.get("arm") or path.resolve().name,
        path=path,
        config=config,
        settings=files.settings(config),
        starts=files.starts(),
        steps=int(evaluation.get("steps") or logged),
        seconds=evaluation.get("seconds"),
        base=evaluation.get("base", {}),
        final=evaluation.get("final", {}),
        base_samples=base_samples,
        samples=samples,
        curves=curves,
        notes=files.notes,
    )
