"""Two evaluations of the same prompts, compared prompt by prompt."""

import json
import random

import pytest

from tests.evaluation.test_command import write
from wavalign_fast import cli


@pytest.fixture
def runs(folder, capfd):
    """Two runs: the second one is right where the first one is, and on some more."""
    rng = random.Random(0)
    answers = [[rng.random() < 0.5 for _ in range(40)]]
    answers.append([right or rng.random() < 0.5 for right in answers[0]])
    for name, given in zip(("a", "b"), answers, strict=True):
        records = [
            {"id": place, "task": "mcq", "category": category, "prompt": f"{category} {place % 10}",
             "reference": "A", "response": "A" if given[place] else "B"}
            for place, category in enumerate(
                10 * ["mmsu"] + 10 * ["openbookqa"] + 10 * ["bbh"] + 10 * ["ifeval"]
            )
        ]  # fmt: skip
        if name == "b":
            records.append({**records[0], "id": "new"})
        write(folder / f"{name}.jsonl", records)
        assert cli.main(["evaluate", f"{name}.jsonl", "--answered", "--output", name]) == 0
    capfd.readouterr()
    return answers


def compare(*names):
    return cli.main(["evaluate", "--compare", *names, "--output", "difference"])


def test_the_difference_is_that_of_the_pairs(runs, folder, capfd):
    assert compare("a", "b") == 0
    found = json.loads((folder / "difference" / "comparison.json").read_text())
    first, second = (runs[side][:10] for side in (0, 1))
    row = found["categories"]["mmsu"]
    assert row["n"] == 10 and row["first"] == pytest.approx(sum(first) / 10)
    assert row["value"] == pytest.approx((sum(second) - sum(first)) / 10)
    assert row["better"] == sum(second) - sum(first) and row["worse"] == 0
    assert 0 <= row["low"] <= row["value"] <= row["high"]  # no pair got worse
    assert found["iq"]["value"] == pytest.approx(100 * (sum(runs[1]) - sum(runs[0])) / 40)
    assert found["iq"]["low"] > 0 and found["eq"] is None
    assert (found["only_in_first"], found["only_in_second"]) == (0, 1)
    shown = capfd.readouterr().out
    page = (folder / "difference" / "report.html").read_text()
    assert "report: difference/report.html" in shown and "b against a" in page
    assert "alone: 1." in page and "<h3>mmsu 0</h3>" in page


def test_iq_is_the_mean_of_its_categories_in_per_cent(runs, folder):
    report = json.loads((folder / "a" / "report.json").read_text())
    values = [row["value"] for row in report["categories"].values()]
    assert report["iq"]["value"] == pytest.approx(100 * sum(values) / 4)
    assert report["iq"]["low"] < report["iq"]["value"] < report["iq"]["high"] <= 100


def test_the_other_way_round_it_is_the_opposite(runs, folder):
    values = []
    for names in (("a", "b"), ("b", "a"), ("a", "a")):
        compare(*names)
        found = json.loads((folder / "difference" / "comparison.json").read_text())
        values.append(found["iq"]["value"])
    assert values == [pytest.approx(-values[1]), values[1], 0]


def test_other_judges_are_said(runs, folder, capfd):
    for name, judge in (("a", "score"), ("b", "too_high")):
        write(folder / f"{name}-talk.jsonl",
              [{"id": 1, "task": "open", "prompt": "talk", "response": name}])  # fmt: skip
        words = [f"{name}-talk.jsonl", "--answered", "--judge", f"mine.py:{judge}"]
        cli.main(["evaluate", *words, "--category", "talk", "--output", f"{name}-talk"])
    assert compare("a-talk", "b-talk") == 0
    assert "scores: --judge 'mine.py:score' and 'mine.py:too_high'" in capfd.readouterr().out
    page = (folder / "difference" / "report.html").read_text()
    assert "Made with other settings" in page and "mine.py:too_high" in page


def test_other_prompts_and_missing_evaluations_are_refused(runs, folder, capfd):
    assert compare("a", "lost") == 2
    assert "no evaluation in lost: results.jsonl is missing" in capfd.readouterr().err
    lines = (folder / "b" / "results.jsonl").read_text().splitlines(keepends=True)
    other = {**json.loads(lines[3]), "asked": "else"}
    (folder / "b" / "results.jsonl").write_text(json.dumps(other) + "\n")
    assert (
        compare("a", "b") == 2 and "3 asks or wants something else in b" in capfd.readouterr().err
    )
    (folder / "b" / "results.jsonl").write_text(json.dumps({**other, "id": "x"}) + "\n")
    assert compare("a", "b") == 2 and "no prompt in common" in capfd.readouterr().err
    (folder / "b" / "results.jsonl").write_text("{\n")
    assert compare("a", "b") == 2 and "results.jsonl:1: malformed JSON" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "a.jsonl", "--compare", "a", "b"])
