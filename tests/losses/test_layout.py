"""``ModalityLayout``: every id has one class."""

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode

import wavalign_fast as wf

NAN = float("nan")


def layout(**changes) -> wf.ModalityLayout:
    settings = {"vocab_size": 12, "speech": ((7, 10),), "boundary": (3, 4), "eos": (5,)}
    return wf.ModalityLayout(**(settings | changes))


def test_every_id_has_one_class() -> None:
    ids = torch.arange(12).reshape(3, 4)
    classes = layout().classify(ids)
    assert classes.dtype == torch.uint8
    assert classes.flatten().tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0]
    other = layout(boundary_as="text", eos_as="speech", speech=((8, 9), (10, 12)))
    assert other.classify(ids).flatten().tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"speech": ((7, 13),)}, r"\(7, 13\): want 0 <= first < end <= 12"),
        ({"speech": ((1, 5), (4, 6))}, r"\(4, 6\) overlaps"),
        ({"eos": (12,)}, r"eos id 12 is outside \[0, 12\)"),
        ({"boundary_as": "audio"}, "boundary_as: got 'audio', want 'text' or 'speech'"),
        ({"vocab_size": 0}, "vocab_size: got 0"),
        ({"vocab_size": 12.0}, r"vocab_size: got 12\.0, want a whole number"),
        ({"vocab_size": NAN}, "vocab_size: got nan"),
        ({"speech": (7, 10)}, r"speech: got \(7, 10\), want ranges of ids"),
        ({"speech": ((7, NAN),)}, r"speech: got \(\(7, nan\),\), want ranges of ids"),
        ({"speech": ((7, 8, 9),)}, "speech: got .*want ranges of ids"),
        ({"eos": 5}, "eos: got 5, want a sequence of ids"),
        ({"eos": ("5",)}, "eos id: got '5', want a whole number"),
        ({"boundary": "<|audio|>"}, r"boundary: got '<\|audio\|>', want a sequence of ids"),
        ({"eos_as": None}, "eos_as: got None, want 'text' or 'speech'"),
    ],
)
def test_a_bad_layout_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(**changes)


def test_ids_outside_the_layout_are_refused() -> None:
    with pytest.raises(ValueError, match=r"id 12 is outside the layout \[0, 12\)"):
        layout().classify(torch.tensor([1, 12]))


class Tokenizer:
    def __init__(self, tokens: list[str]) -> None:
        self.vocab = {token: index for index, token in enumerate(tokens)}
        self.eos_token_id = 1

    def get_vocab(self) -> dict[str, int]:
        return self.vocab

    def __len__(self) -> int:
        return len(self.vocab)


SPECIALS = ["a", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>"]


def test_layout_from_a_tokenizer() -> None:
    tokenizer = Tokenizer([*SPECIALS, *(f"<|audio_{i}|>" for i in range(3))])
    made = wf.ModalityLayout.from_tokenizer(tokenizer, vocab_size=8, eos_as="speech")
    assert made.classify(torch.arange(8)).tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert wf.ModalityLayout.from_tokenizer(tokenizer).vocab_size == 7
    for boundary_as, eos_as in itertools.product(("text", "speech"), repeat=2):
        made = wf.ModalityLayout.from_tokenizer(tokenizer, boundary_as=boundary_as, eos_as=eos_as)
        classes = ["text", eos_as, *[boundary_as] * 2, *["speech"] * 3]
        assert made.classify(torch.arange(7)).tolist() == [int(c == "speech") for c in classes]
    for several in ([1, 0], (1, 0)):
        tokenizer.eos_token_id = several
        assert tuple(wf.ModalityLayout.from_tokenizer(tokenizer).eos) == (1, 0)
    tokenizer.eos_token_id = None
    assert wf.ModalityLayout.from_tokenizer(tokenizer).eos == ()


def test_a_table_made_while_tracing_is_not_kept() -> None:
    made = layout()
    with FakeTensorMode() as mode:
        assert made.classify(mode.from_tensor(torch.arange(12))).shape == (12,)
    assert made.classify(torch.arange(12)).sum() == 5


@pytest.mark.parametrize(
    "tokens, message",
    [
        (SPECIALS, r"no token '<\|audio_0\|>'"),
        ([*SPECIALS, "<|audio_0|>", "<|audio_2|>"], r"audio_2\|>' has id 5, want 6"),
        ([*SPECIALS, "<|audio_0|>", "word"], "'word' has id 5, want an id below 4"),
    ],
)
def test_a_tokenizer_without_contiguous_speech_is_refused(tokens, message) -> None:
    with pytest.raises(ValueError, match=message):
        wf.ModalityLayout.from_tokenizer(Tokenizer(tokens))
