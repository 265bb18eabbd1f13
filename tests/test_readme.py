"""The README: its commands and links exist, and what it claims is so.

tests/docs/ runs its code, as that of every page.
"""

import json
import re
from pathlib import Path

from benchmarks.record import RESULTS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_extras_and_options_in_running_text_are_there():
    extras = set(re.findall(r"^([a-z-]+) = \[", PYPROJECT, re.MULTILINE))
    for named in re.findall(r"(?:wavalign-fast|\.)\[([a-z,]+)\]", TEXT):
        assert set(named.split(",")) <= extras


def test_ci_runs_the_tests_that_the_readme_names():
    steps = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    named = set(re.findall(r"\bmake (test[a-z-]*|docs)\b", TEXT))
    assert {"test", "docs"} <= named
    assert {f"make {target}" for target in named} <= set(steps)


def test_every_folder_is_on_the_map():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for folder in (ROOT / "wavalign_fast").iterdir():
        if (folder / "__init__.py").exists():
            assert re.search(rf"^wavalign_fast/{folder.name}/ ", text, re.MULTILINE), folder.name


def test_the_picture_of_the_report_is_small():
    assert (ROOT / "docs" / "images" / "report.png").stat().st_size < 250_000


def test_the_first_section_is_what_runs_where():
    assert re.search(r"^## (.*)$", TEXT, re.MULTILINE)[1] == "What runs where today"


def test_the_versions_wanted_are_those_of_the_package():
    first, last = re.search(r"Python 3\.(\d+)–3\.(\d+)", TEXT).groups()
    assert f'requires-python = ">=3.{first},<3.{int(last) + 1}"' in PYPROJECT
    for package in ("torch", "transformers"):
        floors = set(re.findall(rf"{package} ≥ ([\d.]+\d)", TEXT))
        assert len(floors) == 1, package
        assert re.search(rf'"{package}>={re.escape(floors.pop())}[",]', PYPROJECT), package


def test_it_says_that_no_gpu_has_run_as_long_as_none_has():
    records = [json.loads(path.read_text()) for path in RESULTS.rglob("*.json")]
    cases = [case for record in records for case in record.get("cases", [])]
    measured = any(case.get("device", "cpu") != "cpu" for case in cases)
    assert ("No GPU has run" not in TEXT) == measured
