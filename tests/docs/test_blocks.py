"""Every code block of every page: Python and commands run, settings and records are read.

A comment above a block, which no reader of the page sees, says so where that cannot be:
``parsed only: REASON`` for commands, whose programs, options and settings are then checked;
``run by FILE`` for blocks that a test of that subject runs; ``settings of KIND`` for YAML that is
not a run's; ``needs PACKAGE`` where the package may be missing; ``output of the code above`` for
text that must be what that prints. ``all blocks: …`` in a page is the comment of all its blocks.
"""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("transformers")

from tests.docs.commands import parse_commands, run_commands
from tests.docs.pages import PAGES, ROOT, Block, blocks_of
from tests.docs.scenes import REPLACED, SCENES
from wavalign_fast.config.layers import resolve_config
from wavalign_fast.config.yaml import parse_yaml
from wavalign_fast.recipes import load_recipe
from wavalign_fast.speech.codecs import open_codec

WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_the_code_of_a_page(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scene = SCENES.get(page.name, lambda _: nullcontext({}))
    with scene(tmp_path) as names:
        for block in blocks_of(page):
            try:
                if block.mark == "output of the code above":
                    assert capsys.readouterr().out == block.text
                    continue
                capsys.readouterr()
                check(block, names)
            except Exception as error:
                raise AssertionError(f"{block.place}: {error}") from error


def check(block: Block, names: dict[str, Any]) -> None:
    """Runs a block, or what its mark says in place of that."""
    if block.mark.startswith("parsed only: "):
        assert block.language == "bash", block.place
        parse_commands(block)
    elif block.mark.startswith("run by "):
        test = ROOT / block.mark.removeprefix("run by ")
        assert block.page.name in test.read_text(encoding="utf-8"), block.place
    elif block.mark.startswith("needs ") and not find_spec(block.mark.removeprefix("needs ")):
        return
    elif block.mark.startswith("settings of "):
        tree = parse_yaml(text_of(block, names), block.place)
        SETTINGS[block.mark.removeprefix("settings of ")](tree)
    elif block.language not in {"", "text", "output"}:
        RUN[block.language](block, names)


def text_of(block: Block, names: dict[str, Any]) -> str:
    text = block.text
    for written, here in names.get(REPLACED, {}).items():
        text = text.replace(written, here)
    return text


def run_python(block: Block, names: dict[str, Any]) -> None:
    exec(compile(text_of(block, names), block.place, "exec"), names)


def read_settings(block: Block, names: dict[str, Any]) -> None:
    tree = parse_yaml(block.text, block.place)
    defaults, _, factory = load_recipe(tree.get("recipe", "dialogue"))
    needed = {"task": {"data": "x.jsonl"}}
    resolve_config([defaults, needed, tree], task=factory)


RUN: dict[str, Callable[[Block, dict[str, Any]], None]] = {
    "python": run_python,
    "bash": lambda block, names: run_commands(block),
    "yaml": read_settings,
}
SETTINGS: dict[str, Callable[[Any], Any]] = {"a codec": open_codec}


@pytest.mark.parametrize(
    ("language", "mark", "text"),
    [
        ("python", "", "1 / 0"),
        ("bash", "", "ls"),
        ("bash", "", "wavalign-fast config no.key"),
        ("bash", "parsed only: x", "wavalign-fast train --no-option"),
        ("bash", "parsed only: x", "wavalign-fast train --recipe spoken-sums train.stebs=1"),
        ("bash", "parsed only: x", "torchrun -m wavalign_fast trian run.yaml"),
        ("bash", "parsed only: x", "make no-target"),
        ("bash", "parsed only: x", "pip install wavalign-fast[noextra]"),
        ("bash", "parsed only: x", "python -m no_module"),
        ("bash", "parsed only: x", "python no_file.py"),
        ("bash", "parsed only: x", "unknown-program"),
        ("python", "parsed only: x", "1"),
        ("python", "run by tests/test_readme.py", "1"),
        ("python", "run by tests/no_such_test.py", "1"),
        ("yaml", "", "train: {stebs: 1}"),
        ("yaml", "settings of a codec", "kind: toi"),
        ("fortran", "", "end"),
    ],
)
def test_a_block_that_is_wrong_is_found(language, mark, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = Block(ROOT / "docs" / "no.md", 1, language, text, mark)
    with pytest.raises((Exception, SystemExit)):
        check(block, {})


def test_blocks_and_their_marks_are_found(tmp_path):
    page = ROOT / "docs" / "losses.md"
    assert [block.language for block in blocks_of(page)].count("python") == 5
    text = "<!-- all blocks: a -->\n\n```bash\nx\n```\n<!-- b -->\n```python\ny\n```\n"
    file = tmp_path / "x.md"
    file.write_text(text)
    found = blocks_of(file)
    assert [(b.mark, b.language, b.text, b.line) for b in found] == [
        ("a", "bash", "x\n", 3), ("b", "python", "y\n", 7),
    ]  # fmt: skip
