"""Prompts from files: fields, presets, and the places of what is wrong."""

import json

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.read_prompts import Reading, read_prompts


def read(folder, records, *, name="prompts.jsonl", **reading):
    path = folder / name
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return read_prompts(path, Reading(**reading))


def test_a_record_with_everything(tmp_path):
    (tmp_path / "q.wav").write_bytes(b"RIFF")
    record = {
        "id": 0, "task": "mcq", "category": "physics", "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}],
        "audio": "q.wav", "reference": "(b)", "choices": {"A": "hot", "B": "cold"},
        "language": "en", "rubric": "strict",
    }  # fmt: skip
    (prompt,), bad = read(tmp_path, [record])
    assert not bad and prompt.id == "0" and prompt.question == "Which?"
    assert prompt.messages[0] == ("system", "Be brief.") and prompt.audios == (tmp_path / "q.wav",)
    assert prompt.references == ("(b)",) and prompt.choices == ("hot", "cold")
    assert (prompt.language, prompt.rubric, prompt.where) == (
        "en",
        "strict",
        f"{tmp_path}/prompts.jsonl:1",
    )


def test_defaults_and_names_of_keys(tmp_path):
    records = [{"question": "1 + 1", "gold": 2}, {"question": "2 + 2", "gold": 4}]
    keys = {"prompt": "question", "reference": "gold"}
    prompts, _ = read(tmp_path, records, task="qa", keys=keys, language="en")
    assert [prompt.id for prompt in prompts] == ["prompts-0", "prompts-1"]
    assert prompts[1].references == ("4",) and prompts[1].category == "prompts"
    with pytest.raises(UserError, match="--field: 'promt' given"):
        read(tmp_path, records, keys={"promt": "question"})


BAD = [
    ({"task": "qa", "prompt": "x"}, "no reference"),
    ({"task": "qa", "prompt": "x", "reference": "?!"}, "wanted a word or a number"),
    ({"task": "mcq", "prompt": "x", "reference": "Paris"}, "reference is 'Paris', wanted a letter"),
    ({"task": "mcq", "prompt": "x", "reference": "C", "choices": ["a", "b"]}, "of A to B"),
    ({"task": "bool", "prompt": "x", "reference": "maybe"}, "wanted yes, no"),
    ({"task": "sing", "prompt": "x"}, "task is 'sing'"),
    ({"task": "open"}, "no prompt and messages"),
    ({"task": "open", "prompt": "x", "messages": []}, None),
    ({"task": "open", "prompt": " "}, "prompt is ' '"),
    ({"task": "open", "messages": [{"role": "assistant", "content": "y"}]},
     "end with a turn of assistant"),
    ({"task": "open", "prompt": "x", "audio": "lost.wav"}, "audio: no such file"),
    ({"task": "ifeval", "prompt": "x"}, "instruction_id_list is None"),
    ({"task": "ifeval", "prompt": "x", "instruction_id_list": ["a"], "kwargs": []}, None),
    ({"task": "ifeval", "prompt": "x", "instruction_id_list": ["a"], "kwargs": [{}, {}]},
     "a list of 1 objects"),
    ("{", "malformed JSON"),
    ({"task": "open", "prompt": "x", "id": "good"}, "'good' is that of"),
    ({"task": "qa", "prompt": "x", "reference": "y", "category": "good"}, "began with open"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD)
def test_a_bad_record_is_named_by_its_line(tmp_path, record, message):
    good = {"id": "good", "task": "open", "category": "good", "prompt": "hello"}
    if message is None:
        assert len(read(tmp_path, [good, record])[0]) == 2
        return
    with pytest.raises(UserError) as error:
        read(tmp_path, [good, record])
    assert str(error.value).startswith(f"{tmp_path}/prompts.jsonl:2: ")
    assert message in str(error.value) and "--skip-bad" in str(error.value)
    prompts, bad = read(tmp_path, [good, record], skip_bad=True)
    assert [prompt.id for prompt in prompts] == ["good"] and len(bad) == 1


def test_a_file_of_bad_records_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match="no record can be used"):
        read(tmp_path, [{"task": "qa", "prompt": "x"}], skip_bad=True)
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "lost.jsonl", Reading())


def test_voicebench_records(tmp_path):
    records = [{"prompt": "is it?", "reference": "Yes", "id": "navigate"}] * 2
    prompts, _ = read(tmp_path, records, name="glm-bbh-test-audio.jsonl", preset="voicebench")
    assert [(one.id, one.task, one.category) for one in prompts] == [
        ("bbh-0", "bool", "bbh"), ("bbh-1", "bool", "bbh"),
    ]  # fmt: skip
    record = {
        "prompt": "write", "key": 7, "instruction_id_list": ["a:b"], "response": "",
        "kwargs": [{"num_words": 3, "relation": None}],
    }  # fmt: skip
    (prompt,), _ = read(tmp_path, [record], name="x.jsonl", preset="voicebench", category="ifeval")
    assert prompt.task == "ifeval" and prompt.answer == ""
    assert prompt.instructions == (("a:b", (("num_words", 3), ("relation", None))),)
    with pytest.raises(UserError, match="--category with one of alpacaeval"):
        read(tmp_path, [record], name="x.jsonl", preset="voicebench")


def test_openaudiobench_tables(tmp_path):
    table = "question,answers,audio_filename\nWho?,Ann; Bob ,\n"
    path = tmp_path / "web_questions.csv"
    path.write_text(table)
    (prompt,), _ = read_prompts(path, Reading(preset="openaudiobench"))
    assert (prompt.task, prompt.references) == ("qa", ("Ann", "Bob"))
    assert prompt.where == f"{path}:2"
    path = tmp_path / "trivia_qa.csv"
    path.write_text(
        "question,answer_normalized_value,answer_normalized_aliases\nWho?,x,\"['a', 'b c']\"\n"
    )
    assert read_prompts(path, Reading(preset="openaudiobench"))[0][0].references == ("a", "b c")
    path.write_text("question\nWho?,too,many\n")
    with pytest.raises(UserError, match=r"trivia_qa.csv:2: more cells"):
        read_prompts(path, Reading(preset="openaudiobench"))


def test_vstyle_records(tmp_path):
    record = {
        "instruct_text": "Say it softly", "ability": "acoustic_attributes/volume", "id": 12,
        "response_text": "it",
    }  # fmt: skip
    (prompt,), _ = read(tmp_path, [record], preset="vstyle", language="en")
    assert (prompt.id, prompt.task, prompt.category) == ("12", "style", "acoustic_attributes")
    assert (prompt.question, prompt.answer) == ("Say it softly", "it")
