"""The table of results fits the width, whatever the recipe measures."""

import pytest

from wavalign_fast.train.result_table import result_table

METRICS = (
    "text_accuracy text_accuracy_greedy speech_matches_text speech_says_sum speech_ce text_ce "
    "ended speech_length items"
).split()
ARMS = ["base", "wavalign", "rl-text", "rl-all", "sft-imperfect", "sft-gold", "released"]
FIGURES = {arm: {name: 0.5 for name in METRICS[:-1]} | {"items": 400.0} for arm in ARMS}


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_every_figure_is_there_at_every_width(width):
    text = result_table(FIGURES, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("0.500") == len(ARMS) * (len(METRICS) - 1) and text.count("400") == len(ARMS)
    assert text.isprintable() is False and text.replace("\n", "").isprintable()
    words = text.split()
    for name in METRICS:
        assert all(word in words for word in name.split("_"))
    for block in text.split("\n\n"):
        assert all(arm in block for arm in ARMS)


def test_one_table_where_it_fits():
    assert "\n\n" not in result_table(FIGURES, width=80)
    assert result_table({"base": {"norm": 1.25}, "a": {}}, width=80).splitlines() == [
        "held out  norm",
        "base     1.250",
        "a",
    ]


def test_nothing_was_measured():
    assert result_table({}, width=80) == "" == result_table({"base": {}}, width=80)
