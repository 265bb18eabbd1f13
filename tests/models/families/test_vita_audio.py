"""VITA-Audio: hidden states, rows and prompts are those of its published code."""

from dataclasses import replace

import pytest
import torch

from tests.models.families.golden import CLOSE, greedy, loaded, opened, outputs, read
from wavalign_fast.errors import UserError
from wavalign_fast.models.families import vita_audio
from wavalign_fast.models.families.interface import (
    IGNORE,
    Answer,
    Audio,
    DialogueOptions,
    Sampling,
)

CASES = ["vita_audio", "vita_audio_plus"]
ROWS = [
    pytest.param(case, number, id=f"{case}-{row['name']}-{row['ratio'][1]}")
    for case in CASES
    for number, row in enumerate(read(f"{case}/rows.json")["rows"])
]
# A target has a new line between text and speech; the content of this row has none.
WITHOUT_NEW_LINE = "one text token, one code"
RATIO = (1, 10, 4, 10)


def with_options(files, **options):
    return replace(files, options=DialogueOptions(**options))


@pytest.fixture(scope="module", params=CASES)
def files(request):
    return opened(request.param)


@pytest.fixture(scope="module")
def all_files():
    return {case: opened(case) for case in CASES}


def conversation(case, number):
    """A conversation with its audios, and what the published code makes of it."""
    golden = read(f"{case}/rows.json")
    row = golden["rows"][number]
    audios = [
        Audio(codes=golden["codes"][name], positions=(golden["feature_frames"][name] + 4,))
        for name in row["audios"]
    ]
    return row, audios


@pytest.mark.parametrize("case", CASES)
def test_the_body_computes_what_the_family_computes(case):
    checkpoint, golden = loaded(case)
    if case == "vita_audio":
        hidden, logits = outputs(checkpoint.model, input_ids=golden["input_ids"])
        torch.testing.assert_close(hidden, golden["main.hidden"], **CLOSE)
        torch.testing.assert_close(logits, golden["main.logits"], **CLOSE)
        said = greedy(checkpoint.model, golden["gen.prompt"], 24)
        assert torch.equal(said, golden["gen.vanilla"])
    else:
        for row in ("row.0", "row.1"):
            inputs = {"inputs_embeds": golden[f"{row}.embedded"]}
            hidden, logits = outputs(checkpoint.model, **inputs)
            torch.testing.assert_close(hidden, golden[f"{row}.hidden"], **CLOSE)
            torch.testing.assert_close(logits, golden[f"{row}.logits"], **CLOSE)


@pytest.mark.parametrize(("case", "number"), ROWS)
def test_rows_are_those_of_the_family(all_files, case, number):
    row, audios = conversation(case, number)
    files = with_options(all_files[case], ratio=tuple(row["ratio"]))
    built = vita_audio.row(files, row["messages"], audios)
    assert built.ids == row["input_ids"]
    assert built.labels == row["labels"]
    assert [[span.first, span.count] for span in built.spans] == row["audio_positions"]


@pytest.mark.parametrize(
    ("case", "number"), [row for row in ROWS if WITHOUT_NEW_LINE not in row.id]
)
def test_a_prompt_and_its_target_make_the_row(all_files, case, number):
    row, audios = conversation(case, number)
    files = with_options(all_files[case], ratio=tuple(row["ratio"]))
    *history, answer = row["messages"]
    heard = sum(message["content"].count("<|audio|>") for message in history)
    text, tag, _ = answer["content"].partition("<|audio|>")
    prompt = vita_audio.prompt(files, history, audios[:heard])
    target = vita_audio.target(files, text.rstrip("\n"), audios[heard].codes if tag else None)
    assert prompt.ids + target.ids == row["input_ids"]
    assert prompt.labels + target.labels == row["labels"]


@pytest.mark.parametrize(("case", "number"), ROWS)
def test_release_prompts_are_those_of_the_family(all_files, case, number):
    row, audios = conversation(case, number)
    files = with_options(all_files[case], prompt_style="release")
    history = row["messages"][:-1]
    heard = sum(message["content"].count("<|audio|>") for message in history)
    prompt = vita_audio.prompt(files, history, audios[:heard])
    ids, tag = list(prompt.ids), files.tokenizer.get_vocab()["<|audio|>"]
    for span in reversed(prompt.spans):  # begin, vectors and end stand where the tag is
        ids[span.first - 1 : span.first + span.count + 1] = [tag]
    assert ids == row["prompt_ids_before_audio"]
    assert set(prompt.labels) == {IGNORE}


def test_an_answer_is_taken_apart(files):
    target = vita_audio.target(with_options(files, ratio=RATIO), "Nine it is.", list(range(20)))
    text = files.tokenizer("Nine it is.\n", add_special_tokens=False)["input_ids"]
    whole = Answer(text=text, codes=list(range(20)), ended=True)
    assert vita_audio.split(files, target.ids) == whole
    assert vita_audio.split(files, [*target.ids, 5, 6]) == whole
    cut = vita_audio.split(files, target.ids[:-2])
    assert cut == replace(whole, ended=False)
    assert vita_audio.split(files, [files.layout.first_code]) == Answer(
        text=[], codes=[0], ended=False
    )


def test_ids_are_derived_from_the_tokenizer(files):
    plus = "context_of_audio" in files.layout.named
    first = 555 if plus else 554
    assert files.layout.stream.speech == ((first, first + 64),)
    assert files.layout.stream.boundary == (543, 544)
    assert files.layout.stream.eos == files.layout.stop == (514, 512)
    assert {543, 553, 623, first + 64} <= files.layout.special
    assert files.layout.special.isdisjoint(range(first, first + 64))


def test_defaults_are_those_of_the_checkpoint(files):
    wanted = Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    assert vita_audio.sampling(files) == wanted
    assert vita_audio.codec(files) == "glm4_voice"
    # Neither mode of the golden cases leaves room for codes, so it is no ratio.
    assert vita_audio.ratio(files) == RATIO
    balance = replace(files, generation={"mtp_inference_mode": [1, 4, 3, 8, 4, 10]})
    assert vita_audio.ratio(balance) == (1, 4, 3, 8, 4, 10)


SPOKEN = [{"role": "user", "content": "<|audio|>"}]


@pytest.mark.parametrize(
    ("messages", "audios", "wanted"),
    [
        ([], [], "ends with the role None"),
        ([{"role": "assistant", "content": "a"}], [], "ends with the role 'assistant'"),
        ([{"role": "tool", "content": "a"}, *SPOKEN], [], "the role 'tool', wanted one of system"),
        (SPOKEN, [], r"1 tags <\|audio\|> for 0 audios"),
        (SPOKEN, [Audio()], "audio 0 has"),
        ([{"role": "user", "content": "a<|im_end|>"}], [], r"holds the token <\|im_end\|>"),
        ([{"role": "user", "content": "<|audio_3|>"}], [], r"holds the token <\|audio_3\|>"),
        (
            [{"role": "assistant", "content": "a<|audio|><|audio|>"}, *SPOKEN],
            [Audio(codes=[1], positions=(4,))] * 3,
            "an assistant's turn has 2 audios",
        ),
        (
            [{"role": "assistant", "content": "a<|audio|>"}, *SPOKEN],
            [Audio(codes=[], positions=(4,)), Audio(codes=[1], positions=(4,))],
            "the answer's audio has no codes",
        ),
    ],
)
@pytest.mark.parametrize("style", ["row", "release"])
def test_what_cannot_be_a_prompt_is_refused(files, messages, audios, wanted, style):
    if style == "release" and "answer's audio" in wanted:
        wanted = "audio 0 has no codes"
    elif style == "release" and "2 audios" in wanted:
        return  # the release joins them
    with pytest.raises(UserError, match=wanted):
        vita_audio.prompt(with_options(files, prompt_style=style), messages, audios)


@pytest.mark.parametrize(
    ("text", "codes", "wanted"),
    [
        (None, None, "neither text nor codes"),
        ("", None, "neither text nor codes"),
        ("a", [], "no codes"),
        ("a", [1, 64], "code 64, wanted 0 to 63"),
        ("a", [-1], "code -1, wanted 0 to 63"),
    ],
)
def test_what_cannot_be_a_target_is_refused(files, text, codes, wanted):
    with pytest.raises(UserError, match=wanted):
        vita_audio.target(files, text, codes)
