"""Plants faults one after another and prints which test finds each.

    python -m tests.gpu.faults [NAME or RUNG ...] [--jobs N] [--save]

``--save`` updates docs/planted_faults.md. The exit code is 1 if a fault goes unnoticed.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

from .catalogue import FAULTS
from .page import MISSED, PAGE, page, row, rows_of_page
from .planting import ROOT, outcome


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of faults and rungs; all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--save", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    unknown = set(args.names) - {name for fault in FAULTS for name in (fault.name, fault.rung)}
    if unknown:
        parser.error(f"no such fault or rung: {', '.join(sorted(unknown))}")
    chosen = [f for f in FAULTS if not args.names or {f.name, f.rung} & {*args.names}]
    rows: dict[str, str] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for fault, result in zip(chosen, pool.map(outcome, chosen), strict=True):
            rows[fault.name] = row(fault, result)
            if args.save:  # at once, because a run may be interrupted
                PAGE.write_text(page({**rows_of_page(), **rows}), encoding="utf-8")
    print(page(rows, chosen))
    return int(any(MISSED in line for line in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
