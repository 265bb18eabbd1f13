"""Runs TRL's tests of its GRPO trainer with TRL's class and with ours, and compares.

    python -m tools.trl_suite CHECKOUT [-k EXPRESSION]

CHECKOUT is one of TRL's repository: its tests are in no package. Nothing is fetched here.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from .plugin import SIDE

ROOT = Path(__file__).parents[2]
FILE = "tests/test_grpo_trainer.py"
COPIED = {"tests": "tests", "scripts": "scripts", "trl/chat_templates": "chat_templates"}
LEFT_OUT = "not vision and not vlm and not Vision and not VLM and not slow"
EXPECTED = {
    "peft_lm_head_raises": "an adapter on the head must raise there, and is trained here",
}
"""Why tests whose names have these parts fail with our class alone."""


def started(words: list[str], folder: Path, **environment: str) -> int:
    """The exit status of a Python process in a folder, with this repository importable."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *words], cwd=folder, env=variables).returncode


def outcomes(side: str, folder: Path, choice: list[str]) -> dict[str, str]:
    """{test: passed, failed or skipped} of a side."""
    file = folder / f"{side}.xml"
    words = ["-m", "pytest", "-q", "-c", "empty.ini", "-p", "tools.trl_suite.plugin", FILE]
    words += ["-p", "no:cacheprovider", "--tb=line", f"--junitxml={file}", *choice]
    started(words, folder, **{SIDE: side, "HF_HUB_OFFLINE": "1"})
    found = {}
    for case in ElementTree.parse(file).iter("testcase"):
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        outcome = "failed" if failed else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def compared(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Prints the counts; returns the tests that only TRL's class passes."""
    for name, found in (("TRL's class", theirs), ("ours", ours)):
        counts = collections.Counter(found.values())
        print(f"{name}: {', '.join(f'{counts[x]} {x}' for x in ('passed', 'failed', 'skipped'))}")
    lost = [name for name in theirs if theirs[name] == "passed" and ours[name] != "passed"]
    won = [name for name in theirs if theirs[name] != "passed" and ours[name] == "passed"]
    for name in won:
        print(f"only ours passes: {name}")
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="git clone https://github.com/huggingface/trl")
    parser.add_argument("-k", default=LEFT_OUT, help="pytest's choice of tests")
    arguments = parser.parse_args()
    if not (arguments.checkout / FILE).is_file():
        parser.error(f"checkout: got {arguments.checkout}, which has no {FILE}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for source, target in COPIED.items():
            shutil.copytree(arguments.checkout / source, folder / target)
        (folder / "empty.ini").write_text("[pytest]\n")
        if started(["-m", "tools.trl_suite.stand_ins"], folder, HF_HUB_OFFLINE="1"):
            return 1
        choice = ["-k", arguments.k]
        lost = compared(*(outcomes(side, folder, choice) for side in ("theirs", "ours")))
    unexplained = 0
    for name in lost:
        reasons = [reason for part, reason in EXPECTED.items() if part in name]
        print(f"{name}: {reasons[0] if reasons else 'UNEXPECTED'}")
        unexplained += not reasons
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
