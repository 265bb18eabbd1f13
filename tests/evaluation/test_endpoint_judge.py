"""Answers judged by a model behind an endpoint: what it is told, and what its failures become."""

import json

import pytest

from tests.evaluation.test_command import evaluate, write  # noqa: F401
from tests.rewards.loopback_judge import LoopbackJudge, judgement, message, sends
from wavalign_fast import cli

RECORDS = [
    {"id": "o", "task": "open", "category": "talk", "prompt": "Tell me.", "response": "The sea."},
    {"id": "q", "task": "qa", "category": "facts", "prompt": "Where?", "reference": "Paris",
     "response": "The capital"},
    {"id": "s", "task": "style", "category": "empathy", "prompt": "<|audio|> Comfort me.",
     "response": "Oh no", "response_audio": "s.wav"},
    {"id": "r", "task": "spoken", "category": "voice", "prompt": "Speak.", "rubric": "Be a pirate.",
     "response": "Arr", "response_audio": "s.wav"},
    {"id": "m", "task": "mcq", "category": "mmsu", "prompt": "Which?", "reference": "A",
     "response": "A"},
]  # fmt: skip


@pytest.fixture
def ask(evaluate, folder):  # noqa: F811
    """Evaluates the records with a judge that behaves so; returns what it was asked, too."""
    from wavalign_fast.speech.wave_files import write_wave

    write_wave(folder / "s.wav", [0.0, 0.5, -0.5, 0.0] * 200, 8000)
    write(folder / "p.jsonl", RECORDS)

    def call(*behaviours, words=(), output="out", **options):
        with LoopbackJudge(*behaviours) as server:
            lines = {"url": server.url, "model": "ear-1", "first_wait_s": 0.01, "timeout_s": 2.0,
                     "longest_wait_s": 0.02, "attempts": 2, **options}  # fmt: skip
            (folder / "judge.yaml").write_text(json.dumps({"judge": lines}))
            given = evaluate(
                "p.jsonl", "--answered", "--judge", "judge.yaml", *words, output=output
            )
            return *given, list(server.asked)

    return call


def scores(asked):
    """Gives each question the score that its kind should get."""
    high = asked.body["response_format"]["json_schema"]["schema"]["properties"]["score"]["maximum"]
    return 1 if high == 1 else 4


async def answers(asked, writer):
    await sends(200, message(judgement(scores(asked))))(asked, writer)


def test_each_task_has_its_rubric_and_its_scale(ask):
    status, _, report, asked = ask(answers, words=("--qa", "judge"))
    assert status == 0 and len(asked) == 4
    told = {one.transcript: one for one in asked}
    assert {len(one.parts) for one in (told["The sea."], told["The capital"])} == {1}
    assert {len(one.parts) for one in (told["Oh no"], told["Arr"])} == {2}  # with sound
    assert "Reference answers: Paris" in told["The capital"].parts[0]["text"]
    assert "<question>Comfort me.</question>" in told["Oh no"].parts[0]["text"]
    assert told["Arr"].system.startswith("Be a pirate.")
    assert len({one.system for one in asked}) == 4
    values = {name: row["value"] for name, row in report["categories"].items()}
    assert values == {"talk": 4, "facts": 1, "empathy": 4, "voice": 4, "mmsu": 1}


def test_nobody_is_asked_twice_and_another_judge_is_refused(ask):
    ask(answers)
    status, shown, _, asked = ask(answers)
    assert status == 2 and "judge.address" in shown.err and not asked  # another port
    assert ask(answers, words=("--redo", "scores"))[0] == 0


def test_what_came_before_a_kill_is_not_asked_again(ask, folder):
    with LoopbackJudge(answers) as server:
        lines = {"url": server.url, "model": "ear-1"}
        (folder / "judge.yaml").write_text(json.dumps({"judge": lines}))
        words = ["evaluate", "p.jsonl", "--answered", "--judge", "judge.yaml", "--output", "out"]
        assert cli.main(words) == 0 and len(server.asked) == 3
        (folder / "out" / "scores.jsonl").unlink()  # as if it were killed before it was written
        assert cli.main(words) == 0 and len(server.asked) == 3


def test_a_failed_judgement_is_missing_with_its_cause(ask):
    refused = message(None, refusal="no")
    status, _, report, _ = ask(sends(200, refused), max_missing=1.0)
    rows = report["categories"]
    assert status == 0 and rows["talk"]["value"] is None
    assert rows["talk"]["causes"] == rows["voice"]["causes"] == {"refused": 1}
    assert rows["mmsu"]["value"] == 1 and report["eq"]["lacks"]


def test_too_many_missing_ones_stop_the_run_and_all_are_written(ask, folder):
    status, shown, report, _ = ask(sends(200, message(None, refusal="no")))
    assert status == 2 and "3 of the last 3 scores are missing" in shown.err and report is None
    lines = [json.loads(line) for line in (folder / "out/scores.jsonl").read_text().splitlines()]
    assert [one["score"] for one in lines] == [None] * 3
    assert {one["cause"] for one in lines} == {"refused"}


def test_a_wrong_key_stops_at_once(ask):
    status, shown, _, _ = ask(sends(401, {"error": "no"}))
    assert status == 2 and "401" in shown.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("judge: {modl: x}", "judge.yaml: unknown key judge.modl"),
        ("judge: {url: 'http://127.0.0.1:1/v1'}", "model: nothing given"),
        ("judge: {}", "url: nothing given"),
        ("jury: {}", "unknown key jury"),
    ],
)
def test_mistakes_in_the_file_are_named(folder, text, message, capfd):
    write(folder / "p.jsonl", RECORDS[:1])
    (folder / "judge.yaml").write_text(text)
    words = ["evaluate", "p.jsonl", "--answered", "--judge", "judge.yaml", "--output", "out"]
    assert cli.main(words) == 2
    shown = capfd.readouterr().err
    assert "--judge: " in shown and message in shown
