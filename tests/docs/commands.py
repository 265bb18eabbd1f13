"""Checks or runs the command lines of the pages."""

import importlib.util
import re
import shlex
from collections.abc import Callable

from tests.docs.pages import ROOT, Block, commands_of
from wavalign_fast import cli

TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


def run_commands(block: Block) -> None:
    """Runs commands of ours in the working directory; others must be marked ``parsed only``."""
    for line in commands_of(block):
        words = shlex.split(line, comments=True)
        assert not words or words[0] == "wavalign-fast", f"{block.place}: {line}"
        if words:
            assert cli.main(words[1:]) == 0, f"{block.place}: {line}"


def parse_commands(block: Block) -> None:
    """Checks that programs, options, targets, extras and settings of the commands exist."""
    for line in commands_of(block):
        words = [word for word in shlex.split(line, comments=True)]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words:
            assert words[0] in PROGRAMS, f"{block.place}: no rule for {words[0]}"
            PROGRAMS[words[0]](words[1:])


def _ours(arguments: list[str]) -> None:
    cli._parse(arguments)
    if arguments[0] == "train" and "--recipe" in arguments:
        settings = [word for word in arguments if word != "--resume"]
        assert cli.main([*settings, "--print-config"]) == 0


def _torchrun(arguments: list[str]) -> None:
    start = arguments.index("-m")
    assert arguments[start + 1] == "wavalign_fast"
    _ours(arguments[start + 2 :])


def _python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments
        return
    found = [*ROOT.glob(arguments[0]), *ROOT.glob(f"examples/*/{arguments[0]}")]
    assert found, arguments


def _make(arguments: list[str]) -> None:
    assert {word for word in arguments if "=" not in word} <= TARGETS, arguments


def _pip(arguments: list[str]) -> None:
    for named in re.findall(r"(?:wavalign-fast|\.)\[([a-z,-]+)\]", " ".join(arguments)):
        assert set(named.split(",")) <= EXTRAS, named


def _script(arguments: list[str]) -> None:
    """Programs of others, and scripts whose own tests call them."""


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "wavalign-fast": _ours,
    "torchrun": _torchrun,
    "python": _python,
    "make": _make,
    "pip": _pip,
    "pytest": _script,
    "vllm": _script,
    ".ci/run": _script,
}
