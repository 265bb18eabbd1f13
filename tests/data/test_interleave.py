"""Text and speech are interleaved as the families do it."""

import json
from pathlib import Path

import pytest

from wavalign_fast.data.interleave import interleave

GOLDEN = json.loads((Path(__file__).parent / "families" / "interleave.json").read_text())


@pytest.mark.parametrize(
    "case", GOLDEN["cases"], ids=lambda c: f"{c['ratio'][1]}-{c['text']}-{c['codes']}"
)
def test_chunks_are_those_of_vita_audio(case):
    text = range(GOLDEN["text_ids_start"], GOLDEN["text_ids_start"] + case["text"])
    codes = range(GOLDEN["code_ids_start"], GOLDEN["code_ids_start"] + case["codes"])
    mixed = interleave(text, codes, case["ratio"], begin=GOLDEN["begin"], end=GOLDEN["end"])
    assert mixed == case["output"]


@pytest.mark.parametrize(
    ("text", "codes", "mixed"),
    [
        ("abcde", "1234567", "ab123cd456e7"),
        ("abc", "123456789", "ab123c456789"),
        ("abcdef", "1234", "ab123cd4ef"),
        ("abc", "", "abc"),
        ("", "1234", "1234"),
        ("", "", ""),
    ],
)
def test_without_boundary_ids_what_is_left_follows(text, codes, mixed):
    assert bytes(interleave(text.encode(), codes.encode(), (2, 3))).decode() == mixed


@pytest.mark.parametrize("ratio", [(), (1,), (1, 4, 2), (0, 4), (1, 2), (1, 4, 2, 2)])
def test_a_ratio_without_room_for_an_id_is_refused(ratio):
    with pytest.raises(ValueError, match=r"ratio .*wanted"):
        interleave([1], [2], ratio, begin=3, end=4)


def test_one_boundary_id_alone_is_refused():
    with pytest.raises(ValueError, match="begin 3 and end None: wanted both or none"):
        interleave([1], [2], (1, 3), begin=3)
