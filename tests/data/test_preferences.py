"""Offline preference pairs in JSONL."""

import json

import pytest

from wavalign_fast.data.preferences import read_preferences
from wavalign_fast.data.records import Preference

GOOD = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}


def test_pairs_with_and_without_an_example(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, [GOOD, GOOD | {"id": "a", "score": 1}])) + "\n")
    pair = Preference(prompt_ids=(1, 2), chosen_ids=(3,), rejected_ids=(4, 5))
    first, second = read_preferences(path, vocab_size=6)
    assert first == pair and first.example_id is None
    assert second == Preference(**{**vars(pair), "example_id": "a"})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt_ids": []}, r"prompt_ids is \[\], wanted a list of ids that is not empty"),
        ({"prompt_ids": None}, "prompt_ids is None"),
        ({"chosen_ids": "3"}, "chosen_ids is '3'"),
        ({"chosen_ids": [True]}, "chosen_ids has True, wanted 0 <= id < 6"),
        ({"rejected_ids": [6]}, "rejected_ids has 6, wanted 0 <= id < 6"),
        ({"rejected_ids": [3]}, "chosen_ids and rejected_ids are equal, wanted two answers"),
        ({"id": 5}, "id is 5, wanted text"),
    ],
    ids=str,
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, change, message) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(ValueError, match=rf"pairs.jsonl:2: {message}"):
        read_preferences(path, vocab_size=6)
