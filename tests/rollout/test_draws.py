"""Random numbers by counter: published vectors, layouts, and their distribution."""

import pytest
import torch

from wavalign_fast.rollout.draws import WORD, philox, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((WORD,) * 4, (WORD, WORD), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_published_vectors(counter, key, wanted):
    """From `kat_vectors` of Random123, philox4x32 with 10 rounds."""
    words = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == wanted


def test_a_number_has_the_same_bits_in_any_table():
    index, tokens = torch.arange(24), torch.arange(100)
    whole = uniforms(1, 2, index // 4, index % 4, tokens)
    for rows in (index[5:6], index[::3], index.flip(0), index[:0]):
        assert torch.equal(uniforms(1, 2, rows // 4, rows % 4, tokens), whole[rows])
        one = uniforms(1, 2, rows // 4, rows % 4, tokens[40:41])
        assert torch.equal(one, whole[rows, 40:41])


def test_the_words_are_used_in_the_documented_order():
    """A checkpoint resumed with another release must draw the same numbers."""
    seed, step, prompt, rollout, token = 0x1234_5678_9ABC_DEF0, 3, 5, 7, 11
    counter = tuple(torch.tensor([word]) for word in (token, rollout, prompt, step))
    high, low, *_ = (int(word) for word in philox(counter, (0x9ABC_DEF0, 0x1234_5678)))
    found = uniforms(seed, step, torch.tensor([5]), torch.tensor([7]), torch.tensor([11]))
    assert float(found) == ((high >> 5) * 2**26 + (low >> 6)) / 2**53
    assert 0 <= float(found) < 1 and found.dtype == torch.float64


def test_numbers_are_uniform_and_neighbours_are_not_correlated():
    index = torch.arange(256)

    def table(seed, step):
        return uniforms(seed, step, index // 8, index % 8, index) - 0.5

    draws = table(7, 3)
    others = {
        "next token": draws.roll(1, 1),
        "next rollout": draws.roll(1, 0),
        "next prompt": draws.roll(8, 0),
        "next step": table(7, 4),
        "next seed": table(8, 3),
        "seed beyond 32 bits": table(7 + 2**32, 3),
    }
    count = draws.numel()
    assert abs(float(draws.mean())) < 4.5 / (12 * count) ** 0.5
    for name, other in others.items():  # a product's standard deviation is 1/12
        assert abs(float((draws * other).mean())) < 4.5 / 12 / count**0.5, name
    tenths = torch.bincount(((draws + 0.5) * 10).long().flatten(), minlength=10)
    assert (tenths - count / 10).abs().max() < 4.5 * (count * 0.09) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, [0], [0], [0]), "step is -1"),
        ((2**32, [0], [0], [0]), "step is 4294967296"),
        ((0, [-1], [0], [0]), "prompt has indices from -1 to -1"),
        ((0, [0], [2**32], [0]), "rollout has indices from 4294967296"),
        ((0, [0], [0], [0, 2**32]), "tokens has indices from 0 to 4294967296"),
        ((0, [0], [0, 1], [0]), r"shapes \[\[1\], \[2\], \[1\]\], wanted \[N\], \[N\] and \[T\]"),
    ],
)
def test_indices_out_of_range_are_refused(arguments, message):
    step, *indices = arguments
    with pytest.raises(ValueError, match=message):
        uniforms(0, step, *map(torch.tensor, indices))
