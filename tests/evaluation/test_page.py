"""The page: numbers, answers, sounds, and nothing of them as markup."""

import re
from dataclasses import replace

import pytest

from tests.evaluation.pretended import Counting, finish, plan, prompts
from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.interval_chart import interval_chart
from wavalign_fast.evaluation.page import write_page


@pytest.fixture
def page(tmp_path):
    def make(**changes):
        asked = [replace(one, messages=(("user", f"<b>{place}</b> & more"),), references=("<A>",))
                 for place, one in enumerate(prompts())]  # fmt: skip
        finish(plan(tmp_path, Counting(), asked=asked, **changes))
        return write_page(tmp_path).read_text(encoding="utf-8")

    return make


def test_it_shows_answers_and_plays_their_sound(page, tmp_path):
    text = page(left_out=["f:9: <not> JSON"])
    sounds = len(list((tmp_path / "wavs").iterdir()))
    assert text.count("data:audio/wav;base64,UklGR") == sounds > 0
    assert "&lt;b&gt;1&lt;/b&gt; &amp; more" in text and "<b>1</b>" not in text
    assert "right answer: &lt;A&gt;" in text and "f:9: &lt;not&gt; JSON" in text
    for section in ("notes", "results", "samples", "provenance"):
        assert f'<section id="{section}">' in text
    assert "Speech = text" in text and not re.search(r"\bNone\b|\bnan\b", text)


def test_a_lost_sound_is_no_audio(page, tmp_path):
    page()
    for path in (tmp_path / "wavs").iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    text = write_page(tmp_path).read_text()
    assert "data:audio" not in text and "no audio" in text


def test_languages_have_lines_of_their_own(page, tmp_path):
    asked = [replace(one, task="qa", category="c", language="en" if place % 2 else "zh")
             for place, one in enumerate(prompts())]  # fmt: skip
    finish(plan(tmp_path, Counting(), asked=asked))
    text = write_page(tmp_path).read_text()
    assert '<th scope="row">en</th><td>2</td>' in text
    assert '<th scope="row">zh</th><td>3</td>' in text


def test_a_damaged_report_is_named(page, tmp_path):
    page()
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match=r"report.json cannot be read"):
        write_page(tmp_path)


def test_a_chart_places_values_on_the_scale():
    rows = {"low": {"value": 1.0, "low": 1.0, "high": 2.0},
            "high": {"value": 5.0, "low": 4.0, "high": 5.0},
            "none": {"value": None, "low": None, "high": None}}  # fmt: skip
    drawn = interval_chart(rows, rated=True)
    left, right = (float(x) for x in re.findall(r'cx="([\d.]+)"', drawn))
    ends = [float(x) for x in re.findall(r"M([\d.]+) [\d.]+H", drawn)]
    assert left == ends[0] and right > ends[1] > left and "none" not in drawn
    assert interval_chart({"none": rows["none"]}, rated=True) == ""
