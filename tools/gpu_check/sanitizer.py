"""Runs a command under a tool of compute-sanitizer and writes the outcome.

    python -m tools.gpu_check.sanitizer TOOL FILE -- COMMAND...

The exit status is 0 where the command passed and the tool found nothing.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.gpu_check import files

PROGRAM = "compute-sanitizer"
FOUND = 99
"""Exit status of compute-sanitizer where the tool found an error."""
OURS = "kns=wavalign"
"""Selects our kernels by their mangled names: the library's GEMMs would take minutes."""
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def options(help_text: str) -> list[str]:
    """The options that this release supports, by its ``--help``."""
    flags = ["--kernel-name", OURS] if "--kernel-name" in help_text else []
    return [*flags, "--target-processes", "application-only", "--error-exitcode", str(FOUND)]


def run_outcome(status: int, output: str) -> dict[str, Any]:
    """The outcome of a run, from its exit status and output."""
    errors = [int(a or b) for a, b in SUMMARY.findall(output)]
    tests = re.findall(r"^=* ?(\d+ (?:passed|failed|skipped|error).*?) in ", output, re.MULTILINE)
    if not errors:
        outcome = "the tool did not get to its summary"
    elif sum(errors) or status == FOUND:
        outcome = "found something"
    elif not tests or "passed" not in tests[-1]:
        outcome = "no test ran"
    else:
        outcome = "clean" if status == 0 else "tests failed"
    return {
        "outcome": outcome,
        "status": status,
        "errors": sum(errors) if errors else None,
        "tests": tests[-1] if tests else None,
    }


def run(tool: str, path: Path, command: list[str]) -> int:
    """Runs the command and passes its output through."""
    started = time.monotonic()

    def put(found: dict[str, Any]) -> None:
        entry = found | {"seconds": round(time.monotonic() - started, 1)}
        files.put(path, "tools", tool, entry)

    if shutil.which(PROGRAM) is None:
        put({"outcome": f"there is no {PROGRAM}"})
        print(f"gpu_check: there is no {PROGRAM} on the PATH")
        return 3
    put({"outcome": "not finished"})
    help_text = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True).stdout
    sanitized = [PROGRAM, "--tool", tool, *options(help_text), *command]
    print(*sanitized, flush=True)
    process = subprocess.Popen(
        sanitized, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    found = run_outcome(process.wait(), "".join(lines))
    put(found)
    print(f"{tool}: {found}")
    return int(found["outcome"] != "clean")


def main(tool: str, path: str, separator: str, *command: str) -> int:
    if separator != "--" or not command:
        raise ValueError(f"want -- COMMAND..., got {separator} {' '.join(command)}")
    return run(tool, Path(path), list(command))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
