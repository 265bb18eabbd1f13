"""A short real run of the recipe, and the page about it."""

import html
import json
import re
import wave

import pytest

from wavalign_fast.cli import main

pytest.importorskip("pocketsphinx")

SMALL = [
    "rollout.prompts=2", "rollout.group_size=3", "anchor.rows=3", "optimizer.lr=1e-3",
    "train.steps=3", "train.eval_items=6", "task.judge_workers=1", "task.asr_reward=0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    command = ["train", "--recipe", "spoken-sums", "--arms", "wavalign,sft-imperfect"]
    assert main([*command, "--output", str(root), "--name", "it", *SMALL]) == 0
    return root / "it"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_step_is_logged_and_the_weights_move(run):
    for arm in ("wavalign", "sft-imperfect"):
        lines = (run / arm / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["step"] for record in records] == [1, 2, 3]
        assert all(record["loss/total"] is not None for record in records)
        assert records[0]["skipped_steps"] == 0
    rewarded = json.loads(lines[0]), read_first(run / "wavalign")
    assert "reward/mean" not in rewarded[0] and 1 <= rewarded[1]["reward/mean"] <= 5
    assert rewarded[1]["reward/failed"] == 0
    base, final = (read(run / "wavalign/evaluation.json")[key] for key in ("base", "final"))
    assert set(base) == set(final) and base["items"] == 6
    assert base["speech_ce"] != final["speech_ce"]
    assert read(run / "sft-imperfect/evaluation.json")["base"] == base


def read_first(arm):
    return json.loads((arm / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])


def test_its_answers_can_be_heard(run):
    samples = read(run / "wavalign/samples.json")
    assert len(samples) == 6
    for sample in samples:
        assert " plus " in sample["prompt"] and sample["reference"].startswith("the answer is ")
        with wave.open(str(run / "wavalign" / sample["wav"])) as file:
            assert file.getframerate() == 16_000 and file.getnframes() > 4_000


def test_its_page_shows_all_of_it(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page, flags=re.S))
    assert 'id="notes"' not in page, text
    sections = ["results", "curves", "samples", "times", "provenance", "configs"]
    assert re.findall(r'<section id="(\w+)">', page) == sections
    assert "Two arms from one base model, 3 steps each" in text
    for arm in ("wavalign", "sft-imperfect"):
        assert f"{arm}: text" in text.replace(" :", ":")
        final = read(run / arm / "evaluation.json")["final"]
        assert f"{100 * final['text_accuracy_greedy']:.0f}%" in text
        for sample in read(run / arm / "samples.json"):
            assert sample["text"] in text and sample["heard"] in text
    # Six answers of each arm, and those of the base model that both started from.
    assert page.count("data:audio/wav;base64,") == 18
    charts = {title.strip() for title in re.findall(r"<figcaption>([^<]*)<", page)}
    assert {"Reward", "Mixing weight λ", "Policy loss", "Anchor loss"} <= charts
    assert "asr_reward: 0.25" in text and "rollout" in text
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8") == page


def test_the_trained_model_answers(run, capsys, tmp_path):
    arm, out = str(run / "wavalign"), str(tmp_path / "answer.wav")
    assert main(["say", "one plus two", "--run", arm, "--out", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the answer") and lines[-1] == f"speech: {out}"
