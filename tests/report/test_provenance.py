"""How a run was made: date, command, machine, commit, settings, and what the base answered."""

import json
import re

import pytest

from tests.report.test_page import outline
from wavalign_fast.report import write_report
from wavalign_fast.report.runs import load_runs
from wavalign_fast.report.settings import flat_settings

START = {
    "started": "2026-11-28T05:10:00+00:00",
    "step": 0,
    "command": "wavalign-fast train --recipe spoken-sums --all-arms",
    "commit": "3192a17",
    "system": "Linux x86_64",
    "cpu": "AMD EPYC",
    "cores": 2,
    "gpus": ["NVIDIA H100", "NVIDIA H100"],
    "versions": {"Python": "3.11.2", "torch": "2.13.0"},
    "reward_scale": "1 (wrong) to 5 (right)",
}
ARMS = ("wavalign", "rl-all", "sft-imperfect")


def write_starts(run_dir, *, arms=ARMS, **changes) -> None:
    for arm in arms:
        (run_dir / arm / "provenance.json").write_text(json.dumps({"starts": [START | changes]}))


def section(run_dir, name: str) -> str:
    page = write_report(run_dir).read_text(encoding="utf-8")
    found = re.search(rf'<section id="{name}">.*?</section>', page, flags=re.S)
    return re.sub(r"<[^>]+>", "|", found.group(0)) if found else ""


def test_what_all_arms_share_is_written_once(run_dir):
    write_starts(run_dir)
    said = section(run_dir, "provenance")
    for text in (
        "2026-11-28 05:10:00 UTC",
        START["command"],
        "1 (wrong) to 5 (right)",
        "3192a17",
        "AMD EPYC, 2 cores, 2 × NVIDIA H100, Linux x86_64",
        "Python 3.11.2, torch 2.13.0",
    ):
        assert said.count(text) == 1, text


def test_what_differs_is_written_for_each_arm(run_dir):
    write_starts(run_dir)
    write_starts(run_dir, arms=("rl-all",), commit="0000000-dirty")
    said = section(run_dir, "provenance")
    assert "|rl-all| 0000000 with uncommitted changes|" in said
    assert "|wavalign| 3192a17|" in said


def test_a_run_that_was_continued_says_so(run_dir):
    later = START | {"started": "2026-11-29T06:00:00+00:00", "step": 50, "commit": "1111111"}
    file = run_dir / "rl-all" / "provenance.json"
    file.write_text(json.dumps({"starts": [START, later]}))
    said = section(run_dir / "rl-all", "provenance")
    assert "05:10:00 UTC; continued once, last from step 50 at 2026-11-29 06:00:00 UTC" in said
    assert "3192a17; then 1111111" in said


def test_an_older_run_without_the_file_has_no_note(run_dir):
    assert "Started" not in section(run_dir, "provenance")
    assert section(run_dir, "notes") == ""


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"starts": 3}', '{"starts": [3]}', '{"starts": [{"step": "x"}]}']
)
def test_a_damaged_file_is_named_and_the_rest_of_the_page_is_there(run_dir, content):
    (run_dir / "wavalign" / "provenance.json").write_text(content)
    named = "wavalign|: provenance.json is damaged" in section(run_dir, "notes")
    assert named == ('{"step"' not in content)
    assert "Listen" in section(run_dir, "samples")


def test_settings_that_differ_are_a_table_and_the_others_folded_away(run_dir):
    shared = "recipe: r\nrollout:\n  prompts: 8\ntask:\n  api_key: hunter2\n"
    for arm, mixing in zip(ARMS, ("adaptive", "1.0", "0.0"), strict=True):
        text = f"name: {arm}\narm: {arm}\n{shared}loss:\n  mixing: {mixing}\n"
        if arm == "wavalign":
            text += "  clip: [0.1, null]\n"
        (run_dir / arm / "config.yaml").write_text(text)
    said = section(run_dir, "configs")
    assert "|loss.mixing||adaptive||1.0||0.0|" in said
    assert "|loss.clip||[0.1, null]||–||–|" in said
    assert said.count("rollout.prompts: 8") == 1 and "3 settings of all arms" in said
    assert "hunter2" not in write_report(run_dir).read_text()
    assert "task.api_key: ***" in said


def test_equal_settings_are_said_to_be_equal(run_dir):
    for arm in ARMS:
        (run_dir / arm / "config.yaml").write_text(f"arm: {arm}\ntrain:\n  steps: 300\n")
    assert "The arms have the same settings" in section(run_dir, "configs")


def test_values_read_as_they_were_written():
    text = "a: 1e-4\nb:\n  c: no\n  d: null\n  e: {}\nf: 010\ng: true\nh: https://me:pw@host/x\n"
    assert flat_settings(text) == {
        "a": "1e-4",
        "b.c": "no",
        "b.d": "null",
        "b.e": "{}",
        "f": "010",
        "g": "true",
        "h": "https://***@host/x",
    }


def test_the_base_answers_first_and_once(run_dir):
    for arm in ARMS:
        samples = json.loads((run_dir / arm / "samples.json").read_text())
        base = [sample | {"text": "base text", "heard": "base heard"} for sample in samples]
        (run_dir / arm / "base_samples.json").write_text(json.dumps(base))
    said = section(run_dir, "samples")
    assert said.count("base text") == 5  # one for each prompt, not for each arm
    assert re.findall(r"\|(base|wavalign|rl-all|sft-imperfect)\|+", said)[:4] == ["base", *ARMS]
    assert sum(tag == "audio" for tag, _ in outline(run_dir).tags) == 4 * 5
    assert load_runs(run_dir)[0].notes == []
