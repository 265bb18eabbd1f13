"""Dialogues are those of the authors' dataset class, and each record left out is named."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wavalign_fast.data.dialogues import containers
from wavalign_fast.data.dialogues.containers import raw_records
from wavalign_fast.data.dialogues.read import read_dialogues
from wavalign_fast.data.dialogues.records import Message, Place
from wavalign_fast.data.dialogues.schemas import ReadOptions
from wavalign_fast.errors import UserError

FOLDER = Path(__file__).parent / "dialogues"
EXPECTED = json.loads((FOLDER / "expected_processed.json").read_text(encoding="utf-8"))
SYSTEM = "<the release's default system text>"
ALL = {"task_types": None}
SETTINGS = {
    "default": {"system_text": SYSTEM},
    "all_tasks": {"system_text": SYSTEM, **ALL},
    "validate_audio": {"system_text": SYSTEM, "validate_audio": True, **ALL},
    "force_s2s": {"system_text": SYSTEM, "force_s2s": True, **ALL},
    "no_system": ALL,
}
OF_RELEASE = {"chosen_score": "chosen", "rejected_score": "rejected", "score_gap": "gap"}


def as_released(dialogue, folder):
    """The dialogue under the names and in the types of the release; without keys that are null."""

    def shown(path):
        return None if path is None else str(path.relative_to(folder))

    found = {
        "messages": [message._asdict() for message in dialogue.messages],
        "audios": [shown(path) for path in dialogue.audios],
        "sft_target_text": dialogue.target_text,
        "sft_target_audio": shown(dialogue.target_audio),
        "rejected_text": dialogue.rejected_text,
        "rejected_audio": shown(dialogue.rejected_audio),
        "task_type": dialogue.task_type,
        "question_text": dialogue.question_text,
        "question_text_raw": dialogue.question_text_raw,
        "history_text": dialogue.history_text,
        "id": dialogue.id,
    }
    found |= {name: getattr(dialogue.scores, ours) for name, ours in OF_RELEASE.items()}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("case", EXPECTED)
def test_the_same_records_are_accepted_and_read_alike(case):
    name, setting = case.split("/")
    options = ReadOptions(unmatched="keep", **SETTINGS[setting])
    file = FOLDER / f"{name}.jsonl"
    found = read_dialogues([file], options)
    wanted = [{k: v for k, v in one.items() if v is not None} for one in EXPECTED[case]]
    assert [as_released(one, FOLDER) for one in found.dialogues] == wanted
    # Every other line of the file is among the drops.
    lines = [one.place.line for one in (*found.dialogues, *found.drops)]
    assert sorted(lines) == list(range(1, len(file.read_text(encoding="utf-8").splitlines()) + 1))


def write(path, *records, end="\n"):
    path.write_text("".join(json.dumps(one) + end for one in records), encoding="utf-8")
    return path


def record(content="<|audio|>", **fields):
    record = {"messages": [{"role": "user", "content": content}], "audios": ["a.wav"]}
    return {**record, "task_type": "s2s", **fields}


def only(path, **options):
    (found,) = read_dialogues([path], ReadOptions(**options)).dialogues
    return found


def test_bad_records_are_left_out_with_file_line_and_reason(caplog):
    file = FOLDER / "bad.jsonl"
    with caplog.at_level(logging.WARNING):
        found = read_dialogues([file])
    drops = {drop.place.line: (drop.reason, drop.detail) for drop in found.drops}
    assert drops[23][0] == drops[24][0] == "not a JSON object"
    schema = {line for line, (reason, _) in drops.items() if reason == "not of the schema"}
    assert schema == {4, 5, 6, 7, 8, 17, 25, 27, 28}
    unmatched = {line for line, (reason, _) in drops.items() if "do not match" in reason}
    assert unmatched == {2, 3, 18}
    assert drops[16] == ("other task type", "task type tts, wanted s2s")
    assert drops[2][1] == "audio tags: 2, audios: 1, wanted as many"
    assert drops[25][1] == "audios is {'0': 'audio/q1.wav'}, wanted a list"
    assert drops[28][1] == "sft_target_text is 42, wanted text"
    assert f"9 of 28 records left out: not of the schema ({file}:4, {file}:5" in caplog.text
    assert len(found.drops) + len(found.dialogues) == 28


def test_no_dialogue_left_is_an_error_that_names_the_first(tmp_path):
    file = write(tmp_path / "d.jsonl", record(task_type="asr"))
    with pytest.raises(UserError, match=r"d\.jsonl:1: task type asr, wanted s2s"):
        read_dialogues([file])


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_read_with_the_line_of_each_record(tmp_path, indent):
    file = tmp_path / "d.json"
    records = [record(id=0), ["x"], record(id=2)]
    text = "\ufeff\n" + json.dumps(records, indent=indent, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")
    found = list(raw_records(file))
    assert [one["id"] for place, one in found if isinstance(one, dict)] == [0, 2]
    assert str(found[1][1]).endswith("is not a JSON object")
    # A line at the depth of one blank opens a record.
    opened = [n for n, line in enumerate(text.splitlines(), 1) if line in (" {", " [")]
    assert [place.line for place, _ in found] == (opened if indent else [2, 2, 2])
    assert [place.index for place, _ in found] == [0, 1, 2]
    assert str(found[2][0]) == f"{file}:{found[2][0].line} [2]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": ]', r"d\.json:2 \[1\]: malformed JSON \(Expecting value in line 2\)"),
        ('[{"a": 1},\n', r"d\.json:2 \[1\]: malformed JSON"),
        ('[{"a": 1}\n {"a": 2}]', r"d\.json:2: '{\"a\": 2}\]' follows, wanted , or a last \]"),
        ('[{"a": 1}] []', r"wanted , or a last \]"),
        ('[{"a": 1},]', r"\[1\]: malformed JSON"),
        ("[" * 100_000, "nested too deep"),
        ("[ \n]", "no records, wanted at least one"),
        ("", "no records, wanted at least one"),
        ('["\\ud800', "malformed JSON"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, text, message):
    file = tmp_path / "d.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(raw_records(file))


def test_a_list_that_is_not_utf8_or_too_large_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "d.json"
    file.write_bytes(b'[{"a": "caf\xe9"}]')
    with pytest.raises(UserError, match=r"d\.json: byte 11 is not UTF-8 text"):
        list(raw_records(file))
    monkeypatch.setattr(containers, "MAX_LIST", 10)
    with pytest.raises(UserError, match="a JSON list of 15 bytes, wanted JSONL"):
        list(raw_records(file))


def test_a_jsonl_file_is_lines_whatever_it_begins_with(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('["a"]\n' + json.dumps(record()) + "\n")
    found = list(raw_records(file))
    assert str(found[0][1]) == '["a"] is not a JSON object' and found[1][1] == record()


def test_json_lines_under_another_name_are_read_as_lines(tmp_path):
    file = write(tmp_path / "d.json", record(id=0), record(id=1))
    assert [(place.line, place.index) for place, _ in raw_records(file)] == [(1, None), (2, None)]


def test_a_datasets_directory_is_read(tmp_path):
    import datasets

    rows = [record(id=0), record(id=1, audios=[], sft_target_text="x")]
    directory = tmp_path / "train"
    datasets.Dataset.from_list(rows).save_to_disk(str(directory))
    found = read_dialogues([directory])
    assert [one.id for one in found.dialogues] == [0]
    assert found.dialogues[0].messages == (Message("user", "<|audio|>"),)
    assert found.dialogues[0].audios == (directory / "a.wav",)
    (drop,) = found.drops
    assert drop.place == Place(str(directory), None, 1)
    assert str(drop.place) == f"{directory} [1]"
    with pytest.raises(UserError, match=rf"no state\.json, wanted one of its splits: {directory}"):
        read_dialogues([tmp_path])


def test_a_directory_without_the_package_datasets_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'wavalign-fast\[datasets\]'"):
        read_dialogues([tmp_path])


def test_reading_imports_nothing_heavy():
    script = (
        "import sys, wavalign_fast; import wavalign_fast.data.dialogues.read\n"
        "print({'datasets', 'numpy', 'transformers'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    # torch may bring numpy along.
    assert done.stdout.strip() in ("set()", "{'numpy'}")


def test_a_missing_path_takes_its_dialogue_along_unless_it_is_kept(tmp_path):
    shutil.copy(FOLDER / "audio" / "tone.wav", tmp_path / "a.wav")
    two = record("<|audio|> or <|audio|>", audios=["a.wav", "gone.wav"], id="two")
    file = write(tmp_path / "d.jsonl", record(id="one"), two)
    assert only(file, validate_audio=True).id == "one"
    kept = read_dialogues([file], ReadOptions(validate_audio=True, unmatched="keep")).dialogues
    assert kept[1].tags == 2 and kept[1].audios == (tmp_path / "a.wav",)
    assert len(read_dialogues([file]).dialogues) == 2  # nobody looked


def test_a_blank_path_is_no_audio(tmp_path):
    blank = record("<|audio|>", audios=["a.wav", " "])
    file = write(tmp_path / "d.jsonl", record(), blank)
    (drop,) = read_dialogues([file]).drops
    assert drop.detail == "audios[1] is empty, wanted a path"
    kept = read_dialogues([file], ReadOptions(unmatched="keep")).dialogues[1]
    assert kept.audios == (tmp_path / "a.wav",)


def test_audios_of_the_answers_left_out_go_with_them(tmp_path):
    answer = {"role": "assistant", "content": "Oslo.\n<|audio|>"}
    turns = [{"role": "user", "content": "<|audio|>"}, answer]
    file = write(tmp_path / "d.jsonl", record(messages=turns, audios=["q.wav", "a.wav"]))
    assert only(file).audios == (tmp_path / "q.wav",)
    assert only(file, unmatched="keep").audios == (tmp_path / "q.wav", tmp_path / "a.wav")


def test_paths_start_at_the_file_or_at_the_folder_given(tmp_path):
    file = write(tmp_path / "d.jsonl", record(sft_target_audio="/x/b.wav", rejected_audio="c.wav"))
    found = only(file, audio_base_path=Path("/base"))
    assert found.audios == (Path("/base/a.wav"),)
    assert found.target_audio == Path("/x/b.wav") and found.rejected_audio == Path("/base/c.wav")


def test_the_rejected_answer_may_stand_in_the_original_sample(tmp_path):
    inner = {"rejected_text": "No.", "rejected_audio": "n.wav"}
    file = write(tmp_path / "d.jsonl", record(sft_target_text="Yes.", original_sample=inner))
    found = only(file)
    assert (found.rejected_text, found.rejected_audio) == ("No.", tmp_path / "n.wav")
    assert found.is_pair


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"sft_target_text": "x", "sft_target_audio": "b.wav"}, "s2s"),
        ({"sft_target_text": "x", "sft_target_audio": ""}, "asr"),
        ({"sft_target_text": " \n", "sft_target_audio": "b.wav"}, "unknown"),
        ({"content": "x", "audios": [], "sft_target_audio": "b.wav"}, "tts"),
        ({"content": "x", "audios": [], "sft_target_text": "y"}, "text"),
        ({"content": "x", "audios": []}, "unknown"),
        ({"task_type": "made up"}, "made up"),
    ],
)
def test_the_task_is_inferred_where_it_is_not_given(tmp_path, fields, task):
    file = write(
        tmp_path / "d.jsonl", {**record(task_type=None), **record(**{"task_type": None, **fields})}
    )
    assert only(file, task_types=None).task_type == task


def test_a_random_subset_depends_on_the_seed_alone(tmp_path):
    file = write(tmp_path / "d.jsonl", *(record(id=number) for number in range(50)))

    def ids(**options):
        return [one.id for one in read_dialogues([file], ReadOptions(**options)).dialogues]

    first = ids(max_samples=10)
    assert first == ids(max_samples=10) == sorted(first) and len(set(first)) == 10
    assert first != ids(max_samples=10, seed=1)
    assert ids(max_samples=99) == list(range(50))
    with pytest.raises(UserError, match="max_samples: 0 given, wanted at least 1"):
        ids(max_samples=0)


def test_legacy_history_without_markers_or_words_passes(tmp_path):
    legacy = {"question_audio": "q.wav", "task_type": "s2s"}
    file = write(
        tmp_path / "d.jsonl",
        {
            **legacy,
            "history": "before [USER] hello [ASSISTANT]  [USER] again",
            "history_text": "not this one",
        },
        {**legacy, "history": None, "history_text": " free "},
        {"task_type": "s2s", "history": 3},
    )
    found = read_dialogues([file])
    assert [one.messages[0].content for one in found.dialogues] == [
        "before\nUser: hello\nUser: again\n\n<|audio|>",
        "free\n\n<|audio|>",
    ]
    assert found.drops[0].detail == "history is 3, wanted text"


def test_half_a_surrogate_pair_is_not_text(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(record("a \ud800")) + "\n" + json.dumps(record()))
    (drop,) = read_dialogues([file]).drops
    assert drop.detail == r"messages[0].content is 'a \ud800', wanted text"
