"""`wavalign-fast data check` finds what is wrong with dialogues, and says where."""

import json
import shutil
from pathlib import Path

import pytest

from wavalign_fast.cli import main
from wavalign_fast.data.dialogues.check import check_files
from wavalign_fast.data.dialogues.schemas import ReadOptions
from wavalign_fast.speech.wave_files import write_wave

FOLDER = Path(__file__).parent / "dialogues"


@pytest.fixture(autouse=True)
def in_the_folder(monkeypatch):
    """Paths of findings are short, and relative ones must not depend on this folder."""
    monkeypatch.chdir(FOLDER.parent)


def run(capsys, *arguments):
    """Returns exit status and standard output of a command."""
    status = main(["data", "check", *map(str, arguments)])
    return status, capsys.readouterr().out


def test_the_verdicts_are_those_of_the_expectations(capsys):
    expected = json.loads((FOLDER / "bad_expected.json").read_text(encoding="utf-8"))
    status, out = run(capsys, FOLDER / "bad.jsonl", "--json")
    (file,) = json.loads(out)["files"]
    assert status == 1
    order = ["error", "dropped", "warning"]
    worst: dict[int, str] = {}
    for one in file["findings"]:
        given = worst.get(one["line"], "warning")
        worst[one["line"]] = min(given, one["severity"], key=order.index)
    assert worst == {one["line"]: one["severity"] for one in expected}
    counts = [one["severity"] for one in expected]
    assert {name: file[name] for name in order} == {name: counts.count(name) for name in order}


WORDS = {
    1: "does not exist",
    9: "0 bytes",
    10: "header is cut off",
    11: "wanted a WAV file",
    12: "no samples",
    13: "silent",
    15: "'<|im_end|>'",
    22: "id 'full' occurs twice, also in dialogues/bad.jsonl:21",
    26: "it leaves the folder",
}


def test_messages_say_what_was_seen(capsys):
    out = json.loads(run(capsys, "dialogues/bad.jsonl", "--json")[1])
    findings = out["files"][0]["findings"]
    for line, words in WORDS.items():
        assert any(words in one["message"] for one in findings if one["line"] == line), line
    assert out["audio"]["files"] == 10 and out["audio"]["unusable"] == 6
    assert out["audio"]["sample_rates"] == {"16000": 4}


def test_an_odd_rate_is_an_error_and_long_paths_are_shortened(tmp_path, capsys):
    write_wave(tmp_path / "slow.wav", [0.5] * 9, 1)
    records = [GOOD | {"id": name, "audios": [name]} for name in ("slow.wav", "a" * 5000)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    status, out = run(capsys, tmp_path / "d.jsonl")
    assert status == 1
    assert "slow.wav: its header says 1 Hz, wanted 4000 to 768000" in out
    assert "aaa...aaa" in out and "does not exist" in out and len(out) < 3000


def test_encodings_are_reported(capsys):
    status, out = run(capsys, "dialogues/encoding.jsonl", "--task-types", "all")
    assert status == 1
    at = (FOLDER / "encoding.jsonl").read_bytes().splitlines()[2].index(b"\xe9")
    assert r'"caf\xe9' in out and f"byte {at}, is not UTF-8 text" in out
    assert "records     3 (2 clean, 1 with errors)" in out
    assert "begins with a byte order mark" in out and "2 lines end in CRLF" in out


def test_line_ends_are_counted(tmp_path):
    file = tmp_path / "d.jsonl"
    one = json.dumps(GOOD).encode()
    file.write_bytes(one + b"\r\n" + one + b"\n" + one + b"\r\n" + one + b" \r")
    (found,) = check_files([file], ReadOptions(), look_at_audio=False).files
    assert [fault.message for fault in found.encoding] == ["2 lines end in CRLF"]


def test_good_files_have_no_errors_and_their_oddities_are_told(capsys):
    names = [f"dialogues/{name}.jsonl" for name in ("rl_sft", "dpo", "legacy")]
    status, out = run(capsys, *names)
    assert status == 0 and out.endswith("no errors\n")
    assert "records     8 (5 clean, 2 dropped, 1 with warnings)" in out
    assert "line 8: task type is s2s, but there is no audio at all" in out
    assert "task types  s2s 6, asr 1, tts 1" in out
    assert "audio: 7 files, 0 unusable" in out and "channels    several in 1 of the files" in out


def test_a_file_that_cannot_be_read_is_status_2_and_the_others_are_checked(capsys, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('[{"messages": [}]')
    status, out = run(capsys, "dialogues/dpo.jsonl", broken, "none.jsonl")
    assert status == 2
    assert "records     3 (3 clean)" in out and "malformed JSON" in out
    assert "unreadable: no such file: none.jsonl" in out
    assert out.endswith("2 of 3 files cannot be read; no errors\n")


def test_long_lists_are_cut(capsys):
    out = run(capsys, "dialogues/bad.jsonl", "--show", 2, "--no-audio")[1]
    assert "not of the schema (9)" in out and "and 7 more (--show, --json)" in out
    assert "audio/zero_bytes.wav" not in out  # nobody looked


def findings(tmp_path, record, **options):
    """Returns (severity, kind, message) of what is wrong with one record."""
    shutil.copy(FOLDER / "audio" / "tone.wav", tmp_path / "a.wav")
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    (found,) = check_files([file], ReadOptions(**options)).files
    return [tuple(fault) for _, fault in found.findings]


def turns(*contents):
    """Turns of user and assistant after each other."""
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


GOOD = {"messages": turns("<|audio|>"), "audios": ["a.wav"], "task_type": "s2s"}


def test_a_good_record_has_no_finding(tmp_path):
    spoken = {**GOOD, "sft_target_text": "Yes.", "sft_target_audio": "a.wav", "rejected_text": "No"}
    assert findings(tmp_path, spoken) == []
    answered = {**spoken, "messages": turns("<|audio|>", " Yes.\n<|audio|>")}
    assert findings(tmp_path, {**answered, "audios": ["a.wav", "a.wav"]}) == []


@pytest.mark.parametrize(
    ("change", "severity", "message"),
    [
        ({"messages": turns("<|audio|>", "a <|audio|><|audio|>", "b"), "audios": ["a.wav"] * 3},
         "error", "messages[1] is an answer with 2 audio tags, wanted at most 1"),
        ({"messages": turns("<|audio|> <|im_end|>")}, "warning",
         "messages[0] holds the special token '<|im_end|>'"),
        ({"messages": turns("<|audio|>", "No.", "  ")}, "warning",
         "messages[2] has neither words nor an audio tag"),
        ({"messages": turns("<|audio|>", "Yes.")}, "warning",
         "messages end with an answer, 'Yes.', which is not the target"),
        ({"rejected_text": "No."}, "warning", "a rejected answer without a target, wanted both"),
        ({"task_type": "s2t"}, "warning", "task type is 's2t', wanted one of s2s"),
        ({"sft_target_text": "x", "rejected_text": "a<audio_17>b"}, "error",
         "rejected text holds the special token '<audio_17>'"),
        ({"sft_target_text": "x", "sft_target_audio": "b.wav"}, "error", "target audio"),
        ({"sft_target_text": "x", "rejected_audio": "b.wav"}, "error", "rejected audio"),
    ],
)  # fmt: skip
def test_each_fault_is_found(tmp_path, change, severity, message):
    found = findings(tmp_path, {**GOOD, **change})
    assert [one[0] for one in found if message in one[2]] == [severity], found
    assert all(one[0] != "error" for one in found if message not in one[2])


def test_paths_start_at_the_folder_given(tmp_path):
    base = tmp_path / "elsewhere"
    base.mkdir()
    assert findings(tmp_path, GOOD, audio_base_path=base)[0][1] == "audio is missing"


def test_ids_must_differ_in_all_files_together(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({**GOOD, "id": 7}) + "\n")
    first, second = check_files(
        [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], ReadOptions(), look_at_audio=False
    ).files
    assert first.findings[0].fault.message == f"id 7 occurs twice, also in {tmp_path}/b.jsonl:1"
    assert second.findings[0].fault.message == f"id 7 occurs twice, also in {tmp_path}/a.jsonl:1"


def test_a_file_named_twice_is_checked_once(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({**GOOD, "id": 7}) + "\n")
    (found,) = check_files(
        [file, tmp_path / "." / "a.jsonl"], ReadOptions(), look_at_audio=False
    ).files
    assert found.records == 1 and found.findings == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FILE"),
        (["a", "--show", "0"], "'0' given, wanted a whole number >= 1"),
        (["a", "--task-types", " , "], "wanted e.g. s2s,asr or all"),
        (["a", "--shw", "1"], "did you mean --show?"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert "(see wavalign-fast data check --help)" in error


def test_a_missing_command_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["data"])
    assert "COMMAND is missing, wanted one of check" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a" * 5000 + ".wav", "a\0.wav"])
def test_a_name_that_no_system_takes_is_a_missing_file(tmp_path, capsys, name):
    record = {"task_type": "s2s", "messages": [{"role": "user", "content": "<|audio|>"}]}
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps(record | {"audios": [name]}), encoding="utf-8")
    status, out = run(capsys, file)
    assert status == 1
    assert "audio is missing (1)" in out and "1 unusable" in out
