"""The layers of a config, and one line for every mistake."""

import inspect
from collections import deque

import pytest
import torch
from pydantic import BaseModel

from wavalign_fast.config.layers import (
    check_task_options,
    choose_arm,
    differing_keys,
    dump_config,
    key_hint,
    known_keys,
    merge,
    parse_overrides,
    resolve_config,
    wanted,
)
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.config.yaml import parse_yaml, read_config_file
from wavalign_fast.errors import UserError
from wavalign_fast.train.optimizer import build_optimizer

BASE = {"recipe": "toy"}


def resolve(*overrides, base=BASE):
    return resolve_config([base, parse_overrides(overrides)])


def groups(model=RunConfig):
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from groups(field.annotation)


def test_later_layers_win_group_by_group():
    arm = choose_arm({"sft": {"loss": {"mixing": 0.0}, "anchor": {"rows": 8}}}, "sft")
    user = parse_yaml("loss: {text_kl: 0.5}\nanchor: {rows: 16}", "user")
    config = resolve_config([BASE, arm, user, parse_overrides(["anchor.rows=24"])])
    assert (config.arm, config.loss.mixing, config.loss.text_kl) == ("sft", 0.0, 0.5)
    assert config.anchor.rows == 24 and config.rollout.prompts == 8


def test_merging_changes_neither_layer():
    base, overlay = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, overlay) == {"a": {"b": 1, "c": 2}}
    assert (base, overlay) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_values_are_yaml_and_numbers_are_numbers():
    config = resolve(
        "optimizer.lr=1e-3", "loss.clip=[0.2, 3e-1]", "optimizer.betas=[0.9, 0.95]", "task.path=a b"
    )
    assert config.optimizer.lr == 1e-3 and config.loss.clip == (0.2, 0.3)
    assert config.optimizer.betas == (0.9, 0.95) and config.task == {"path": "a b"}
    assert resolve("loss.clip=0.2").loss.clip == 0.2
    assert resolve("loss.clip=null").loss.clip is None


@pytest.mark.parametrize(
    "overrides", [[], ["loss.clip=[0.1,0.2]"], ["loss.mixing=0.25", "name=x", "task.a=[1, b]"]]
)
def test_a_dumped_config_reads_back_the_same(overrides):
    config = resolve(*overrides)
    assert resolve_config([parse_yaml(dump_config(config), "dump")]) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=abc", "train.steps: 'abc' given, wanted a whole number >= 0"),
        ("train.steps=1.5", "train.steps: 1.5 given, wanted a whole number >= 0"),
        ("train.steps=-1", "train.steps: -1 given, wanted a whole number >= 0"),
        ("train.threads=true", "train.threads: True given, wanted a whole number >= 0"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' given, wanted a number >= 0.0"),
        ("optimizer.lr=.nan", "optimizer.lr: nan given, wanted a number >= 0.0"),
        ("train=3", "train: 3 given, wanted a group of keys"),
        ("train.stepz=3", "unknown key train.stepz; did you mean train.steps?"),
        ("steps=3", "unknown key steps; did you mean train.steps?"),
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer?"),
        ("loss.gate.lambda=1", "unknown key loss.gate.lambda; did you mean loss.gate.lambda_max?"),
        (
            "loss.policy_scope=txt",
            "loss.policy_scope: 'txt' given, wanted one of text, speech, all",
        ),
        (
            "loss.mixing=1.5",
            "loss.mixing: 1.5 given, wanted adaptive or a number >= 0.0 and <= 1.0",
        ),
        (
            "loss.normalisation=mean",
            "loss.normalisation: 'mean' given, wanted one of sequence, token",
        ),
        ("train.steps", "'train.steps' given, wanted key=value, e.g. train.steps=20"),
        (".a=1", "'.a=1' given, wanted key=value, e.g. train.steps=20"),
        ("a=[1", "a:1: not valid YAML"),
        ("anchor.rows=0 loss.mixing=0", "nothing to learn from: loss.mixing 0.0 and anchor.rows 0"),
    ],
)
def test_a_mistake_is_one_line_with_key_seen_and_wanted(override, message):
    with pytest.raises(UserError) as error:
        resolve(*override.split(" "))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def numeric_keys(model=RunConfig, prefix=""):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numeric_keys(field.annotation, f"{prefix}{name}.")
        elif "number" in wanted(field.annotation, field.metadata):
            yield f"{prefix}{name}"


ABSURD = ["1e30", "-1e30", "1" + "0" * 30, "-1" + "0" * 30, ".inf", "-.inf", ".nan", "1e999"]


@pytest.mark.parametrize("value", ABSURD)
def test_no_number_is_without_bounds(value):
    keys = list(numeric_keys())
    assert {"train.seed", "optimizer.betas", "loss.gate.threshold", "loss.mixing"} <= set(keys)
    for key in keys:
        for given in (value, f"[{value}, {value}]"):
            with pytest.raises(UserError, match=rf"^{key}: .* given, wanted ") as error:
                resolve(f"{key}={given}")
            assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.seed=18446744073709551616",
            "train.seed: 18446744073709551616 given, wanted a whole",
        ),
        (
            "train.eval_seed=9223372036854775808",
            "train.eval_seed: 9223372036854775808 given, wanted",
        ),
        (
            "train.seed=-1",
            "train.seed: -1 given, wanted a whole number >= 0 and <= 922337203685477",
        ),
        (
            "optimizer.betas=[0.9,1.0]",
            "optimizer.betas: [0.9, 1.0] given, wanted [a number >= 0.0 an",
        ),
        (
            "optimizer.betas=[1.0,0.9]",
            "optimizer.betas: [1.0, 0.9] given, wanted [a number >= 0.0 an",
        ),
        (
            "optimizer.betas=[0.9]",
            "optimizer.betas: [0.9] given, wanted [a number >= 0.0 and < 1.0,",
        ),
        ("optimizer.eps=1e-50", "optimizer.eps: 1e-50 given, wanted a number >= 1e-30"),
        ("train.threads=2000", "train.threads: 2000 given, wanted a whole number >= 0 and <= 1024"),
        ("rollout.temperature=1e-9", "rollout.temperature: 1e-09 given, wanted a number >= 0.0001"),
        (f"name={'x' * 300}", "name: 'xxxx"),
        (
            "rollout={prompts: 100000, group_size: 100000}",
            "rollout: prompts 100000 × group_size 100000 × max_new_tokens 72 is 720000000000 ids a",
        ),
    ],
)
def test_what_only_a_library_would_refuse_is_refused_by_name(override, message):
    with pytest.raises(UserError) as error:
        resolve(override)
    assert str(error.value).startswith(message) and len(str(error.value)) < 300


def test_the_largest_values_are_taken_by_the_libraries():
    config = resolve(
        f"train.seed={2**63 - 1}", "optimizer.betas=[0.999999, 0.0]", "train.threads=1024"
    )
    torch.Generator().manual_seed(config.train.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
    layer = torch.nn.Linear(2, 2)
    build_optimizer(layer, config.optimizer)
    deque(maxlen=resolve("train.log_every=1000000000").train.log_every)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n", "train: nothing (null) given, wanted a group of keys"),
        ("train: {steps: }\n", "train.steps: nothing (null) given, wanted a whole number"),
    ],
)
def test_an_empty_value_is_said_in_the_words_of_yaml(text, message):
    with pytest.raises(UserError) as error:
        resolve_config([BASE, parse_yaml(text, "c.yaml")])
    assert str(error.value).startswith(message)


def test_further_mistakes_are_counted():
    with pytest.raises(UserError, match=r"unknown key .* \(and 1 more\)$"):
        resolve("train.steps=abc", "train.seeds=3")


def test_a_dotted_key_in_a_file_says_how_to_write_it():
    with pytest.raises(UserError, match=r"^unknown key train\.steps in one word; in a file, write"):
        resolve_config([BASE, {"train.steps": 3}])


@pytest.mark.parametrize(
    ("given", "hint"),
    [("train.zzz", ""), ("loss.gate.emma", "loss.gate.ema"), ("loss.zzz", ""), ("TRAIN", "train")],
)
def test_no_group_is_suggested_for_a_key_in_it(given, hint):
    assert key_hint(given, known_keys(RunConfig)) == (f"; did you mean {hint}?" if hint else "")


def test_a_missing_recipe_is_said():
    with pytest.raises(UserError, match="recipe: missing, wanted text"):
        resolve(base={})


def test_an_unknown_arm_suggests_one():
    with pytest.raises(UserError, match="wanted one of sft-gold, wavalign; did you mean wavalign"):
        choose_arm({"sft-gold": {}, "wavalign": {}}, "wavaling")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", r"c.yaml:1: not valid YAML"),
        (b"- 1\n", "list given, wanted a mapping"),
        (b"\xff\xfe\x00", "cannot be read|not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_config_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named_and_an_empty_one_is_no_layer(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        read_config_file(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_config_file(tmp_path / "empty.yaml") == {}


def make_task(*, path: str | None = None, share: float = 0.5) -> None:
    """Stands for a recipe's constructor."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pth": "x"}, "unknown key task.pth; did you mean task.path?"),
        ({"share": "abc"}, "task.share: 'abc' given, wanted a number"),
    ],
)
def test_task_options_are_those_of_the_constructor(options, message):
    check_task_options(make_task, {"path": "x", "share": 1})
    with pytest.raises(UserError) as error:
        check_task_options(make_task, options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("overrides", "rollouts", "anchor", "reference"),
    [
        ([], True, True, False),
        (["loss.mixing=0", "loss.text_kl=1"], False, True, False),
        (["loss.mixing=0", "loss.text_kl=1", "loss.kl_scope=completion"], True, True, True),
        (["loss.mixing=1"], True, False, False),
        (["anchor.rows=0", "loss.speech_kl=1"], True, False, True),
    ],
)
def test_what_a_config_needs(overrides, rollouts, anchor, reference):
    config = resolve(*overrides)
    assert config.needs_rollouts == config.needs_rewards == rollouts
    assert config.needs_anchor == anchor
    assert config.needs_reference == reference


@pytest.mark.parametrize(
    ("key", "rollouts", "rewards"),
    [
        ("dpo.pairs=offline", False, False),
        ("dpo.pairs=auto", True, True),
        ("dpo.chosen=demonstration", True, False),
    ],
)
def test_what_dpo_needs(key, rollouts, rewards):
    config = resolve("method=dpo", key)
    assert (config.needs_rollouts, config.needs_rewards) == (rollouts, rewards)
    assert config.needs_reference and not config.needs_anchor


def test_differing_keys_are_dotted():
    assert differing_keys(resolve(), resolve("train.seed=1", "task.a=1")) == [
        "task",
        "train.seed",
        "task.a",
    ]


def test_every_key_has_a_docstring():
    missing = [
        f"{group.__name__}.{name}"
        for group in groups()
        for name, field in group.model_fields.items()
        if not field.description
    ]
    assert not missing


def test_help_lists_the_keys_of_a_group():
    for group in groups():
        text = inspect.getdoc(group)
        for name, field in group.model_fields.items():
            assert f"{name}: {field.description}" in text
