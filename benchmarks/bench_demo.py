"""Measures what README's first command costs on a new machine: downloads, disk and time.

python -m benchmarks.bench_demo [--save]

Clones the checkout's commit into a temporary directory. Runs ``make install`` and then
``make demo`` there, without pip's cache. Checks the files that the demo leaves before it reports
any cost.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .commit import refuse_dirty
from .record import machine, save

CHECKOUT = Path(__file__).parents[1]
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
TARGETS = ("install", "demo")
"""The targets of make, in the order in which they run: ``demo`` finds ``install`` done."""


def run(target: str, checkout: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Wall-clock and CPU seconds of ``make TARGET``.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["make", target], cwd=checkout, env=environment, check=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


def downloaded(log: str) -> float:
    """Bytes of the archives in pip's log; an archive on a local disk counts with its size there."""
    sizes = re.findall(r"Downloading \S+ \(([\d.]+) (bytes|kB|MB|GB)\)", log)
    local = {Path(path) for path in re.findall(r"Processing (/\S+\.whl)", log)}
    return sum(float(size) * UNITS[unit] for size, unit in sizes) + sum(
        path.stat().st_size for path in local
    )


def on_disk(folder: Path) -> int:
    """Bytes on disk of the files in a folder; a file with several names counts once."""
    files = (path.lstat() for path in folder.rglob("*") if not path.is_dir())
    return sum({(info.st_dev, info.st_ino): info.st_blocks * 512 for info in files}.values())


def check_outcome(run_directory: Path) -> None:
    """Checks that the demo did what README says.

    Raises:
        ValueError: a file is missing, or an arm did not improve its text accuracy.
    """
    if not (run_directory / "report.html").exists():
        raise ValueError(f"{run_directory}: no report.html")
    evaluations = sorted(run_directory.glob("*/evaluation.json"))
    if len(evaluations) != 3:
        raise ValueError(f"{run_directory}: {len(evaluations)} evaluations, want one of each arm")
    for path in evaluations:
        found = json.loads(path.read_text(encoding="utf-8"))
        base, final = (found[part]["text_accuracy"] for part in ("base", "final"))
        if not base < final <= 1.0:
            raise ValueError(f"{path}: text accuracy {final}, want more than the base's {base}")


def measure(folder: Path) -> dict[str, Any]:
    """What the demo takes in a clone in ``folder``: times, downloads, disk."""
    checkout, log = folder / "checkout", folder / "pip.log"
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(checkout)], check=True)
    environment = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PIP_LOG": str(log)}
    times = {target: run(target, checkout, environment) for target in TARGETS}
    check_outcome(checkout / "runs" / "demo")
    return {
        "times": times,
        "download_bytes": downloaded(log.read_text(encoding="utf-8")),
        "disk_bytes": on_disk(checkout / ".venv"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", action="store_true", help="write results/demo.json")
    arguments = parser.parse_args(argv)
    facts = machine()  # the load is that before the demo
    if arguments.save:
        # The clone holds the commit without these changes.
        refuse_dirty(parser, facts["commit"])
    with tempfile.TemporaryDirectory() as folder:
        record = {"machine": facts, **measure(Path(folder))}
    print(json.dumps(record, indent=2))
    if arguments.save:
        print(f"wrote {save('demo', record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
