"""GLM-4-Voice: its weights on Glm, its tokenizer from a tiktoken file, its prompts and answers."""

import base64
from dataclasses import replace

import pytest
import torch

from tests.models.families.golden import CLOSE, greedy, loaded, opened, outputs, read
from wavalign_fast.errors import DamagedFileError, UserError
from wavalign_fast.models.families import glm4_voice
from wavalign_fast.models.families.interface import (
    IGNORE,
    Answer,
    Audio,
    DialogueOptions,
    Sampling,
)
from wavalign_fast.models.families.tokens import tiktoken_tokenizer


@pytest.fixture(scope="module")
def files():
    return opened("glm4_voice")


def test_the_model_computes_what_the_family_computes():
    checkpoint, golden = loaded("glm4_voice")
    hidden, logits = outputs(checkpoint.model, input_ids=golden["input_ids"])
    torch.testing.assert_close(hidden, golden["hidden"], **CLOSE)
    torch.testing.assert_close(logits, golden["logits"], **CLOSE)
    assert torch.equal(greedy(checkpoint.model, golden["gen.prompt"], 24), golden["gen.greedy"])


@pytest.mark.parametrize("case", read("glm4_voice/tokenized.json"), ids=lambda c: c["text"][:12])
def test_ids_are_those_of_the_published_tokenizer(files, case):
    ids = files.tokenizer(case["text"], add_special_tokens=False)["input_ids"]
    assert ids == case["ids_without_prefix"]
    assert files.tokenizer.decode(ids) == case["text"]


def test_a_prompt_is_that_of_the_demo(files):
    """The first golden text is a prompt with a system's turn and two codes of a user."""
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "<|audio|>"},
    ]
    prompt = glm4_voice.prompt(files, messages, [Audio(codes=[3, 17])])
    assert prompt.ids == read("glm4_voice/tokenized.json")[0]["ids"]
    assert set(prompt.labels) == {IGNORE} and not prompt.spans
    text_only = replace(files, options=DialogueOptions(speech=False))
    shorter = glm4_voice.prompt(text_only, messages, [Audio(codes=[3, 17])])
    named, new_line = files.layout.named, files.tokenizer("\n")["input_ids"]
    end = prompt.ids.index(named["<|assistant|>"])
    assert shorter.ids == [*prompt.ids[: end + 1], *new_line]


def test_history_is_a_prefix_of_the_row_and_its_labels_are_its_answers(files):
    first = [{"role": "user", "content": "Hello.\n<|audio|>"}]
    answer = {"role": "assistant", "content": "Nine it is, I think, and no more.<|audio|>"}
    codes = [number % 64 for number in range(70)]
    audios = [Audio(codes=[1, 2]), Audio(codes=codes)]
    before = glm4_voice.prompt(files, first, audios[:1])
    target = glm4_voice.target(files, "Nine it is, I think, and no more.", codes)
    whole = glm4_voice.prompt(files, [*first, answer, {"role": "user", "content": "Why?"}], audios)
    row = before.ids + target.ids
    assert whole.ids[: len(row)] == row
    assert whole.labels[: len(row)] == before.labels + target.labels
    assert set(whole.labels[len(row) :]) == {IGNORE}
    # 13 of text, 26 of speech, and so on; what is left of the longer follows.
    chunks = "".join("c" if i >= files.layout.first_code else "t" for i in target.ids[:-1])
    text = chunks.count("t")
    assert 13 < text < 26
    assert chunks == "t" * 13 + "c" * 26 + "t" * (text - 13) + "c" * 44


def test_the_release_tokenises_a_turn_with_its_new_line(files):
    turn = [{"role": "user", "content": "\nHello"}]
    own = glm4_voice.prompt(files, turn, [])
    released = glm4_voice.prompt(
        replace(files, options=DialogueOptions(prompt_style="release")), turn, []
    )
    turn_at, tokenizer = 3, files.tokenizer  # after [gMASK]<sop><|user|>
    assert own.ids[turn_at:][:2] == tokenizer("\n")["input_ids"] * 2
    assert released.ids[turn_at:][:1] == tokenizer("\n\n")["input_ids"]
    assert tokenizer.decode(own.ids) == tokenizer.decode(released.ids)


def test_an_answer_is_taken_apart(files):
    target = glm4_voice.target(files, "Nine.", [5, 6, 7])
    text = files.tokenizer("Nine.", add_special_tokens=False)["input_ids"]
    assert glm4_voice.split(files, target.ids) == Answer(text=text, codes=[5, 6, 7], ended=True)
    assert not glm4_voice.split(files, target.ids[:-1]).ended
    assert target.ids[-1] == files.layout.named["<|user|>"]
    assert files.layout.stop == tuple(files.config["eos_token_id"])


def test_defaults_are_those_of_the_demo(files):
    wanted = Sampling(temperature=0.2, top_p=0.8, max_new_tokens=2000)
    assert glm4_voice.sampling(files) == wanted
    assert glm4_voice.codec(files) == "glm4_voice"


@pytest.mark.parametrize(
    ("messages", "audios", "wanted"),
    [
        ([{"role": "user", "content": "<|audio|>"}], [Audio(positions=(4,))], "audio 0 has no"),
        ([{"role": "user", "content": "a<|user|>"}], [], r"holds the token <\|user\|>"),
        ([{"role": "user", "content": "a<|audio|>"}], [], "1 tags"),
        (
            [
                {"role": "assistant", "content": "<|audio|><|audio|>"},
                {"role": "user", "content": "a"},
            ],
            [Audio(codes=[1])] * 2,
            "an assistant's turn has 2 audios",
        ),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(files, messages, audios, wanted):
    with pytest.raises(UserError, match=wanted):
        glm4_voice.prompt(files, messages, audios)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("tie_word_embeddings", True, "tie_word_embeddings is true, wanted false"),
        ("rmsnorm", False, "rmsnorm is False, wanted True"),
        ("add_bias_linear", True, "add_bias_linear is True, wanted False"),
        ("kv_channels", None, "kv_channels is missing"),
    ],
)
def test_what_glm_does_not_compute_is_refused(files, field, value, wanted):
    with pytest.raises(UserError, match=wanted):
        glm4_voice.build({**files.config, field: value}, torch.float32)


def test_rope_follows_its_ratio(files):
    plain = glm4_voice.build(files.config, torch.float32).model.rotary_emb.inv_freq
    wide = glm4_voice.build({**files.config, "rope_ratio": 16}, torch.float32)
    unsaid = glm4_voice.build({**files.config, "rope_ratio": None}, torch.float32)
    assert torch.equal(unsaid.model.rotary_emb.inv_freq, plain)
    exponents = torch.arange(0, 8, 2) / 8
    assert torch.equal(plain, 1 / 10000.0**exponents)
    torch.testing.assert_close(wide.model.rotary_emb.inv_freq, 1 / 160000.0**exponents)


def write_ranks(directory, tokens):
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (directory / "tokenizer.model").write_text("\n".join(lines))
    return directory / "tokenizer.model"


def test_a_tiktoken_file_gives_tiktokens_ids(tmp_path):
    """The lowest rank is merged first, and a whole piece is one token whatever its parts."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"bc", b"ab", b"abcd", b"xyz"]
    tokenizer = tiktoken_tokenizer(write_ranks(tmp_path, tokens), pattern=r"\S+|\s+")
    assert tokenizer("abc")["input_ids"] == [ord("a"), 256]
    assert tokenizer("abcd")["input_ids"] == [258]
    assert tokenizer("xyz xyzx")["input_ids"] == [259, 32, *b"xyzx"]
    assert tokenizer.decode(tokenizer("äbc\n")["input_ids"]) == "äbc\n"


@pytest.mark.parametrize("text", ["YQ== zero", "not base64! 0", "YQ=="])
def test_a_damaged_tiktoken_file_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.model").write_text(text)
    with pytest.raises(DamagedFileError, match=r"tokenizer\.model cannot be read"):
        tiktoken_tokenizer(tmp_path / "tokenizer.model", pattern=r"\S+")


def test_an_added_token_with_the_id_of_another_one_is_refused(tmp_path):
    write_ranks(tmp_path, [b"a", b"b"])
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"1": {"content": "<|x|>", "special": true}}}'
    )
    with pytest.raises(DamagedFileError, match=r"<\|x\|> has id 1, which is taken"):
        tiktoken_tokenizer(tmp_path / "tokenizer.model", pattern=r"\S+")
