"""The tables of budgets: what each kernel took under a release of Triton when last written.

python -m tests.gpu.budgets.triton      # compile everything, show what moved, write it

Registers and instructions differ between releases. Each release has its own table, and the
installed one is compared with its own table only.
"""

import json
from pathlib import Path

import triton

from .compile import CASES, TARGETS, compiled
from .resources import Resources, resources

TABLES = Path(__file__).with_name("tables")
REGISTER_SLACK = 8
"""How far registers may move unreported: one step in which they are allocated."""

MOVES_ROWS = {"row_stats", "row_gradient", "hybrid_rows", "score_spans"}
MOVES_ROWS |= {"gather_rows", "scatter_rows", "scale"}

Table = dict[str, dict[str, dict[str, Resources]]]
"""By case, target and kernel."""


def table_of(release: str = triton.__version__) -> Path:
    return TABLES / f"triton-{release}.json"


def measured(case: str, target: str) -> dict[str, Resources]:
    return {
        launch.name.removesuffix("_kernel"): resources(launch, target)
        for launch in compiled(case, target)
    }


def broken_rules(case: str, target: str, found: dict[str, Resources]) -> list[str]:
    """Violations of the rules that hold for every table, a line each."""
    lines = []
    for kernel, taken in found.items():
        if taken.spills:
            lines.append(f"{kernel}: spills {taken.spills} bytes and instructions")
        if taken.shared > TARGETS[target].shared_per_program or taken.programs < 1:
            lines.append(f"{kernel}: {taken.shared} bytes of shared memory do not fit")
        if kernel == "score_spans" and not taken.matrix and "fp32" not in case:
            lines.append(f"{kernel}: multiplies without matrix instructions")
        if kernel in MOVES_ROWS and not taken.wide and "odd" not in case:
            lines.append(f"{kernel}: moves no 16 bytes at a time")
    return lines


def read() -> Table | None:
    """The table of the installed Triton; ``None`` if there is none."""
    if not table_of().exists():
        return None
    table = json.loads(table_of().read_text(encoding="utf-8"))
    return {
        case: {
            target: {kernel: Resources(**values) for kernel, values in kernels.items()}
            for target, kernels in targets.items()
        }
        for case, targets in table.items()
    }


def write(table: Table) -> None:
    """One line for each kernel and target, so that a diff of the table reads well."""
    cases = []
    for case, targets in table.items():
        lines = []
        for target, kernels in targets.items():
            inner = [f'      "{k}": {json.dumps(r._asdict())}' for k, r in kernels.items()]
            lines.append(f'    "{target}": {{\n' + ",\n".join(inner) + "\n    }")
        cases.append(f'  "{case}": {{\n' + ",\n".join(lines) + "\n  }")
    table_of().write_text("{\n" + ",\n".join(cases) + "\n}\n", encoding="utf-8")


def moved(budget: dict[str, Resources], found: dict[str, Resources]) -> list[str]:
    """The differences, a line each; registers within their slack do not count."""
    lines = [f"{name}: no longer launched" for name in budget if name not in found]
    for kernel, now in found.items():
        if kernel not in budget:
            lines.append(f"{kernel}: not in the table")
            continue
        for field, new in now._asdict().items():
            old = getattr(budget[kernel], field)
            slack = REGISTER_SLACK if field == "registers" else 0
            if old != new and not (slack and abs(old - new) <= slack):
                lines.append(f"{kernel}: {field} {old} -> {new}")
    return lines


def main() -> None:
    before = read() or {}
    table: Table = {case: {target: measured(case, target) for target in TARGETS} for case in CASES}
    broken = []
    for case, targets in table.items():
        for target, found in targets.items():
            for line in moved(before.get(case, {}).get(target, {}), found):
                print(f"{case} on {target}: {line}")
            broken += [f"{case} on {target}: {x}" for x in broken_rules(case, target, found)]
    if broken:
        raise SystemExit("\n".join(["not written, for no table permits:", *broken]))
    write(table)
