"""A recipe takes a judge and a list of rewards among its options."""

import re
from dataclasses import dataclass
from typing import Any

import pytest

import wavalign_fast.recipes as recipes
from wavalign_fast.config.commented import commented_config
from wavalign_fast.config.layers import parse_overrides, resolve_config
from wavalign_fast.config.listing import list_settings
from wavalign_fast.config.yaml import read_config_file
from wavalign_fast.errors import UserError
from wavalign_fast.rewards.judge.options import NO_JUDGE, JudgeOptions
from wavalign_fast.rewards.options import read_parts


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a recipe."""

    judge: JudgeOptions = NO_JUDGE
    rewards: list[dict[str, Any]] | None = None


def task_of(*overrides: str) -> dict:
    return resolve_config([{"recipe": "x"}, parse_overrides(overrides)], task=Options).task


def test_they_are_read_from_settings():
    task = task_of(
        "task.judge.url=http://h/v1", "task.judge.model=3e8", "task.judge.cache=kept",
        "task.rewards=[{kind: judge, weight: 2.0}, {kind: regex, pattern: 'no'}]",
    )  # fmt: skip
    judge = JudgeOptions(**task["judge"])
    assert judge.model == "3e8" and str(judge.cache) == "kept"
    weights = [(part.kind, part.weight) for part in read_parts(task["rewards"], judge)]
    assert weights == [("judge", 2.0), ("regex", 1.0)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.judge.urll=x", "unknown key task.judge.urll; did you mean task.judge.url"),
        ("task.judge.samples=0", "task.judge.samples: 0 given, wanted a whole number >= 1"),
        ("task.judge.mode=both", "task.judge.mode: 'both' given, wanted one of holistic"),
        ("task.judge.url=http://h/v1", "task.judge: model: nothing given"),
    ],
)
def test_a_mistake_is_named_by_its_key(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        task_of(override)


@pytest.fixture
def recipe(monkeypatch):
    found = {"recipe": "spoken-sums"}, {"only": {}}, Options
    monkeypatch.setattr(recipes, "load_recipe", lambda name: found)
    for module in ("listing", "commented"):
        monkeypatch.setattr(f"wavalign_fast.config.{module}.load_recipe", lambda name: found)


def test_every_key_of_the_judge_is_listed(recipe):
    text = list_settings(["task"], recipe="spoken-sums")
    for name in JudgeOptions.model_fields:
        assert re.search(rf"^  task\.judge\.{name}\b", text, re.MULTILINE), name


def test_a_written_config_has_them(recipe, tmp_path):
    text = commented_config("spoken-sums", {"task": {"judge": {"url": "http://h", "model": "m"}}})
    (tmp_path / "run.yaml").write_text(text)
    read = read_config_file(tmp_path / "run.yaml")
    assert read["task"]["judge"] == {"url": "http://h", "model": "m"}
    assert "#samples: 1" in text and "#cache: null" in text
