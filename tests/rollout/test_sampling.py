"""Batched, cached sampling against one row at a time without a cache."""

import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_fast.rollout import sample_completions, sampling

VOCAB, EOS, PAD = 24, 1, 0
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [4, 4, 4, 4, 4, 4, 4]]


@pytest.fixture(scope="module")
def model():
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


def sample(model, prompts=PROMPTS, **options):
    defaults = {"max_new_tokens": 12, "eos_id": EOS, "pad_id": PAD}
    return sample_completions(model, prompts, **(defaults | options))


@torch.no_grad()
def decode_slowly(model, prompt, max_new_tokens, draws=None):
    """One row, the whole sequence again for every token; ``draws`` are its uniform numbers."""
    ids = list(prompt)
    for step in range(max_new_tokens):
        logits = model(torch.tensor([ids])).logits[:, -1]
        uniform = None if draws is None else draws[step]
        ids.append(sampling.choose_tokens(logits, 1.0, uniform).item())
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def test_greedy_equals_uncached_decode(model):
    rows = sample(model, temperature=0.0)
    assert rows == [decode_slowly(model, prompt, 12) for prompt in PROMPTS]
    assert len({len(row) for row in rows}) > 1, "no row ended early: the case tests nothing"


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("compact_share", [0.01, 2.0])
def test_sampling_equals_uncached_decode(model, group_size, compact_share, monkeypatch):
    monkeypatch.setattr(sampling, "COMPACT_SHARE", compact_share)
    generator = torch.Generator().manual_seed(7)
    rows = sample(model, group_size=group_size, generator=generator)

    total = len(PROMPTS) * group_size
    replay = torch.Generator().manual_seed(7)
    draws = [torch.rand(total, generator=replay, dtype=torch.float64) for _ in range(12)]
    for row, completion in enumerate(rows):
        own = [draw[row : row + 1] for draw in draws]
        assert completion == decode_slowly(model, PROMPTS[row // group_size], 12, own)


def test_sampled_frequencies_follow_the_softmax(model):
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    rows = sample(
        model,
        [PROMPTS[0]],
        group_size=draws,
        max_new_tokens=1,
        temperature=2.0,
        generator=generator,
    )
    counts = torch.bincount(torch.tensor(rows)[:, 0], minlength=VOCAB) / draws
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    wanted = torch.softmax(logits / 2.0, -1)
    error = (wanted * (1 - wanted) / draws).sqrt()
    assert ((counts - wanted).abs() <= 4.5 * error + 1 / draws).all()


def test_a_banned_id_is_never_chosen():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    uniform = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert sampling.choose_tokens(logits, 1.0, uniform).tolist() == [1, 3, 3]


def test_eos_ends_a_row_and_is_kept(model):
    rows = sample(model, group_size=16, generator=torch.Generator().manual_seed(1))
    ended = [row for row in rows if EOS in row]
    assert 0 < len(ended) < len(rows), "all or none ended: the case tests nothing"
    assert all(row.index(EOS) == len(row) - 1 for row in ended)
    assert all(len(row) == 12 for row in rows if EOS not in row)


def test_same_generator_state_same_rows(model):
    def rows(seed):
        return sample(model, group_size=4, generator=torch.Generator().manual_seed(seed))

    assert rows(3) == rows(3)
    assert rows(3) != rows(4)


def test_a_row_does_not_depend_on_its_neighbours(model):
    # Greedy decoding of shuffled prompts, with other left padding, gives every prompt its own row.
    order = random.Random(0).sample(range(len(PROMPTS)), len(PROMPTS))
    rows = sample(model, temperature=0.0)
    shuffled = sample(model, [PROMPTS[index] for index in order], temperature=0.0)
    assert shuffled == [rows[index] for index in order]


def test_training_mode_is_restored_and_no_gradient_is_kept(model):
    model.train()
    try:
        sample(model, max_new_tokens=2)
        assert model.training
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[3], []], {}, "prompt 1 is empty"),
        ([[3]], {"group_size": 0}, "group_size is 0"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[3]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[3]], {"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_wrong_arguments_name_the_value(model, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        sample(model, prompts, **options)


def test_no_prompts_no_rows(model):
    assert sample(model, []) == []
