"""YAML round trips, and nothing in a file is lost or guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavalign_fast.config.layers import dump_config, parse_overrides, resolve_config
from wavalign_fast.config.yaml import dump_yaml, parse_yaml, read_config_file
from wavalign_fast.errors import UserError

LIKE_OTHER_TYPES = (
    "3e8 12e4567 5e-1 1e5 .5e3 1.e2 0x10 1_000 2026-11-27 010 1:30 190:20:30 null Null ~ yes no on "
    "off true False .inf -.nan .NaN 1.5 +7 -0 0b1 0o7 12 1__0 2026-13-45 2001-12-14t21:59:43-05:00 "
    "= << - ? : | > ! & * % @ ` [] {} [x {y 'q \"q #c a:b a#b"
).split()
AWKWARD = [
    "",
    " ",
    " lead",
    "trail ",
    "a: b",
    "a #b",
    "-",
    "---",
    "...",
    "é",
    "\u2028",
    "\x85",
    "\t",
]


@pytest.mark.parametrize("text", [*LIKE_OTHER_TYPES, *AWKWARD, "\ud800", "\U0001f600", "\ufeff"])
def test_text_is_written_so_that_it_is_read_as_text(text):
    tree = {"name": text, "task": {text: [text]}}
    again = parse_yaml(dump_yaml(tree), "dump")
    assert again == tree
    assert type(again["name"]) is str and type(again["task"][text][0]) is str


@given(st.text() | st.from_regex(r"\A[-+]?[0-9_.:eExob]{1,12}\Z"))
def test_any_text_survives(text):
    again = parse_yaml(dump_yaml({"a": text}), "dump")["a"]
    assert again == text and type(again) is str


NAMES = ["3e8", "12e4567", "5e-1", "null", "yes", "0x10", "1_000", "2026-11-27", "010", "1e1000"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_wherever_it_comes_from(name):
    flag = resolve_config([{"recipe": "toy", "name": name}])
    assert flag.name == name
    assert resolve_config([parse_yaml(dump_config(flag), "dump")]) == flag
    if name == "null":
        return  # unquoted, it is how a name is taken back
    for layer in (parse_overrides([f"name={name}"]), parse_yaml(f"name: {name}", "file")):
        assert resolve_config([{"recipe": "toy"}, layer]).name == name


def test_null_takes_text_back():
    below = {"recipe": "toy", "name": "below"}
    for layer in (["name=null"], ["name=~"], ["name="]):
        assert resolve_config([below, parse_overrides(layer)]).name is None
    assert resolve_config([below, parse_yaml("name: null", "file")]).name is None
    assert resolve_config([below, parse_overrides(["name='null'"])]).name == "null"


def make_task(*, path: str | None = None, share: float = 0.5, kind: str | int = 1) -> None:
    """Stands for a recipe's constructor."""


PATHS = [
    "a #b",
    "a: b",
    "[x",
    "{x}",
    "*x",
    "&x",
    "!x",
    "@x",
    "%x",
    "#x",
    "3e8",
    "no",
    "x'",
    "-1",
    "λ",
]


@pytest.mark.parametrize("path", PATHS)
def test_an_option_that_wants_text_gets_what_was_typed(path):
    layers = [{"recipe": "toy"}, parse_overrides([f"task.path={path}", "task.share=1e-1"])]
    config = resolve_config(layers, task=make_task)
    assert config.task == {"path": path, "share": 0.1}


def test_groups_in_one_setting_are_groups():
    layers = ["loss={text_kl: 0.1, gate: {ema: 0.5}}", "loss.speech_kl=1e-1", "task={a: 3e8}"]
    config = resolve_config([{"recipe": "toy", "loss": {"mixing": 0.5}}, parse_overrides(layers)])
    assert (config.loss.text_kl, config.loss.speech_kl, config.loss.gate.ema) == (0.1, 0.1, 0.5)
    assert config.loss.mixing == 0.5 and config.task == {"a": 3e8}


def test_without_the_recipe_options_are_what_yaml_says():
    config = resolve_config([{"recipe": "toy"}, parse_overrides(["task.a=3e8", "task.b=[1, x]"])])
    assert config.task == {"a": 3e8, "b": [1, "x"]}
    assert type(config.task["a"]) is float


def test_a_union_of_text_and_numbers_is_read_as_yaml():
    layers = [{"recipe": "toy"}, parse_overrides(["task.kind=7"])]
    assert resolve_config(layers, task=make_task).task == {"kind": 7}


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("train: {steps: 7}\nloss: {}\ntrain: {seed: 3}\n", "train", (3, 1)),
        ("train:\n  steps: 7\n  seed: 1\n  steps: 8\n", "steps", (4, 2)),
        ("task:\n  a:\n  - x: 1\n    y: 2\n    'x': 3\n", "x", (5, 3)),
        ("b: &b {x: 1, x: 2}\na: *b\n", "x", (1, 1)),
        ("a: {<<: {x: 1}, <<: {y: 2}}\n", "<<", (1, 1)),
        ("1: x\n1: y\n", "1", (2, 1)),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(text, key, lines):
    with pytest.raises(UserError) as error:
        parse_yaml(text, "c.yaml")
    wanted = f"c.yaml:{lines[0]}: key {key} is given twice, first in line {lines[1]}"
    assert str(error.value) == wanted


def test_anchors_and_merge_keys_work():
    text = "task:\n  a: &a {x: 1, y: 2}\n  b: {<<: *a, y: 3}\n  c: {<<: [*a, {z: 4}]}\n"
    tree = resolve_config([{"recipe": "toy"}, parse_yaml(text, "c.yaml")]).task
    assert tree["b"] == {"x": 1, "y": 3} and tree["c"] == {"x": 1, "y": 2, "z": 4}


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 100_000, "not valid YAML|nested too deep"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deep"),
        ("a: &a [*a]", "nested too deep"),
        ("a: &a {b: *a}", "nested too deep"),
        (LAUGHS, "more than 100000 values"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML: could not determine a constr"),
        ("a: \x00", "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "expected a single document in the stream, but found another"),
        ("a: !!int {b: 1}\n", "not valid YAML: expected a scalar node, but found mapping"),
        ("? [a]\n: b\n", "not valid YAML: found unhashable key"),
        ("a: *b\n", "not valid YAML: found undefined alias"),
    ],
)
def test_what_is_no_config_is_refused_on_one_line(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_config_file(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


TAGGED = ["!!bool x", "!!timestamp x", "!!int ''", "!!float ''", "!!int x", "!!float x"]


@pytest.mark.parametrize(
    "text", ["1" * 5000, "010", "1:30", "2026-13-45", "1e999", "2026-11-27", *TAGGED]
)
def test_no_number_is_made_of_what_only_looks_like_one(text):
    for layer in (
        parse_overrides([f"train.steps={text}"]),
        parse_yaml(f"train: {{steps: {text}}}", ""),
    ):
        with pytest.raises(
            UserError, match=r"^train\.steps: .* given, wanted a whole number"
        ) as error:
            resolve_config([{"recipe": "toy"}, layer])
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["1e-400", "-1e-400", "0.1e-9999", "5.0e-400"])
def test_a_number_below_every_float_is_not_taken_for_zero(text):
    for layer in (
        parse_overrides([f"optimizer.lr={text}"]),
        parse_yaml(f"optimizer: {{lr: {text}}}", ""),
    ):
        with pytest.raises(UserError, match=rf"^optimizer\.lr: '{text}' given, wanted a number"):
            resolve_config([{"recipe": "toy"}, layer])


@pytest.mark.parametrize("text", ["0.0", "-0.0", "0e-400", "0.00e+5", "0"])
def test_zero_in_any_form_is_zero(text):
    layers = [{"recipe": "toy"}, parse_overrides([f"optimizer.lr={text}"])]
    assert resolve_config(layers).optimizer.lr == 0.0


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfrecipe: toy\n")
    assert read_config_file(tmp_path / "c.yaml") == {"recipe": "toy"}
