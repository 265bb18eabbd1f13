"""The catalogue fits the sources, the page fits the catalogue, and each rung finds its fault."""

import ast
import functools
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from .catalogue import FAULTS
from .page import MISSED, PAGE, beginning, page, rows_of_page
from .places import tokens_of
from .planting import ROOT, outcome, read_outcome

BY_NAME = {fault.name: fault for fault in FAULTS}
TOOLS = Path(sys.executable).parent
LAYOUTS = {
    ".py": [str(TOOLS / "ruff"), "format", "--config", "line-length=50", "-"],
    ".cpp": [
        str(TOOLS / "clang-format"),
        "--style",
        "{BasedOnStyle: GNU, ColumnLimit: 60, BreakStringLiterals: false, SortIncludes: Never}",
    ],
}
"""Commands that reformat their input in styles that are not ours."""


@functools.cache
def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def laid_out_otherwise(path: str) -> str:
    command = LAYOUTS[".py" if path.endswith(".py") else ".cpp"]
    if not Path(command[0]).exists():
        pytest.skip(f"needs {Path(command[0]).name}")
    done = subprocess.run(command, input=source(path), capture_output=True, text=True, check=True)
    assert done.stdout != source(path)
    return done.stdout


def meaning(text: str, suffix: str) -> object:
    """A form of a source that does not depend on its layout."""
    if suffix == ".py":
        return ast.dump(ast.parse(text))
    return [token.text for token in tokens_of(text, suffix)]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_fault_fits_its_file_and_names_tests_that_exist(name: str) -> None:
    fault = BY_NAME[name]
    text = source(fault.path)
    assert fault.planted(text) != text
    for test in fault.tests:
        file, *function = re.split(r"::|\[", test)[:2]
        assert not function or f"def {function[0]}(" in source(file)


@pytest.mark.parametrize("name", BY_NAME)
def test_another_layout_of_a_source_takes_the_same_fault(name: str) -> None:
    fault = BY_NAME[name]
    suffix = Path(fault.path).suffix
    text, other = source(fault.path), laid_out_otherwise(fault.path)
    assert meaning(text, suffix) == meaning(other, suffix)
    assert meaning(fault.planted(text), suffix) == meaning(fault.planted(other), suffix)


@pytest.mark.parametrize("name", BY_NAME)
def test_other_names_of_variables_take_the_same_fault(name: str) -> None:
    fault = BY_NAME[name]
    suffix = Path(fault.path).suffix
    text = source(fault.path)
    bound = fault.place(text).bound
    operands = [tokens_of(code, suffix)[0] for name, code in bound.items() if "*" not in name]
    names = {first.text for first in operands if first.kind == "word"} - {"self"}

    def renamed(code: str) -> str:
        tokens = tokens_of(code, suffix)
        for before, token in reversed(list(pairwise(tokens))):
            if token.kind == "word" and token.text in names and before.kind != "joint":
                code = f"{code[: token.start]}other_{token.text}{code[token.end :]}"
        return code

    assert fault.planted(renamed(text)) == renamed(fault.planted(text))


def test_names_are_given_once() -> None:
    assert len(BY_NAME) == len(FAULTS)


def test_the_page_has_every_fault_and_the_test_that_found_it() -> None:
    rows = rows_of_page()
    assert rows.keys() == BY_NAME.keys(), "python -m tests.gpu.faults --save"
    for name, line in rows.items():
        assert line.startswith(beginning(BY_NAME[name])) and MISSED not in line
        by = line.removeprefix(beginning(BY_NAME[name]))
        assert any(by.startswith(f"`{t.removeprefix('tests/')}") for t in BY_NAME[name].tests)
    assert PAGE.read_text(encoding="utf-8") == page(rows)


@pytest.mark.parametrize(
    ("status", "output", "test", "reason"),
    [
        (1, "FAILED a.py::t[1-x] - Error: 1 - 0 = 0x7f00aa", "a.py::t[1-x]", "Error: 1 - 0 = 0x…"),
        (1, "FAILED a.py::t - E: /tmp/b/c.h:3 ==12==ERROR\nx", "a.py::t", "E: c.h:3 ERROR"),
        (1, "FAILED a.py::t - BuildFailed: g++ a.cu", None, "exit code 1: FAILED a.py::t -"),
        (1, "ERROR a.py::t - fixture", None, "exit code 1: ERROR a.py::t - fixture"),
        (2, "FAILED a.py::t - no\nERROR b.py", None, "exit code 2: ERROR b.py"),
        (0, "3 passed in 0.51s", None, "exit code 0: 3 passed"),
    ],
)
def test_only_a_failed_test_has_found_a_fault(
    status: int, output: str, test: str | None, reason: str
) -> None:
    said = read_outcome(status, output)
    assert said.test == test and said.found == (test is not None)
    assert said.reason.startswith(reason)


def test_reasons_are_cut() -> None:
    said = read_outcome(1, "FAILED a.py::t - " + "word " * 90)
    assert len(said.reason) <= 120 and said.reason.endswith("…")


PLANTED = (
    "triton-mask-dropped",
    "triton-grid-too-small",
    "ptx-scaled-places-of-32-bits",
    "cuda-entropy-unwritten",
    "cuda-scaled-tail-beyond",
    "cuda-summary-not-waited-for",
    "cuda-factor-of-one-writes",
    "cuda-registers-spilled",
    "chunks-tall-untried",
    "forced-but-left-out",
)
"""For each rung, the fault that it finds fastest."""


def test_a_fault_of_every_rung_is_planted() -> None:
    assert {BY_NAME[name].rung for name in PLANTED} == {fault.rung for fault in FAULTS}


@pytest.mark.parametrize("name", PLANTED)
def test_its_rung_finds_a_fault(name: str) -> None:
    said = outcome(BY_NAME[name])
    if re.fullmatch(r"exit code 0: \d+ skipped.*", said.reason):
        pytest.skip("its rung is not on this machine")
    assert said.found, said.reason
