"""``wavalign-fast init`` writes a config with every key, which reads back as what it shows."""

import re

import pytest

from wavalign_fast.cli import main
from wavalign_fast.config.commented import commented_config
from wavalign_fast.config.layers import known_keys, leaves, options_model, resolve_config, settle
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.config.yaml import parse_yaml
from wavalign_fast.recipes import PACKAGES, load_recipe

VALUES = {
    "dialogue": {"model": {"path": "a: b"}, "task": {"data": "no", "eval_data": "3e8"}},
    "spoken-sums": {},
    "wavalign": {"model": {"path": "m"}, "task": {"data": "d", "judge": {"model": "ear"}}},
}


def config_of(text: str, recipe: str) -> RunConfig:
    tree = settle(parse_yaml(text, "text"), RunConfig)
    return resolve_config([tree], task=load_recipe(recipe)[2])


def test_every_recipe_is_tried():
    assert {*VALUES} == {*PACKAGES}


@pytest.mark.parametrize("recipe", VALUES)
def test_it_reads_back_as_the_recipe_with_the_values(recipe):
    defaults, _, factory = load_recipe(recipe)
    wanted = resolve_config([defaults, {"recipe": recipe}, VALUES[recipe]], task=factory)
    assert config_of(commented_config(recipe, VALUES[recipe]), recipe) == wanted


@pytest.mark.parametrize("recipe", VALUES)
def test_every_key_is_there_and_shows_its_default(recipe):
    text = commented_config(recipe, VALUES[recipe])
    factory = load_recipe(recipe)[2]
    keys = [key.rpartition(".")[2] for key in known_keys(RunConfig)]
    keys += [key.rpartition(".")[2] for key in known_keys(options_model(factory))]
    shown = re.findall(r"^ *#?([a-z0-9_]+):(?: |$)", text, re.MULTILINE)
    assert sorted(key for key in shown if key in keys) == sorted(keys)
    # With the # removed from every default, nothing changes.
    key = re.compile(rf"^( *)#((?:{'|'.join(keys)}):.*)$", re.MULTILINE)
    shown_defaults = key.sub(r"\1\2", text).replace(": (must be set)", ": null")
    plain = config_of(text, recipe).model_dump()
    everything = config_of(shown_defaults, recipe).model_dump()
    given, options = (dict(leaves(config.pop("task"))) for config in (plain, everything))
    assert everything == plain
    assert {name: options[name] for name in given} == given


def test_the_command_writes_a_config_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "data.jsonl").touch()
    words = ["init", "dialogue", "--model", "model", "--data", "data.jsonl"]

    assert main(words) == 0
    assert "wavalign-fast train run.yaml" in capsys.readouterr().out
    config = config_of((tmp_path / "run.yaml").read_text(encoding="utf-8"), "dialogue")
    assert (config.model.path, config.task["data"]) == ("model", "data.jsonl")
    assert config.train.eval_items == 0  # no data for evaluations is given

    assert main(words) == 2
    assert "run.yaml is there already" in capsys.readouterr().err
    assert main([*words, "--output", "-"]) == 0
    assert "recipe: dialogue" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dialogue", "--model", "nowhere", "--data", "."], "--model: nowhere is not there"),
        (["dialogue", "--model", ".", "--data", "nothing"], "--data: nothing is not there"),
        (["dialog", "--model", ".", "--data", "."], "did you mean dialogue?"),
        (["spoken-sums", "--model", ".", "--data", "."], "unknown key task.data"),
    ],
)
def test_mistakes_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
