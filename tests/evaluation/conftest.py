"""The model directory of ``examples/own_model``, made once."""

import sys

import pytest

from tests.recipes import conftest as own_model

own_files, model_directory = own_model.own_files, own_model.model_directory

JUDGE = """
def score(answers):
    return [None if "silent" in answer["prompt"] else 1 + len(answer["text"]) % 5
            for answer in answers]


def fails(answers):
    raise RuntimeError("no judge today")


def too_high(answers):
    return [7] * len(answers)


def hear(wave, rate):
    return "red"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the user's functions, in which commands run."""
    (tmp_path / "mine.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("wavalign_reward_mine", None)
