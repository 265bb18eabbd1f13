"""Plants every fault in turn and prints which rung of the ladder finds it.

    python -m tests.gpu.faults [NAME ...] [--jobs N] [--save]

``--save`` writes docs/planted_faults.md. Exit code 1 where a fault goes unnoticed.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from .catalogue import FAULTS
from .planting import ROOT, Fault, Outcome, outcome

TABLE = ROOT / "docs" / "planted_faults.md"
HEADING = """# Planted faults

Each line is a change of one source file, planted in a copy of the tree by
`python -m tests.gpu.faults --save`, which wrote this page. The rung is the one whose tests were run
on it, and the last column is what they said. A fault that no rung found would stand here as
**not found**, and the command would fail.

| fault | what it does | file | rung | found by |
|---|---|---|---|---|
"""


def row(fault: Fault, result: Outcome) -> str:
    found = result.reason.replace("|", "\\|") if result.found else f"**not found** {result.reason}"
    file = f"`{fault.path.removeprefix('wavalign_fast/').removeprefix('csrc/')}`"
    return f"| {fault.name} | {fault.what} | {file} | {fault.rung} | {found} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--save", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    unknown = set(args.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not args.names or fault.name in args.names]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(outcome, chosen))
    lines = [row(fault, result) for fault, result in zip(chosen, results, strict=True)]
    missed = [result for result in results if not result.found]
    print(HEADING + "\n".join(lines))
    print(f"\n{len(chosen) - len(missed)} of {len(chosen)} faults were found.", file=sys.stderr)
    if args.save:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(HEADING + "\n".join(lines) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
