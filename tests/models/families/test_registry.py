"""Families are found by their files, and a user's own family is a Python file."""

import json

import pytest

from wavalign_fast.errors import DamagedFileError, UserError
from wavalign_fast.models.families import registry
from wavalign_fast.models.families.interface import FUNCTIONS, DialogueOptions, evidence
from wavalign_fast.models.families.registry import find_family, named_family

ASKED = {"architectures": ("OwnForCausalLM",), "model_types": ("own",), "keys": ("own_a", "own_b")}


@pytest.mark.parametrize(
    ("config", "sure"),
    [
        ({"architectures": ["OwnForCausalLM"], "model_type": "qwen2"}, 4),
        ({"architectures": ["Other", "OwnForCausalLM"], "model_type": "own"}, 3),
        ({"architectures": None, "own_a": 1, "own_b": 2}, 2),
        ({"own_a": 1}, 0),
        ({}, 0),
    ],
)
def test_a_class_is_surer_than_a_type_and_a_type_than_keys(config, sure):
    assert evidence(config, **ASKED) == sure


def test_no_family_claims_what_has_no_keys_to_tell_it():
    assert evidence({"a": 1}, architectures=("Own",)) == 0


def family_file(directory, *, left_out=(), detect="return 0"):
    functions = {name: f"def {name}(*a):\n    return None\n" for name in FUNCTIONS}
    functions["detect"] = f"def detect(config, tokens):\n    {detect}\n"
    lines = ['NAME = "mine"', *(functions[name] for name in FUNCTIONS if name not in left_out)]
    (directory / "mine.py").write_text("\n".join(lines))
    return str(directory / "mine.py")


def test_a_users_family_is_a_file_of_the_same_shape(tmp_path):
    assert named_family(family_file(tmp_path)).NAME == "mine"
    with pytest.raises(UserError, match=r"mine\.py: weights, split missing"):
        named_family(family_file(tmp_path, left_out=("weights", "split")))
    (tmp_path / "bad.py").write_text("import nothing_like_this")
    with pytest.raises(UserError, match=r"bad\.py: ModuleNotFoundError: .*nothing_like_this"):
        named_family(str(tmp_path / "bad.py"))
    with pytest.raises(UserError, match=r"other\.py: no such file"):
        named_family(str(tmp_path / "other.py"))
    with pytest.raises(UserError, match="family 'own': not known"):
        named_family("own")


def test_the_surest_family_has_a_directory(tmp_path, monkeypatch):
    config = {"model_type": "qwen2", "own_key": 1}
    decoder = {"7": {"content": "<|audio_0|>"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    answers = {
        "by_tokens": "return 1 if '<|audio_0|>' in tokens else 0",
        "by_key": "return 2 if 'own_key' in config else 0",
        "never": "return 0",
    }
    found = {name: named_family(family_file(tmp_path, detect=d)) for name, d in answers.items()}
    monkeypatch.setattr(registry, "_built_in", found.get)
    monkeypatch.setattr(registry, "FAMILIES", ("by_tokens", "by_key", "never"))
    assert find_family(tmp_path) is found["by_key"]
    monkeypatch.setattr(registry, "FAMILIES", ("by_tokens", "never"))
    assert find_family(tmp_path) is found["by_tokens"]
    monkeypatch.setattr(registry, "FAMILIES", ("never",))
    assert find_family(tmp_path) is None


def test_a_directory_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        find_family(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DamagedFileError, match="holds list, wanted a JSON object"):
        find_family(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"config\.json cannot be read"):
        find_family(tmp_path)


def test_an_unknown_style_of_prompts_is_refused():
    with pytest.raises(UserError, match="prompt_style is 'rows', wanted one of row, release"):
        DialogueOptions(prompt_style="rows")
