"""Records of the user's own files: what is read, what is refused, and what is left out."""

import json

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.recipes.dialogue.options import Options
from wavalign_fast.recipes.dialogue.read import ExampleReader, read_examples
from wavalign_fast.recipes.dialogue.tokens import load_tokens

HEAD = "<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
USER = {"role": "user", "content": "hi"}


@pytest.fixture
def reader(model_directory):
    def make(*, max_new_tokens=16, **options):
        chosen = Options(data="", **options)
        tokens = load_tokens(model_directory, chosen)
        return ExampleReader(tokens, chosen, max_new_tokens=max_new_tokens)

    return make


@pytest.fixture
def read(reader, tmp_path):
    """Reads records, given as objects or as lines, from a file ``d.jsonl``."""

    def run(*records, **options):
        path = tmp_path / "d.jsonl"
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines))
        return read_examples(path, reader(**options))

    return run


@pytest.fixture
def ids_of(reader):
    return lambda text: tuple(reader().tokens.encode(text))


def test_a_prompt_is_a_turn_of_the_user(read, ids_of):
    (example,) = read({"prompt": "hi", "answer": "ho", "colour": 3})
    assert example.prompt == "hi" and example.prompt_ids == ids_of(f"{HEAD}hi{TAIL}")
    assert example.answer_ids == ids_of("ho<|im_end|>") and example.reference == "ho"
    assert example.record["colour"] == 3 and example.id.endswith("d.jsonl:1")


def test_speech_tokens_in_an_answer_are_ids_and_no_part_of_the_reference(read, ids_of):
    spoken = "ho<|begin_of_audio|><|audio_3|><|audio_15|><|end_of_audio|>"
    by_text, by_ids = read(
        {"prompt": "hi", "answer": spoken},
        {"prompt": "hi", "answer_ids": [*ids_of(f"{spoken}<|im_end|>")]},
    )
    assert by_text.answer_ids == by_ids.answer_ids == ids_of(f"{spoken}<|im_end|>")
    assert by_text.reference == by_ids.reference == "ho"


def test_ids_are_taken_as_they_are(read, ids_of):
    (example,) = read({"prompt_ids": [*ids_of("hi")], "reference": "yes", "id": 7})
    assert example.prompt_ids == ids_of("hi") and example.prompt == "hi"
    assert example.answer_ids == () and example.reference == "yes" and example.id == "7"


def test_a_rejected_answer_is_read_as_an_answer_is(read, ids_of):
    spoken, by_ids, none = read(
        {"prompt": "hi", "answer": "ho", "rejected": "hu<|audio_1|>"},
        {"prompt": "hi", "answer": "ho", "rejected_ids": [*ids_of("hu<|audio_1|>")]},
        {"prompt": "hi", "answer": "ho"},
    )
    assert spoken.rejected_ids == by_ids.rejected_ids == ids_of("hu<|audio_1|><|im_end|>")
    assert spoken.answer_ids == ids_of("ho<|im_end|>") and none.rejected_ids == ()


def test_messages_may_end_with_the_answer(read, ids_of):
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    alone, answered = read(
        {"messages": turns}, {"messages": [*turns, {"role": "assistant", "content": "d"}]}
    )
    wanted = ids_of(
        f"<|im_start|>system\nbe brief<|im_end|>\n{HEAD}a{TAIL}b<|im_end|>\n{HEAD}c{TAIL}"
    )
    assert alone.prompt_ids == answered.prompt_ids == wanted
    assert alone.prompt == "c" and alone.answer_ids == () and alone.reference == ""
    assert answered.answer_ids == ids_of("d<|im_end|>") and answered.reference == "d"


def test_a_system_message_of_the_options_is_the_first_turn(read, ids_of):
    own = {"messages": [{"role": "system", "content": "be long"}, USER]}
    given, kept = read({"prompt": "hi"}, own, system="be brief")
    system = "<|im_start|>system\nbe {}<|im_end|>\n"
    assert given.prompt_ids == ids_of(f"{system.format('brief')}{HEAD}hi{TAIL}")
    assert kept.prompt_ids == ids_of(f"{system.format('long')}{HEAD}hi{TAIL}")


def test_keys_may_have_other_names(read, ids_of):
    record = {"question": "hi", "solution": "ho", "prompt": "not this", "reference": None}
    (example,) = read(record, keys={"prompt": "question", "answer": "solution"})
    assert example.prompt == "hi" and example.answer_ids == ids_of("ho<|im_end|>")
    with pytest.raises(UserError, match=r"task\.keys: 'question' given, wanted some of id, prompt"):
        read(record, keys={"question": "prompt"})


def test_without_a_template_a_prompt_is_used_as_it_is(read, ids_of, tmp_path):
    (example,) = read({"prompt": "<|im_start|>hi"}, chat_template="none")
    assert example.prompt_ids == ids_of("<|im_start|>hi")
    with pytest.raises(
        UserError, match=r"d\.jsonl:1: a conversation is .* there is no chat template"
    ):
        read({"messages": [USER]}, chat_template="none")
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    (example,) = read({"prompt": "hi"}, chat_template=str(own))
    assert example.prompt_ids == ids_of("[hi]")
    own.write_text("{{ raise_exception('not today') }}")
    with pytest.raises(UserError, match="the chat template refuses the messages: not today"):
        read({"prompt": "hi"}, chat_template=str(own))
    with pytest.raises(UserError, match=r"task\.chat_template: no such file: nowhere\.jinja"):
        read({"prompt": "hi"}, chat_template="nowhere.jinja")


END_INSIDE = "has an end-of-sequence id before its last id, wanted none"
BAD = [
    ({}, "no prompt; keys seen: none; wanted one of prompt, messages, prompt_ids"),
    ({"answer": "x"}, "no prompt; keys seen: 'answer'; wanted one of"),
    ({"prompt": "hi", "prompt_ids": [1]}, "prompt and prompt_ids are given, wanted one of them"),
    ({"prompt": 3}, "prompt is 3, wanted text that is not empty"),
    ({"prompt": " "}, "prompt is ' ', wanted text that is not empty"),
    ({"prompt": "hi<|im_end|>"}, "prompt has the special token '<|im_end|>', wanted text without"),
    ({"prompt_ids": []}, "prompt_ids is [], wanted a list of ids that is not empty"),
    ({"prompt_ids": "12"}, "prompt_ids is '12', wanted a list of ids that is not empty"),
    ({"prompt_ids": [1, 280]}, "prompt_ids[1] is 280, wanted an id, 0 <= id < 280"),
    ({"prompt_ids": [-1]}, "prompt_ids[0] is -1, wanted an id, 0 <= id < 280"),
    ({"prompt_ids": [True]}, "prompt_ids[0] is True, wanted an id"),
    ({"prompt": "hi", "answer": 42}, "answer is 42, wanted text that is not empty"),
    ({"prompt": "hi", "answer": "a", "answer_ids": [1]}, "answer and answer_ids are given"),
    ({"prompt": "hi", "rejected": "a"}, "rejected is given without an answer, wanted both"),
    (
        {"prompt": "hi", "answer": "a", "rejected": "b", "rejected_ids": [1]},
        "rejected and rejected_ids are given, wanted one of them",
    ),
    ({"prompt": "hi", "answer": "a", "rejected": 3}, "rejected is 3, wanted text"),
    ({"prompt": "hi", "answer": "a<|im_end|>b"}, "answer has the special token '<|im_end|>'"),
    ({"prompt": "hi", "answer_ids": [1, 258, 2]}, f"answer_ids {END_INSIDE}"),
    ({"prompt": "hi", "reference": 4}, "reference is 4, wanted text; a key of another name may"),
    ({"prompt": "hi", "audios": ["q.wav"]}, "audios is ['q.wav']: sound is not read; wanted"),
    # The forms of the released schema, as far as they concern text.
    ({"messages": [{"role": "assistant", "content": "x"}]}, "wanted a turn of the user at its end"),
    ({"messages": []}, "messages is [], wanted a list of turns that is not empty"),
    ({"messages": "hello"}, "messages is 'hello', wanted a list of turns"),
    (
        {"messages": [{"role": "narrator", "content": "x"}, USER]},
        "messages[0].role is 'narrator', wanted one of system, user, assistant",
    ),
    ({"messages": [{"role": "user"}]}, "messages[0] is {'role': 'user'}, wanted an object with"),
    (
        {"messages": [{"role": "user", "content": ["a list"]}]},
        "messages[0].content is ['a list'], wanted text",
    ),
    (
        {"messages": [{"role": "user", "content": "a<|im_end|>"}]},
        "messages[0].content has the special token '<|im_end|>'",
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": "x"}], "answer": "y"},
        "messages end with an answer, and answer is given; wanted one",
    ),
    (b'{"id": "b23", "messages": [', "malformed JSON"),
    (b'["a", "list"]', "is not a JSON object"),
    (b'{"prompt": "caf\xe9"}', "is not UTF-8 text"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_a_bad_record_is_named_in_one_short_line(read, tmp_path, record, message):
    with pytest.raises(UserError) as error:
        read({"prompt": "hi"}, record, {"prompt": "hi"})
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'd.jsonl'}:2: ") and message in said, said
    assert said.endswith("task.on_bad_record=skip leaves such records out") and "\n" not in said


def test_bad_records_may_be_skipped_and_are_counted(read, caplog):
    bad = [record for record, _ in BAD]
    examples = read({"prompt": "a"}, *bad, {"prompt": "b"}, on_bad_record="skip")
    assert [example.prompt for example in examples] == ["a", "b"]
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"{len(bad)} of {len(bad) + 2} records cannot be used and are left out; the" in line
    assert "d.jsonl:2: no prompt" in line
    with pytest.raises(UserError, match=r"no record is left, the first: .*d\.jsonl:1: no prompt"):
        read(*bad, on_bad_record="skip")


def test_records_that_are_too_long_are_left_out_and_counted(read, caplog, ids_of):
    length = len(ids_of(f"{HEAD}hi{TAIL}"))
    records = [
        {"prompt": "hi", "answer": "ho"},
        {"prompt": "hi!"},
        {"prompt": "hi", "answer": "hoho"},
    ]
    (example,) = read(*records, max_prompt=length, max_answer=3)
    assert example.reference == "ho"
    (line,) = (record.getMessage() for record in caplog.records)
    assert "2 of 3 records are too long and are left out" in line
    assert f"d.jsonl:2: its prompt has {length + 1} ids, wanted at most {length}" in line
    caplog.clear()
    assert len(read(*records, max_answer=5)) == 3 and not caplog.records
    # The model has 256 positions.
    assert len(read(*records, max_new_tokens=256 - length)) == 2
    with pytest.raises(UserError, match=r"no record is left.* wanted at most 1 "):
        read(*records, max_new_tokens=255)
    with pytest.raises(UserError, match=r"max_new_tokens: 256 given, wanted less than the 256 pos"):
        read(*records, max_new_tokens=256)
    both = {"prompt_ids": [1] * 200, "answer_ids": [1] * 56}
    with pytest.raises(UserError, match="its prompt and answer have 257 ids, wanted at most 256"):
        read(both)


def test_ids_of_records_that_repeat_are_said(read, caplog):
    assert len(read({"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}, {"prompt": "c"})) == 3
    (line,) = (record.getMessage() for record in caplog.records)
    assert "2 records have the id 'x'" in line


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_file_that_is_none_is_refused(reader, tmp_path, name):
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / name, reader())
