"""`wavalign-fast data pairs` makes the pairs of the authors' builder, without its traps."""

import json
import shutil
from pathlib import Path

import pytest

from wavalign_fast.cli import main

FOLDER = Path(__file__).parent / "dialogues"
EXPECTED = json.loads((FOLDER / "expected_pairs.json").read_text(encoding="utf-8"))
NO_TARGET = {
    "rejected audio is missing on disk",
    "tie for best: first wins",
    "score is text",
}


def build(tmp_path, capsys, *arguments, source=FOLDER / "scored.jsonl"):
    """Returns the pairs that the command writes, and its summary."""
    output = tmp_path / "pairs.jsonl"
    argv = ["data", "pairs", str(source), "--output", str(output), "--json", *arguments]
    assert main(argv) == 0
    text = output.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()], json.loads(capsys.readouterr().out)


def without_traps(case):
    """What the release made, less what it should not have made."""
    summary, records = dict(EXPECTED[case]["summary"]), EXPECTED[case]["records"]
    if case == "sft_target":  # no target, and yet chosen
        records = [one for one in records if one["id"] not in NO_TARGET]
        summary |= {"kept": 2, "skipped": 6, "max_gap": 6.0, "max_gap_id": "wide gap"}
    if case == "gap_0":  # an output paired with itself
        records = [one for one in records if one["chosen_key"] != one["rejected_key"]]
        summary |= {"kept": 5, "skipped": 3}
    if case == "max_2":  # one record more than asked for
        summary |= {"scanned": 2}
    return records, summary


@pytest.mark.parametrize("case", EXPECTED)
def test_the_pairs_are_those_of_the_release(case, tmp_path, capsys):
    arguments = [word.replace("_", "-") if word.startswith("--") else word
                 for word in EXPECTED[case]["arguments"]]  # fmt: skip
    pairs, summary = build(tmp_path, capsys, "--tie", "first", *arguments)
    records, counts = without_traps(case)
    assert pairs == records
    assert {name: summary[name] for name in counts} == counts
    assert summary["scanned"] == len(pairs) + summary["skipped"] + summary["not_in_top_k"]


def test_only_ties_differ_in_the_order_of_the_paper(tmp_path, capsys):
    pairs, _ = build(tmp_path, capsys, "--score-mode", "paralinguistic")
    wanted = [dict(one) for one in EXPECTED["paralinguistic"]["records"]]
    tied = next(one for one in wanted if one["id"].startswith("tie"))
    # s0 and s2 have the score 4; s2 has the lower semantic score.
    tied |= {"rejected_text": "Twelve.", "rejected_audio": "audio/a4_b.wav"}
    tied |= {"rejected_key": "s2", "worst_output_key": "s2"}
    assert pairs == wanted


def scored(*scores, **fields):
    """A record whose outputs have these (semantic, paralinguistic) scores."""
    output = {
        f"s{n}": {
            "output-text": f"answer {n}",
            "gemini_score": {"semantic_score": semantic, "paralinguistic_score": delivery},
        }
        for n, (semantic, delivery) in enumerate(scores)
    }
    messages = [{"role": "user", "content": "x"}]
    return {"id": "r", "messages": messages, "output": output, **fields}


def write(path, *records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def test_equal_semantic_scores_are_told_apart_by_delivery(tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", scored((5, 1), (5, 3), (1, 4), (1, 2)))
    (pair,), _ = build(tmp_path, capsys, "--score-mode", "semantic", source=file)
    assert (pair["chosen_key"], pair["rejected_key"]) == ("s1", "s3")


@pytest.mark.parametrize(
    ("scores", "tie", "best", "worst"),
    [
        ([(3, 5), (5, 3), (4, 4), (1, 1)], "semantic", "s1", "s3"),
        ([(3, 5), (5, 3), (4, 4), (1, 1)], "first", "s0", "s3"),
        ([(5, 5), (2, 1), (1, 2)], "semantic", "s0", "s2"),
        ([(5, 5), (2, 1), (1, 2)], "first", "s0", "s1"),
        ([(5, 5), (1, 2), (1, 2)], "semantic", "s0", "s1"),
        ([(True, 5), (5, None), (2, 2), (4, 1), (10**400, 3)], "semantic", "s3", "s2"),
    ],
)
def test_ties(tmp_path, capsys, scores, tie, best, worst):
    file = write(tmp_path / "in.jsonl", scored(*scores))
    (pair,), _ = build(tmp_path, capsys, "--tie", tie, source=file)
    assert (pair["chosen_key"], pair["rejected_key"]) == (best, worst)


def test_reasons_are_counted_and_name_their_lines(tmp_path, capsys):
    empty = scored((5, 5), (1, 1))
    empty["output"]["s1"]["output-text"] = ""
    file = write(
        tmp_path / "in.jsonl",
        scored((5, 5), (1, 1)),
        scored((5, 5)),
        scored((5, 5), (5, 4.5)),
        scored((2, 2), (2, 2)),
        {**scored((5, 5), (1, 1)), "audios": ["a.wav"]},
        empty,
        ["x"],
        {"question_text": "legacy"},
        scored((5, 5), (1, 1), original_sample={"sft_target_audio": 3}),
    )
    pairs, summary = build(tmp_path, capsys, source=file)
    assert len(pairs) == 1 and summary["skipped"] == 8
    assert summary["first_skipped"] == {
        "fewer than two scored outputs": [f"{file}:2"],
        "gap below the minimum": [f"{file}:3"],
        "all outputs are equally good": [f"{file}:4"],
        "audio tags and audios do not match": [f"{file}:5"],
        "an output without text and audio": [f"{file}:6"],
        "not a JSON object": [f"{file}:7"],
        "not of the schema": [f"{file}:8", f"{file}:9"],
    }
    assert main(["data", "pairs", str(file), "--output", str(tmp_path / "o.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "pairs       1 of 9 records\nlargest gap 8 (id 'r')\n" in out
    assert f"skipped     1: gap below the minimum ({file}:3)\n" in out


def test_fields_of_the_original_sample_are_passed_on(tmp_path, capsys):
    original = {"question_text": "q?", "sft_target_text": "gold", "source_dataset": "d", "id": "o"}
    file = write(tmp_path / "in.jsonl", scored((5, 5), (1, 1), original_sample=original, id=None))
    (pair,), _ = build(tmp_path, capsys, source=file)
    assert pair["id"] == "o" and pair["question_text"] == "q?" and pair["source_dataset"] == "d"
    assert pair["orig_sft_target_text"] == "gold"
    (pair,), _ = build(tmp_path, capsys, "--chosen-source", "sft_target", source=file)
    assert pair["sft_target_text"] == "gold" and pair["chosen_score"] is None


def fails(capsys, *argv):
    try:
        status = main(["data", "pairs", *map(str, argv)])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("way", ["same name", "link", "hard link"])
def test_the_input_is_never_overwritten(tmp_path, capsys, way):
    file = write(tmp_path / "in.jsonl", scored((5, 5), (1, 1)))
    output = file
    if way != "same name":
        output = tmp_path / "out.jsonl"
        output.hardlink_to(file) if way == "hard link" else output.symlink_to(file)
    before = file.read_bytes()
    assert "--output is the input" in fails(capsys, file, "--output", output)
    assert file.read_bytes() == before


def test_without_a_pair_nothing_is_written(tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", scored((5, 5), (1, 1)))
    output = tmp_path / "out.jsonl"
    error = fails(capsys, file, "--output", output, "--min-score-gap", 9)
    assert f"no pair of 1 records; 1: gap below the minimum ({file}:1)" in error
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--semantic-weight", "2"], "--semantic-weight is for --score-mode weighted, not sum"),
        (["--score-mode", "weighted", "--semantic-weight", "-1"], "-1.0 given, wanted a number >="),
        (["--min-score-gap", "nan"], "min_score_gap: nan given, wanted a number >= 0"),
        (["--top-k", "0"], "'0' given, wanted a whole number >= 1"),
        (["--tie", "last"], "wanted one of semantic, first"),
    ],
)
def test_options_without_meaning_are_refused(tmp_path, capsys, arguments, message):
    file = write(tmp_path / "in.jsonl", scored((5, 5), (1, 1)))
    assert message in fails(capsys, file, "--output", tmp_path / "out.jsonl", *arguments)


def test_files_are_looked_for_under_the_roots(tmp_path, capsys, monkeypatch):
    """Roots start where the user is, other relative paths at the input."""
    work, source = tmp_path / "work", tmp_path / "source"
    for file in (work / "said/p.wav", work / "made/o.wav", work / "gold/t.wav", source / "p.wav"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    record = scored((5, 5), (1, 1), audios=["p.wav"], sft_target_audio="t.wav")
    record["messages"] = [{"role": "user", "content": "<|audio|>"}]
    for output in record["output"].values():
        output["output-audio"] = "o.wav"
    write(source / "in.jsonl", record)
    monkeypatch.chdir(work)
    gold = ["--chosen-source", "sft_target", "--sft-audio-root", "gold"]
    arguments = ["--validate-audio", "--gen-audio-root", "made", *gold]

    def made(*more):
        return build(tmp_path, capsys, *arguments, *more, source=source / "in.jsonl")[0]

    assert made()[0]["audios"] == ["p.wav"]
    (pair,) = made("--prompt-audio-root", "said")
    assert (pair["sft_target_audio"], pair["rejected_audio"]) == ("gold/t.wav", "made/o.wav")
    # With one root alone, the outputs lie beside the input.
    shutil.copy(work / "made/o.wav", source)
    validated = ["--validate-audio", *gold]
    (pair,), _ = build(tmp_path, capsys, *validated, source=source / "in.jsonl")
    assert (pair["sft_target_audio"], pair["rejected_audio"]) == ("gold/t.wav", "o.wav")
    (work / "gold/t.wav").unlink()
    output = str(tmp_path / "out.jsonl")
    error = fails(capsys, source / "in.jsonl", "--output", output, *arguments)
    assert "no pair of 1 records; 1: chosen audio is missing" in error


def test_paths_that_lead_nowhere_from_the_output_are_noted(tmp_path, capsys):
    source = str(FOLDER / "scored.jsonl")
    assert main(["data", "pairs", source, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert "note: 5 audio paths" in capsys.readouterr().err
    roots = [f"--{kind}-audio-root={FOLDER}" for kind in ("prompt", "gen", "sft")]
    good = [*roots, "--validate-audio", "--output", str(tmp_path / "out.jsonl")]
    assert main(["data", "pairs", source, *good]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_written_can_be_read_as_pairs(tmp_path, capsys):
    from wavalign_fast.data.dialogues.read import read_dialogues
    from wavalign_fast.data.dialogues.schemas import ReadOptions

    build(tmp_path, capsys)
    options = ReadOptions(task_types=None, audio_base_path=FOLDER)
    found = read_dialogues([tmp_path / "pairs.jsonl"], options).dialogues
    assert len(found) == 5 and all(one.is_pair for one in found)
    assert found[0].scores.gap == 6.0 and found[0].rejected_audio == FOLDER / "audio/a1_bad.wav"
