"""Secrets in a command or a setting are hidden; nothing else is."""

import pytest

from wavalign_fast.redaction import is_secret, without_secrets


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("task.api_key=sk-1", "task.api_key=***"),
        ("task.HF_TOKEN=hf=1", "task.HF_TOKEN=***"),
        ("password=x", "password=***"),
        ("task.judge=https://me:pw@judge.example/v1", "task.judge=https://***@judge.example/v1"),
        ("train.block_tokens=40", "train.block_tokens=40"),
        ("task.monkey=1", "task.monkey=1"),
        ("run.yaml", "run.yaml"),
    ],
)
def test_a_word_of_a_command(word, kept):
    assert without_secrets(["train", word]) == ["train", kept]


def test_the_value_after_an_option():
    words = ["train", "--api-key", "sk-1", "--seed", "3", "--token=t", "--name", "key"]
    shown = ["train", "--api-key", "***", "--seed", "3", "--token=***", "--name", "key"]
    assert without_secrets(words) == shown


def test_names_of_secrets():
    assert is_secret("task.judge_api_key") and is_secret("secret") and is_secret("x.credentials")
    assert not is_secret("max_new_tokens")
