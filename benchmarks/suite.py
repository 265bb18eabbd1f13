"""All benchmarks on one machine: `wavalign-fast bench`."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import bench_dpo, bench_growth, bench_hybrid_loss, bench_linear_logprob, bench_skip
from .options import Options
from .report.__main__ import read_records
from .report.page import write_page
from .report.plots import Records, compared_cases
from .report.rows import METRICS, places
from .report.tables import caption, short_standing

MODULES = (bench_linear_logprob, bench_hybrid_loss, bench_dpo, bench_skip, bench_growth)
QUICK_ROUNDS, ROUNDS = 3, 5
ADVERSARIAL = f"{__package__}.bench_adversarial"


def devices(wanted: str | None) -> list[str]:
    """The devices to measure; by default the CPU, and the GPU where torch sees one.

    Raises:
        ValueError: a GPU is wanted where there is none.
    """
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if wanted is not None and wanted not in there:
        raise ValueError(f"--device: got {wanted}, want {' or '.join(there)} on this machine")
    return there if wanted is None else [wanted]


def bench(*, quick: bool, devices: Sequence[str], output: Path) -> int:
    """Runs all benchmarks and writes their JSON and ``index.html`` into ``output``.

    After an interruption the page has what was measured before it.

    Returns:
        0, or 1 if a result of ours was not within its tolerance of float64.
    """
    rounds = QUICK_ROUNDS if quick else ROUNDS
    options = Options(quick=quick, rounds=rounds, directory=output)
    status = 0
    try:
        for device in devices:
            for module in MODULES:
                status = max(status, module.run(replace(options, device=device)))
        if not quick and "cpu" in devices:  # it runs on the CPU only
            status = max(status, _adversarial(output))
    finally:
        records = read_records(output)
        if any(records.values()):
            page = write_page(records, output / "index.html")
            print("\n" + "\n".join(summary(records)) + f"\npage: {page}")
    return status


def _adversarial(output: Path) -> int:
    """The adversarial suite, where it is part of this installation."""
    if importlib.util.find_spec(ADVERSARIAL) is None:
        return 0
    module: Any = import_module(ADVERSARIAL)
    return int(module.main(["--output", str(output)]))


def summary(records: Records) -> list[str]:
    """A table of all cases: where ours stands in every metric."""
    lines = [("", *(metric.title for metric in METRICS))]
    for case in compared_cases(records):
        found = {place.metric.key: short_standing(place) for place in places(case)}
        lines.append((caption(case), *(found.get(metric.key, "") for metric in METRICS)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
