"""Regenerates tables of README and docs/, plots and the page from benchmarks/results/*.json.

python -m benchmarks.report [--check]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wavalign_fast.outputs import write_whole

from ..record import RESULTS, load
from .gpu_check import FOLDER, RehearsalError, read_gpu
from .page import write_page
from .plots import NoMatplotlibError, Records, write_plots
from .readme import ROOT, read_pages, rendered

NAMES = (
    "linear_logprob",
    "hybrid_loss",
    "dpo",
    "skip",
    "growth",
    "adversarial",
    "spoken_sums",
    "demo",
    "grpo",
    "memory",
)
PLOTS = RESULTS.parent / "plots"
PAGE = RESULTS.parent / "results.html"


def read_records(directory: Path) -> Records:
    """name -> record, ``None`` where a benchmark did not run.

    Raises:
        RehearsalError: the results of a GPU come from a rehearsal.
    """
    gpu = read_gpu(directory / FOLDER)
    return {name: load(name, directory) for name in NAMES} | {"gpu_check": gpu}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; fail if a table is out of date",
    )
    arguments = parser.parse_args(argv)
    try:
        records = read_records(RESULTS)
    except RehearsalError as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 2
    before = read_pages()
    after = rendered(before, records)
    if arguments.check:
        return int(before != after)
    try:
        written = write_plots(records, PLOTS)
    except NoMatplotlibError as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 2
    for page, text in after.items():
        write_whole(ROOT / page, text.encode())
    for path in (*(ROOT / page for page in after), *written, write_page(records, PAGE)):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
