"""The command, on a tiny model and on answers that come with the records."""

import json

import pytest

from wavalign_fast import cli

ANSWERED = [
    {"id": "m1", "task": "mcq", "category": "mmsu", "prompt": "Which?", "reference": "B",
     "response": "The answer is B."},
    {"id": "m2", "task": "mcq", "category": "mmsu", "prompt": "Which?", "reference": "A",
     "response": "No idea."},
    {"id": "m3", "task": "mcq", "category": "mmsu", "prompt": "Which?", "reference": "A",
     "response": ""},
    {"id": "o1", "task": "open", "category": "talk", "prompt": "Tell me.", "response": "Hello"},
    {"id": "o2", "task": "open", "category": "talk", "prompt": "Be silent.", "response": "Ok"},
]  # fmt: skip


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def evaluate(folder, capfd):
    """Runs the command; returns its status, its outputs and the report."""

    def call(*words, output="out"):
        status = cli.main(["evaluate", *map(str, words), "--output", output])
        shown = capfd.readouterr()
        path = folder / output / "report.json"
        return status, shown, json.loads(path.read_text()) if path.exists() else None

    return call


def test_answers_of_records(evaluate, folder):
    write(folder / "given.jsonl", ANSWERED)
    status, shown, report = evaluate("given.jsonl", "--answered", "--judge", "mine.py:score")
    assert status == 0 and f"report: out{'/'}report.html" in shown.out
    mmsu, talk = report["categories"].values()
    assert (mmsu["n"], mmsu["value"], mmsu["failed"], mmsu["empty"], mmsu["unparsable"]) == (
        3, pytest.approx(1 / 3), 1, 1, 1,
    )  # fmt: skip
    assert (talk["value"], talk["missing"]) == (1 + 5 % 5, 1)
    assert talk["causes"] == {"the function returned None": 1}
    assert report["iq"] == {"value": None, "low": None, "high": None,
                            "lacks": ["openbookqa", "bbh", "ifeval"]}  # fmt: skip
    assert "33.3 (0.0 to 100.0)" in shown.out
    page = (folder / "out" / "report.html").read_text()
    assert "The answer is B." in page and "IQ needs openbookqa, bbh, ifeval too." in page


@pytest.mark.parametrize(
    ("judge", "cause"),
    [("fails", "RuntimeError: no judge today"), ("too_high", "score 7 is outside 1 to 5")],
)
def test_a_failed_judge_is_missing_and_asked_again(evaluate, folder, judge, cause):
    write(folder / "given.jsonl", ANSWERED[3:4])
    words = ("given.jsonl", "--answered", "--judge", f"mine.py:{judge}")
    status, _, report = evaluate(*words)
    talk = report["categories"]["talk"]
    assert status == 0 and talk["value"] is None and talk["missing"] == 1
    assert cause in next(iter(talk["causes"]))
    evaluate(*words)
    assert len((folder / "out" / "scores.jsonl").read_text().splitlines()) == 2
    status, shown, _ = evaluate("given.jsonl", "--answered", "--judge", "mine.py:score")
    assert status == 2 and "--judge: 'mine.py:score' given" in shown.err
    assert "--redo scores" in shown.err
    status, _, report = evaluate(
        "given.jsonl", "--answered", "--judge", "mine.py:score", "--redo", "scores"
    )
    assert report["categories"]["talk"]["value"] == 1


def test_a_model_is_asked_once(evaluate, folder, model_directory, monkeypatch):
    records = [
        {"id": f"q{place}", "task": "qa", "prompt": f"say {word}", "reference": word}
        for place, word in enumerate(("red", "blue", "pink"))
    ]
    write(folder / "colours.jsonl", records[:2])
    words = ("colours.jsonl", "--model", model_directory, "--max-new-tokens", 6, "--rows", 2)
    status, _, report = evaluate(*words)
    row = report["categories"]["colours"]
    assert status == 0 and row["n"] == 2 and row["length"] <= 6
    responses = (folder / "out" / "responses.jsonl").read_text()
    monkeypatch.setattr(
        "wavalign_fast.evaluation.opening.load_checkpoint", lambda *given, **named: 1 / 0
    )
    assert evaluate(*words)[0] == 0
    assert (folder / "out" / "responses.jsonl").read_text() == responses
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    write(folder / "colours.jsonl", records)
    _, _, report = evaluate(*words)
    assert report["categories"]["colours"]["n"] == 3
    assert (folder / "out" / "responses.jsonl").read_text().startswith(responses)
    for option, value in (("--max-new-tokens", 7), ("--temperature", 0.5), ("--system", "x")):
        status, shown, _ = evaluate(*words, option, value)
        assert status == 2 and f"{option}: {value!r} given" in shown.err


def test_sampled_answers_depend_on_the_prompt_not_on_its_place(evaluate, folder, model_directory):
    records = [{"id": word, "task": "open", "prompt": f"say {word}"} for word in ("red", "blue")]
    texts = []
    for output, given in (("one", records), ("two", records[::-1])):
        write(folder / "p.jsonl", given)
        evaluate("p.jsonl", "--model", model_directory, "--max-new-tokens", 6,
                 "--temperature", 1, output=output)  # fmt: skip
        lines = (folder / output / "responses.jsonl").read_text().splitlines()
        texts.append({one["id"]: one["ids"] for one in map(json.loads, lines)})
    assert texts[0] == texts[1] and texts[0]["red"] != texts[0]["blue"]


def test_other_weights_are_refused(evaluate, folder, model_directory, tmp_path):
    import shutil

    model = tmp_path / "copy"
    shutil.copytree(model_directory, model)
    write(folder / "p.jsonl", [{"id": 1, "task": "open", "prompt": "say red"}])
    assert evaluate("p.jsonl", "--model", "copy", "--max-new-tokens", 2)[0] == 0
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    status, shown, _ = evaluate("p.jsonl", "--model", "copy", "--max-new-tokens", 2)
    assert status == 2 and "--model: its weights differ" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "PROMPTS.jsonl is missing"),
        (("p.jsonl",), "neither --model nor --answered"),
        (("p.jsonl", "--model", "m", "--answered"), "both given, wanted one"),
        (("lost.jsonl", "--answered"), "no such file: lost.jsonl"),
        (("p.jsonl", "--answered"), "p.jsonl:1: no response"),
        (("p.jsonl", "--model", "lost"), "--model: no such directory: lost"),
        (("p.jsonl", "--answered", "--field", "prompt"), "--field: 'prompt' given"),
        (("p.jsonl", "--answered", "--judge", "lost.py:f"), "no such file"),
        (("p.jsonl", "--answered", "--judge", "mine.py:scor"), "did you mean score?"),
        (("p.jsonl", "--answered", "--asr", "mine.py:her"), "--asr: mine.py has no her; did you "
         "mean hear?"),
        (("p.jsonl", "--answered", "--asr", "mine.py"), "--asr: 'mine.py' given, wanted FILE.py"),
        (("p.jsonl", "--answered", "--ifeval-registry", "mine.py:hear"), "wanted a dict"),
        (("p.jsonl", "--model", "m", "--temperature", "-1"), "wanted a number >= 0"),
        (("p.jsonl", "--model", "m", "--rows", "0"), "wanted a whole number >= 1"),
        (("p.jsonl", "--model", "m", "--ratio", "1,4,2"), "wanted pairs of a text and a speech"),
        (("p.jsonl", "--model", "m", "--channel", "-1"), "wanted mean or a number from 0"),
        (("p.jsonl", "--answered", "--ratio", "1,4"), "--ratio: (1, 4) given for answers of the"),
    ],
)  # fmt: skip
def test_mistakes_are_named(evaluate, folder, capfd, words, message):
    write(folder / "p.jsonl", [{"id": 1, "task": "open", "prompt": "say red"}])
    try:
        status, shown, _ = evaluate(*words)
    except SystemExit as stop:
        status, shown = stop.code, capfd.readouterr()
    assert status == 2 and message in shown.err and len(shown.err.splitlines()) == 1
