"""Rewards from several parts on one scale, and the options that they are made of."""

import asyncio
import base64
import re
import threading
from pathlib import Path

import pytest
import torch
import yaml

from tests.rewards.loopback_judge import LoopbackJudge, says, scores
from wavalign_fast.errors import UserError
from wavalign_fast.rewards.build import build_rewards
from wavalign_fast.rewards.combined import CombinedReward, Part, at_once
from wavalign_fast.rewards.judge.options import NO_JUDGE, JudgeOptions
from wavalign_fast.rewards.options import KINDS, read_parts
from wavalign_fast.speech.wave_files import read_wave

DOCS = (Path(__file__).parents[2] / "docs" / "judge.md").read_text(encoding="utf-8")
ANSWERS = [{"text": str(number)} for number in range(4)]


def part(name, values, **settings) -> Part:
    """A part that gives the number in an answer its value."""
    rewards = at_once(lambda answers: [values[int(answer["text"])] for answer in answers])
    return Part(name=name, start=rewards, **settings)


def combine(*parts, scale=(1.0, 5.0)) -> list[float | None]:
    return CombinedReward(parts, scale=scale)(ANSWERS)


def test_parts_count_by_their_weights_on_the_stated_scale():
    judge = part("judge", [1.0, 5.0, 3.0, 4.5], low=1.0, high=5.0, weight=3.0)
    wer = part("wer", [0.0, 1.0, 1.0, 0.5])
    assert combine(judge) == [1.0, 5.0, 3.0, 4.5]
    assert combine(judge, wer) == [1.0, 5.0, 3.5, pytest.approx(1 + 4 * (3 * 0.875 + 0.5) / 4)]
    assert combine(judge, wer, scale=(0.0, 1.0)) == [0.0, 1.0, 0.625, 0.78125]
    assert combine(part("x", [-10.0, 10.0, 0.0, 5.0], low=-10.0, high=10.0)) == [1.0, 5.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("when", "wanted"), [("missing", [None, 5.0, None, 2.0]), ("leave_out", [3.0, 5.0, 5.0, 2.0])]
)
def test_a_missing_part_is_never_a_number(when, wanted):
    some = part("some", [None, 1.0, None, 0.0], when_missing=when)
    assert combine(some, part("all", [0.5, 1.0, 1.0, 0.5])) == wanted
    assert combine(part("none", [None] * 4, when_missing=when)) == [None] * 4


def test_a_veto_decides_and_nobody_else_is_asked():
    asked = []

    def counted(answers):
        asked.extend(answer["text"] for answer in answers)
        return [1.0] * len(answers)

    ended = part("ended", [1.0, 0.0, 1.0, 0.5], veto=True)
    combined = CombinedReward([ended, Part(name="judge", start=at_once(counted))], scale=(1, 5))
    pending = combined.start(ANSWERS)
    assert pending.result() == [5.0, 1.0, 5.0, 4.0] and asked == ["0", "2", "3"]
    assert pending.metrics() == {
        "rewards/ended_sum": 2.5, "rewards/ended_count": 4, "rewards/ended_missing": 0,
        "rewards/judge_sum": 3.0, "rewards/judge_count": 3, "rewards/judge_missing": 0,
        "rewards/vetoed": 1,
    }  # fmt: skip


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_reward_outside_its_range_stops_the_run(value):
    with pytest.raises(UserError, match=r"wer: reward .* given, wanted 0 to 1, its range"):
        combine(part("wer", [1.0, value, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no rewards given"),
        ([("a", {}), ("a", {})], "'a' given twice"),
        ([("a", {"weight": 0.0})], r"\[0.0\] given, wanted none below 0 and one above"),
        ([("a", {"weight": -1.0}), ("b", {})], "wanted none below 0"),
        ([("a", {"low": 1.0})], r"a: range \[1, 1\] given"),
    ],
)
def test_parts_that_cannot_be_combined_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        CombinedReward([part(name, [], **more) for name, more in parts], scale=(1.0, 5.0))
    with pytest.raises(UserError, match="scale: range"):
        CombinedReward([part("a", [])], scale=(5.0, 1.0))


A_JUDGE = JudgeOptions(url="http://h/v1", model="m")


@pytest.mark.parametrize(
    ("given", "judge", "message"),
    [
        ([3], NO_JUDGE, r"task.rewards\[0\]: 3 given, wanted a group of keys with kind"),
        ([{"weight": 1.0}], NO_JUDGE, r"\[0\].kind: None given, wanted one of judge, exact"),
        ([{"kind": "ended"}, {"kind": "regx"}], NO_JUDGE, r"\[1\].kind: 'regx'.*mean regex\?"),
        ([{"kind": "regex"}], NO_JUDGE, r"task.rewards\[0\].pattern: missing, wanted text"),
        ([{"kind": "wer", "recognizer": "x"}], NO_JUDGE, r"did you mean .*recogniser"),
        ([{"kind": "wer", "recogniser": "x", "veto": True}], NO_JUDGE, "unknown key .*veto"),
        (
            [{"kind": "ended", "weight": -1.0}],
            NO_JUDGE,
            r"weight: -1.0 given, wanted a number >= 0",
        ),
        ([{"kind": "judge"}], NO_JUDGE, "task.judge.url is missing"),
        ([{"kind": "ended"}], A_JUDGE, "no part of kind judge, and task.judge.url is given"),
    ],
)
def test_a_mistake_is_named_by_its_key(given, judge, message):
    with pytest.raises(UserError, match=message):
        read_parts(given, judge)


def test_a_judge_alone_needs_no_list():
    (only,) = read_parts([], A_JUDGE)
    assert only.kind == "judge" and read_parts(None, NO_JUDGE) == []


FUNCTION = """
def score(answers, factor):
    assert all("wave" not in answer for answer in answers)
    return [factor * len(answer["text"]) for answer in answers]
"""


def test_every_kind_is_made_of_its_options(tmp_path):
    (tmp_path / "f.py").write_text(FUNCTION)
    (tmp_path / "asr.py").write_text("def hear(wave, rate):\n    return 'yes' * (rate == 8000)\n")
    yes = {
        "text": "yes", "prompt": "Well?", "reference": "Yes", "ended": True, "ids": [1, 2, 3],
        "speech_ids": [2, 3], "wave": torch.ones(8), "sample_rate": 8000, "record": {"n": "7"},
    }  # fmt: skip
    no = yes | {"text": "no 7", "ended": False, "sample_rate": 16000}
    for options, wanted in [
        ({"kind": "exact"}, [1, 0]),
        ({"kind": "exact", "part": True, "reference": "n"}, [0, 1]),
        ({"kind": "numeric", "reference": "n", "which": "first", "tolerance": 0.1}, [0, 1]),
        ({"kind": "regex", "pattern": "y", "found": False}, [0, 1]),
        ({"kind": "length", "unit": "words", "least": 2.0, "slope": 2.0}, [0.5, 1]),
        ({"kind": "ended", "name": "whole", "weight": 2.0}, [1, 0]),
        ({"kind": "wer", "recogniser": f"{tmp_path}/asr.py:hear"}, [1, 0]),
        ({"kind": "function", "function": f"{tmp_path}/f.py:score", "range": [0.0, 8.0],
          "arguments": {"factor": 2}, "timeout_s": 60.0}, [0.75, 1]),
    ]:  # fmt: skip
        parts = read_parts([options], NO_JUDGE)
        made = build_rewards(parts, NO_JUDGE, scale=(0.0, 1.0))
        assert made([yes, no]) == wanted, options
        assert made.parts[0].name == options.get("name", options["kind"])
    with pytest.raises(UserError, match=r"task.rewards\[0\]: recogniser: .*wanted FILE.py:NAME"):
        build_rewards(
            read_parts([{"kind": "wer", "recogniser": "x"}], NO_JUDGE), NO_JUDGE, scale=(0, 1)
        )


def test_a_logit_counts_within_its_range(monkeypatch, tmp_path):
    import wavalign_fast.rewards.classifier as classifier

    made = []

    def fake(directory, **settings):
        made.append((directory, settings))
        return lambda answers: [-9.0, 0.5, None]

    monkeypatch.setattr(classifier, "ClassifierReward", fake)
    options = {"kind": "classifier", "path": str(tmp_path), "range": [-1.0, 1.0], "label": 1}
    rewards = build_rewards(read_parts([options], NO_JUDGE), NO_JUDGE, scale=(0.0, 1.0))
    assert rewards(ANSWERS[:3]) == [0.0, 0.75, None]
    settings = {"label": 1, "output": "logit", "chat": False, "batch_size": 16, "device": "auto"}
    assert made == [(tmp_path, settings)]


def test_the_judge_is_asked_while_other_parts_work(make_judge):
    release = threading.Event()

    async def waits(asked, writer):
        while not release.is_set():
            await asyncio.sleep(0.005)
        await scores(semantic=5, acoustic=3)(asked, writer)

    with LoopbackJudge(waits, says("Hm.")) as server:
        judge = JudgeOptions(
            url=server.url, model="ear-1", mode="two_scores", max_missing=1.0, concurrency=1,
            response_format="json_schema",
        )  # fmt: skip
        parts = read_parts([{"kind": "judge", "weight": 2.0}, {"kind": "ended"}], judge)
        rewards = build_rewards(parts, judge, scale=(1.0, 5.0))
        wave = torch.tensor([0.5, -0.5])
        answer = {
            "text": "Yes.", "prompt": "Well?", "ended": True, "wave": wave, "sample_rate": 22050,
        }  # fmt: skip
        pending = rewards.start([answer, answer | {"text": "Other."}])
        release.set()
        assert pending.result() == [pytest.approx(1 + 4 * (2 * 0.85 + 1) / 3), None]
        metrics = pending.metrics()
        assert metrics["judge/asked"] == 2 and metrics["judge/missing_no_score"] == 1
        assert metrics["judge/semantic_sum"] == 5 and metrics["judge/acoustic_count"] == 1
        assert metrics["rewards/judge_count"] == 1 and metrics["rewards/judge_missing"] == 1
        sound = server.asked[0].parts[1]["input_audio"]["data"]
        found, rate = read_wave(base64.b64decode(sound))
        assert rate == 22050 and torch.equal(found[0], wave)
    assert rewards.description == "1 to 5: 0.667 judge + 0.333 ended"


def test_the_docs_have_every_kind_and_their_example_is_one():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)]
    (example,) = [block for block in blocks if "rewards" in block.get("task", {})]
    judge = JudgeOptions(**example["task"]["judge"])
    parts = read_parts(example["task"]["rewards"], judge)
    assert len(parts) >= 3
    for kind in KINDS:
        assert f"`{kind}`" in DOCS, kind
