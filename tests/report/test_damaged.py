"""Damaged and incomplete runs give a page that names the damage, or a one-line error."""

import json
import os
import re
import shutil

import pytest

from wavalign_fast.cli import main
from wavalign_fast.errors import UserError
from wavalign_fast.report import write_report

FILES = ("config.yaml", "metrics.jsonl", "evaluation.json", "samples.json", "wav/001.wav")


def notes(run_dir) -> str:
    """Returns the page's list of what is missing or damaged."""
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert not re.search(r' (d|c?[xy]|style|data-\w+)="[^"]*\b(nan|inf|NaN|Infinity)\b', page)
    found = re.search(r'<section id="notes">.*?</section>', page, flags=re.S)
    return re.sub("<[^>]+>", "", found.group(0)) if found else ""


def edit(path, change) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_a_whole_run_has_no_notes(run_dir):
    assert notes(run_dir) == notes(run_dir / "wavalign") == ""


def empty(path):
    path.write_bytes(b"")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path):
    path.write_bytes(bytes(range(256)) * 40)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def deep(path):
    path.write_bytes(b"[" * 200_000)


def absent(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


DAMAGES = (empty, half, noise, zeros, deep, absent, folder, pipe, loop)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_every_file_may_be_damaged_in_every_way(run_dir, name, damage):
    damage(run_dir / "wavalign" / name)
    said = notes(run_dir)
    # Half a YAML file and a log without a step are still files of a run.
    if name != "config.yaml" or damage not in (empty, half, zeros, deep):
        assert (name, damage) == ("metrics.jsonl", empty) or f"wavalign: {name}" in said
    assert "rl-all" not in said and "sft-imperfect" not in said


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_run_without_one_good_file_is_one_line_or_a_page(run_dir, damage, capsys):
    for name in FILES:
        damage(run_dir / "wavalign" / name)
    status = main(["report", str(run_dir / "wavalign")])
    out, err = capsys.readouterr()
    if status == 0:
        assert out.startswith("report: ") and err == ""
    else:
        assert status == 2 and err.startswith("wavalign-fast: error: ") and err.count("\n") == 1


def test_damaged_lines_are_numbered_and_the_others_drawn(run_dir):
    path = run_dir / "wavalign" / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    for number in (3, 40, 41, 42, 77):
        lines[number - 1] = b'{"step": 3, "re\xff'
    path.write_bytes(b"\n".join(lines) + b'\n{"step": 301, "rew')
    said = notes(run_dir / "wavalign")
    assert "metrics.jsonl: left out lines 3, 40, 41 and 2 more: not a record" in said
    assert "metrics.jsonl ends in an incomplete line" in said


@pytest.mark.parametrize(
    "value",
    ["NaN", "1e400", "1" + "0" * 400, "1e308", "-1e308", '"0.5"', "[1]", "{}", "true", "1e-320"],
)
def test_strange_values_are_left_out_of_the_curves(run_dir, value):
    path = run_dir / "wavalign" / "metrics.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'"reward/mean": [^,}]+', f'"reward/mean": {value}', text))
    # A step with an overflow logs values that are not finite; nothing logs the other values.
    said = notes(run_dir / "wavalign")
    assert ("left out 300 values" in said) == (value not in ("NaN", "1e400", "1e-320"))


def test_steps_that_do_not_grow_or_are_huge_are_no_error(run_dir):
    path = run_dir / "wavalign" / "metrics.jsonl"
    for steps in ([5] * 9, [9, 3, 1e30, -4], [1e38, 3e38], [0, 1e-300], [True, None, "3"]):
        lines = [json.dumps({"step": step, "kl": 0.1 * n}) for n, step in enumerate(steps)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        notes(run_dir)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_accuracy": 5.0}, "final.text_accuracy is 5.0, wanted 0 to 1"),
        ({"speech_matches_text": -0.1}, "final.speech_matches_text is -0.1, wanted 0 to 1"),
        ({"text_accuracy": None}, "final.text_accuracy is null, wanted a finite number"),
        ({"speech_ce": float("nan")}, "final.speech_ce is nan, wanted a finite number"),
        ({"speech_ce": 1e308}, "final.speech_ce is 1e+308, wanted a finite number"),
        ({"speech_length": 10**400}, "final.speech_length is 1000"),
        ({"speech_ce": "low"}, "final.speech_ce is &#x27;low&#x27;"),
        ({"items": 0}, "final.items is 0, wanted at least 1"),
        ({"items": -3}, "final.items is -3, wanted at least 1"),
        ({"items": True}, "final.items is True, wanted a finite number"),
    ],
)
def test_figures_that_cannot_be_are_named(run_dir, change, said):
    for table in ("final", "base"):
        path = run_dir / "wavalign/evaluation.json"
        edit(path, lambda evaluation, table=table: evaluation[table].update(change))
    seen = notes(run_dir / "wavalign")
    assert f"wavalign: evaluation.json: {said}" in seen
    assert f"wavalign: evaluation.json: {said.replace('final', 'base')}" in seen


ANYTHING = [None, 3, -1, [], {}, {"a": 1}, 1e308, float("inf"), True, "x", "\x00", "\ud800"]


@pytest.mark.parametrize("value", ANYTHING, ids=ascii)
def test_any_key_of_an_evaluation_may_hold_anything(run_dir, value):
    arms = ("wavalign", "rl-all", "sft-imperfect")
    for keys in (("arm", "seed", "steps"), ("seconds", "base", "final")):
        for arm, key in zip(arms, keys, strict=True):
            path = run_dir / arm / "evaluation.json"
            edit(path, lambda evaluation, key=key: evaluation.update({key: value}))
        notes(run_dir)


def test_any_key_of_an_evaluation_may_be_absent(run_dir):
    for key in ("arm", "seed", "steps", "seconds", "base", "final"):
        path = run_dir / "wavalign" / "evaluation.json"
        edit(path, lambda evaluation, key=key: evaluation.pop(key))
        notes(run_dir / "wavalign")


@pytest.mark.parametrize("value", [*ANYTHING, "x" * 5000, "/", ".."], ids=lambda v: ascii(v)[:9])
def test_any_key_of_a_sample_may_hold_anything(run_dir, value):
    def change(samples):
        for sample, key in zip(
            samples, ("prompt", "reference", "text", "heard", "wav"), strict=True
        ):
            sample[key] = value

    edit(run_dir / "wavalign" / "samples.json", change)
    assert notes(run_dir / "wavalign").count(".") >= 1


def test_samples_that_are_none_and_audio_that_cannot_be_played(run_dir):
    arm = run_dir / "wavalign"
    edit(arm / "samples.json", lambda samples: samples.extend([3, None, "x"]))
    half(arm / "wav/000.wav")
    half(arm / "wav/002.wav")
    noise(arm / "wav/003.wav")
    (arm / "wav/004.wav").unlink()
    said = notes(run_dir)
    assert "samples.json: left out 3 that are not samples" in said
    assert "wav/000.wav, wav/002.wav is cut off" in said
    assert "wav/003.wav is not a WAV file" in said and "wav/004.wav is missing" in said
    assert (run_dir / "report.html").read_text(encoding="utf-8").count("<audio") == 11


def test_an_answer_that_nobody_judged_is_not_called_wrong(run_dir):
    edit(run_dir / "wavalign" / "samples.json", lambda samples: samples[0].update(heard=None))
    write_report(run_dir)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert page.count("<dd><em>not judged</em></dd>") == 1
    assert page.count("✗ not what it wrote") == 5  # those of rl-all


def test_a_run_that_goes_on_and_one_that_lost_its_checkpoint(run_dir):
    (run_dir / "wavalign" / "evaluation.json").unlink()
    shutil.rmtree(run_dir / "wavalign" / "checkpoint")
    shutil.rmtree(run_dir / "rl-all" / "checkpoint")
    said = notes(run_dir)
    assert "wavalign: evaluation.json is missing: the run is still going or was stopped" in said
    assert "rl-all: checkpoint/ is missing" in said and "wavalign: checkpoint/" not in said


def test_an_arm_without_its_config_is_still_an_arm(run_dir):
    (run_dir / "rl-all" / "config.yaml").unlink()
    assert "rl-all: config.yaml is missing" in notes(run_dir)
    assert (run_dir / "report.html").read_text(encoding="utf-8").count(">rl-all<") > 3


def test_a_directory_of_somebody_else_is_one_line(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("services: []\n", encoding="utf-8")
    (tmp_path / "thesis.tex").touch()
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "nothing to report in" in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "thesis.tex"]


def test_a_page_that_cannot_be_written_is_one_line(run_dir):
    (run_dir / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report.html cannot be written: Is a directory"):
        write_report(run_dir)
    assert not list(run_dir.glob(".report*"))
