"""How time and extra memory grow with rows, vocabulary and hidden size: ours beside plain torch.

    python -m benchmarks.bench_growth [--quick] [--dtype bf16] [--save]

Varies one axis at a time and keeps the other two small. Times forward and backward passes of
log-probs. Ours runs with the default memory budget and with a small one. Plain torch stops where it
would exceed a memory cap. A slope is that of a straight line through the logarithms: 1 is linear,
0 is flat.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

import wavalign_fast as wf

from .bench_linear_logprob import Own, make_case
from .case import Case, record_case
from .options import Options, parse
from .providers import Calls, available
from .record import load, save
from .shapes import AXES, growth

NAME = "growth"
PLAIN = "torch"
BUDGETED = "ours-budget"
BUDGET = 16 * 2**20
MEMORY_CAP = 4 * 2**30
FIGURES = {"time": "wall_s", "extra_memory": "extra_bytes_beyond_gradients"}


def run(options: Options) -> int:
    # float32 gives the same lines, shifted up.
    dtypes = options.dtypes if len(options.dtypes) == 1 else ("bf16",)
    options = replace(options, providers=(our_name(options.device), PLAIN))
    own = [_budgeted()] if options.device == "cpu" else []
    for dtype in dtypes:
        for axis in AXES:
            expected = 0
            for shape in growth(axis, quick=options.quick):
                case = make_case(shape, dtype, "logp", options, own)
                if expected > MEMORY_CAP:
                    _leave_out(case, expected)
                record = record_case(NAME, case, options)
                del case
                if record is None:
                    return 1
                # Each point is twice the one before, and at worst needs twice its memory.
                expected = 2 * (record["sides"][PLAIN].get(FIGURES["extra_memory"]) or expected)
    if options.directory is not None:
        add_slopes(options.directory)
    return 0


def our_name(device: str) -> str:
    """Our first provider that runs on the device."""
    return next(
        loaded.provider.name
        for loaded in available(device=device)
        if loaded.calls is not None and loaded.provider.name.startswith("ours")
    )


def _budgeted() -> Own:
    budget = wf.LossOptions(memory_budget=BUDGET)

    def logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return wf.linear_logprob(hidden, weight, targets, options=budget).logp

    return BUDGETED, f"wavalign_fast, budget {BUDGET // 2**20} MiB", Calls(logp=logp)


def _leave_out(case: Case, expected: int) -> None:
    reason = f"would need about {expected / 2**30:.0f} GiB, the cap is {MEMORY_CAP / 2**30:.0f} GiB"
    case.sides = [
        replace(side, run=None, reason=reason) if side.name == PLAIN else side
        for side in case.sides
    ]


def add_slopes(directory: Path) -> None:
    """Writes the slopes of all axes into the record."""
    record = load(NAME, directory)
    if record is None:
        return
    save(NAME, record | {"slopes": slopes(record["cases"])}, directory)


def slopes(cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """axis -> side -> figure -> slope, for sides measured at two points or more."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for axis in AXES:
        points = [case for case in cases if case["shape"]["axis"] == axis]
        for side in sorted({name for case in points for name in case["sides"]}):
            for figure, key in FIGURES.items():
                pairs = [
                    (float(case["shape"][axis]), float(case["sides"][side][key]))
                    for case in points
                    if case["sides"].get(side, {}).get(key)
                ]
                if len(pairs) > 1:
                    found.setdefault(axis, {}).setdefault(side, {})[figure] = slope(pairs)
    return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line through (log x, log y)."""
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((value - mean_x) ** 2 for value in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(__doc__, argv=argv))


if __name__ == "__main__":
    sys.exit(main())
