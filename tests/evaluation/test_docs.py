"""The example of docs/evaluation.md runs, and the page says what the code does."""

import re
import shlex
import shutil
from pathlib import Path

from wavalign_fast import cli
from wavalign_fast.evaluation.presets import EQ, IQ
from wavalign_fast.evaluation.prompts import TASKS
from wavalign_fast.evaluation.table import read_report

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)[1]


def test_the_example_runs_twice(folder, model_directory, capfd):
    shutil.copytree(model_directory, "my_model")
    Path("prompts.jsonl").write_text(block("json"))
    Path("my_judge.py").write_text(block("python"))
    command = shlex.split(block("bash"))
    assert command[0] == "wavalign-fast"
    pages = []
    for _ in range(2):
        assert cli.main(command[1:]) == 0
        pages.append(Path("results/report.html").read_text())
    assert pages[0] == pages[1] and "Tell me about the sea." in pages[0]
    assert list(read_report(Path("results"))["categories"]) == ["mmsu", "web", "bbh", "talk"]


def test_the_page_names_the_tasks_and_the_categories_of_iq_and_eq():
    for name in (*TASKS, *IQ, *EQ):
        assert f"`{name}`" in TEXT, name
