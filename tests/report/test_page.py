"""The page is complete, self-contained, safe, and shows the right numbers."""

import json
import re
from html.parser import HTMLParser

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.report import write_report

MAX_BYTES = 5_000_000
VOID = {"meta", "br", "link", "img", "input"}


class Outline(HTMLParser):
    """Collects attributes and text, and checks that elements close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def outline(run_dir) -> Outline:
    parsed = Outline()
    parsed.feed(write_report(run_dir).read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def edit(path, **changes) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    (value[0] if isinstance(value, list) else value).update(changes)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_the_page_is_whole_and_small(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    assert 50_000 < path.stat().st_size < MAX_BYTES
    assert [file.name for file in run_dir.iterdir() if file.is_file()] == ["report.html"]
    page = outline(run_dir)
    for part in ("Results", "Training curves", "Listen", "Where a step’s time goes"):
        assert part in page.text
    assert "$" not in page.text, "a template field was not filled"


def test_nothing_is_fetched(run_dir):
    page = outline(run_dir)
    sources = [
        a[key] for _, a in page.tags for key in ("src", "href", "data", "srcset") if key in a
    ]
    assert sources and all(source.startswith("data:") for source in sources)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    # The only address is the name of the SVG vocabulary.
    assert set(re.findall(r"https?://[^\"'<\s]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_every_arm_is_everywhere(run_dir):
    page = outline(run_dir)
    rows = page.text[page.text.index("Results") :]
    for arm in ("wavalign", "rl-all", "sft-imperfect"):
        assert rows.count(arm) >= 3 + 5  # table, legend, time, and five answers
    assert sum(tag == "audio" for tag, _ in page.tags) == 3 * 5
    assert page.text.count("✗ not what it wrote") == 5
    assert page.text.count("✓ same as text") == 10


def test_the_headline_follows_the_figures(run_dir):
    evaluation = run_dir / "wavalign" / "evaluation.json"

    def headline() -> str:
        text = write_report(run_dir).read_text(encoding="utf-8")
        return re.search(r"<h1>(.*?)</h1>", text).group(1)

    assert headline() == (
        "wavalign raises right answers from 36% to 60%, but its speech follows its text less "
        "often (80% before, 66% after)"
    )
    final = json.loads(evaluation.read_text())["final"]
    edit(evaluation, final={**final, "speech_matches_text": 0.81})
    assert headline() == (
        "wavalign raises right answers from 36% to 60%; no clear change in how often its speech "
        "follows its text (80% before, 81% after; 95% interval −4 to +6 points)"
    )
    edit(evaluation, final={**final, "text_accuracy": 0.37, "text_accuracy_greedy": 0.41})
    assert headline().startswith(
        "wavalign makes no clear change in right answers (36% before, 37% after; 95% interval "
        "−6 to +8 points), and its speech follows its text less often (80% before"
    )
    edit(evaluation, final={**final, "speech_says_sum": 0.01})
    assert headline().startswith("sft-imperfect raises right answers from 36% to 44%")


def test_greedy_accuracy_stands_beside_sampled(run_dir):
    evaluation = run_dir / "wavalign" / "evaluation.json"
    final = json.loads(evaluation.read_text())["final"]
    edit(evaluation, final={**final, "text_accuracy_greedy": 0.55})
    told = "wavalign: text 36% → 60% (up), greedy 41% → 55%; speech that says"
    assert told in outline(run_dir).text
    edit(evaluation, base={})
    assert "wavalign: text 60%, greedy 55%; speech that says" in outline(run_dir).text
    del final["text_accuracy_greedy"]
    edit(evaluation, final=final)
    assert "wavalign: text 60%; speech that says" in outline(run_dir).text


def test_answers_without_sound_show_their_reward(run_dir):
    silent = {"prompt": "say so", "reference": "so", "text": "sos", "heard": None, "wav": None}
    figures = {"ended": 0.5, "items": 400}
    for arm in ("wavalign", "rl-all", "sft-imperfect"):
        samples = json.dumps([{**silent, "reward": 2 / 3}])
        (run_dir / arm / "samples.json").write_text(samples, encoding="utf-8")
        final = {"reward": 0.75 if arm == "rl-all" else 0.5, **figures}
        edit(run_dir / arm / "evaluation.json", base={"reward": 0.25, **figures}, final=final)
    page = " ".join(outline(run_dir).text.split())
    assert "rl-all: mean reward 0.250 before, 0.750 after training" in page
    ends = "answers that end 50% → 50% (no clear change"
    assert f"wavalign: mean reward 0.250 before, 0.500 after training; {ends}" in page
    assert "wrotesosreward0.667" in page
    for absent in ("not evaluated", "no evaluation", "no audio", "not judged", "✗", "heard"):
        assert absent not in page, absent
    edit(run_dir / "wavalign" / "samples.json", reward="<b>")
    assert "reward<b>" in outline(run_dir).text


@pytest.mark.parametrize("field", ["prompt", "reference", "text", "heard"])
def test_text_is_escaped(run_dir, field):
    edit(run_dir / "wavalign" / "samples.json", **{field: '<script>alert("x")</script>'})
    edit(run_dir / "wavalign" / "evaluation.json", arm="<img src=x onerror=y>")
    (run_dir / "rl-all" / "config.yaml").write_text("</pre><script>z</script>", encoding="utf-8")
    page = outline(run_dir)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert '<script>alert("x")</script>' in page.text


def test_audio_from_outside_the_run_stays_outside(run_dir, tmp_path):
    (tmp_path / "secret.wav").write_bytes(b"RIFFsecret")
    edit(run_dir / "wavalign" / "samples.json", wav="../../secret.wav")
    page = outline(run_dir)
    assert sum(tag == "audio" for tag, _ in page.tags) == 14
    assert "no audio" in page.text


def test_too_much_audio_is_left_out_and_said(run_dir, monkeypatch):
    monkeypatch.setattr("wavalign_fast.report.samples.AUDIO_BUDGET", 200_000)
    page = outline(run_dir)
    assert sum(tag == "audio" for tag, _ in page.tags) == 6
    assert "3 more prompts are in the wav/ folders" in page.text


def test_one_arm_alone(run_dir):
    page = outline(run_dir / "rl-all")
    assert "One arm, 300 steps, 1 min 44 s of training." in page.text
    assert (run_dir / "rl-all" / "report.html").is_file()


def test_steps_and_time_of_all_arms(run_dir):
    assert "Three arms from one base model, 300 steps each, 5 min 13 s of training together." in (
        outline(run_dir).text
    )
    edit(run_dir / "rl-all" / "evaluation.json", steps=200, seconds=None)
    edit(run_dir / "wavalign" / "evaluation.json", seconds=20.4)
    assert "arms from one base model, 200 to 300 steps each, 2 min 5 s of training together" in (
        outline(run_dir).text
    )


def test_an_arms_line_says_what_changed_and_what_is_heard(run_dir):
    text = outline(run_dir).text
    assert (
        "wavalign: text 36% → 60% (up), greedy 41% → 41%; speech that says what the text says "
        "80% → 66% (down); the right answer is heard in 43%."
    ) in text
    assert "sft-imperfect: text 36% → 44% (up), greedy 41% → 41%; " in text
    assert "80% → 79% (no clear change: −7 to +5 points); the right answer is heard in 36%." in text


def test_without_an_evaluation_rewards_of_the_first_and_last_tenth(run_dir):
    arm = run_dir / "wavalign"
    (arm / "evaluation.json").unlink()
    # 25 steps: a tenth of them are three, whose means are 2 and 24 of 100.
    rewards = [100 + step for step in range(1, 26)]
    lines = [json.dumps({"step": n, "reward/mean": r}) for n, r in enumerate(rewards, start=1)]
    (arm / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert (
        "wavalign: no evaluation; mean reward 102 in the first tenth of the steps, 124 in the last."
    ) in outline(arm).text


def test_a_run_that_was_cut_off(run_dir):
    arm = run_dir / "wavalign"
    (arm / "evaluation.json").unlink()
    (arm / "samples.json").unlink()
    with (arm / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "rew')
    page = outline(arm)
    assert "One run, not evaluated yet" in page.text
    assert "Training curves" in page.text and "Listen" not in page.text


def test_arms_of_several_seeds_keep_their_folders_names(run_dir):
    edit(run_dir / "rl-all" / "evaluation.json", arm="wavalign", seed=1)
    page = outline(run_dir)
    assert "rl-all" in page.text


def test_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
