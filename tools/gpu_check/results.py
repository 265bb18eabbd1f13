"""Shows the results of a run of tools/gpu_check.sh, or saves them as records of this repository.

python -m tools.gpu_check.results show DIRECTORY
python -m tools.gpu_check.results save DIRECTORY [--commit NAME]
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.gpu_check import FOLDER, NAMES, gpu_block, is_rehearsed
from tools.gpu_check import files

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / FOLDER
FAILURES_SHOWN = 25


class ResultsError(ValueError):
    """The results cannot become records."""


def stages(summary: Path) -> dict[str, dict[str, int]]:
    """stage -> exit code, seconds and limit; a skipped stage has no exit code."""
    found = {}
    for line in summary.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"stage (\w+) (?:skipped )?((?:\w+=-?\d+ ?)+)", line)
        if match is not None:
            pairs = (pair.split("=") for pair in match[2].split())
            found[match[1]] = {name: int(value) for name, value in pairs}
    return found


def collected(directory: Path) -> dict[str, Any]:
    """name -> record; ``stages`` comes from the summary.

    Raises:
        ResultsError: the directory holds no run.
    """
    summary = directory / "summary.txt"
    if not summary.exists():
        raise ResultsError(f"{directory}: has no summary.txt, want the --out of tools/gpu_check.sh")
    found = {name: files.read(directory / f"{name}.json") for name in NAMES}
    found = {name: record for name, record in found.items() if record}
    run = next((record["run"] for record in found.values() if "run" in record), {})
    found["stages"] = {"stages": stages(summary)}
    # The stages do not name their run.
    return {name: {"run": run} | record for name, record in found.items()}


def show(directory: Path) -> str:
    """The failed tests and the block of docs/gpu.md, for the terminal."""
    found = collected(directory)
    lines = []
    for run in found.get("tests", {}).get("runs", {}).values():
        lines += [f"FAILED {f['test']}: {f['why'][:180]}" for f in run["failures"]]
    return "\n".join([*lines[:FAILURES_SHOWN], gpu_block(found)])


def save(directory: Path, commit: str | None, target: Path = RESULTS) -> list[Path]:
    """Writes the records into ``target``, over those of an earlier run.

    Raises:
        ResultsError: they come from a rehearsal, or the commit or the GPU is unknown.
    """
    found = collected(directory)
    if is_rehearsed(found):
        raise ResultsError(f"{directory}: got a rehearsal, want the results of a GPU")
    if "machine" not in found:
        raise ResultsError(f"{directory}: has no machine.json, so the GPU is unknown")
    written = []
    for name, record in found.items():
        known = record["run"].get("commit") or commit
        if not known:
            raise ResultsError(f"{directory}: the commit is unknown; give --commit")
        for case in record.get("cases", []):
            case["machine"]["commit"] = case["machine"].get("commit") or known
        path = target / f"{name}.json"
        files.write(path, record, record["run"] | {"commit": known})
        written.append(path)
    return written


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("show", "save"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--commit", help="what was measured, where the run names no commit")
    args = parser.parse_args(argv)
    try:
        if args.what == "show":
            print(show(args.directory))
        else:
            print(*save(args.directory, args.commit), sep="\n")
            print("next: python -m benchmarks.report")
    except ResultsError as error:
        print(f"gpu_check: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
