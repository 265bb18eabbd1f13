"""Vectors in prompts are the model's inputs where their ids are, in training and in rollouts."""

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models import PackedRows, PromptEmbeddings, hidden_states, set_attention
from wavalign_fast.models import prompt_embeddings as module
from wavalign_fast.rollout import sample_with_logps, uniforms

from .tiny import VOCAB, gradients, rows_of, tiny_model

WIDTH, END = 32, 0


def clip(number: int, length: int):
    make = torch.Generator().manual_seed(number)
    return torch.randn(length, WIDTH, generator=make, dtype=torch.float64)


@pytest.fixture
def table():
    """Clips of 3 and 2 vectors; ``loads`` counts how often each is loaded."""
    table = PromptEmbeddings(VOCAB)
    table.loads = {0: 0, 1: 0}

    def loader(number, length):
        def load():
            table.loads[number] += 1
            return clip(number, length)

        return load

    assert table.ids("a", 3, loader(0, 3)) == range(VOCAB, VOCAB + 3)
    assert table.ids("b", 2, loader(1, 2)) == range(VOCAB + 3, VOCAB + 5)
    return table


@pytest.fixture
def prompts(table):
    """Both clips in one row, one of them twice, side by side, and a row without any."""
    a, b = list(table.ids("a", 3, None)), list(table.ids("b", 2, None))
    plain = [row.tolist() for row in rows_of(4, 2, 6)]
    return [plain[0] + a + b + a + plain[1], plain[2], [*b, 5]]


def expected_inputs(model, row):
    known = [*clip(0, 3), *clip(1, 2)]
    embedding = model.get_input_embeddings()
    return torch.stack(
        [known[i - VOCAB] if i >= VOCAB else embedding(torch.tensor(i)) for i in row]
    )[None]


def expected_hidden(model, rows):
    return torch.cat(
        [model.base_model(inputs_embeds=expected_inputs(model, row))[0][0] for row in rows]
    )


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_hidden_states_and_gradients_are_those_of_the_inputs(table, prompts, attention):
    model = tiny_model()
    wanted = expected_hidden(model, prompts)
    wanted.square().sum().backward()
    wanted_gradients = gradients(model)
    model.zero_grad()
    set_attention(model, attention)

    rows = [torch.tensor(row) for row in prompts]
    block = PackedRows.of(rows)
    if attention == "sdpa":
        block = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    found = hidden_states(model, [table.fill(block)])
    if attention == "sdpa":
        real = torch.cat([torch.arange(block.shape[1]) < len(row) for row in rows])
        found = found[real]

    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted_gradients[name], msg=name)


@pytest.mark.parametrize("group_size", [1, 3])
def test_rollouts_continue_from_the_vectors(table, prompts, group_size):
    model = tiny_model(torch.float32)
    draws = uniforms(
        1, 0, torch.arange(3 * group_size), torch.zeros(3 * group_size).long(), torch.arange(5)
    )
    sampled = sample_with_logps(
        model, prompts, group_size=group_size, max_new_tokens=5, eos_id=END, pad_id=1,
        draws=draws, prompt_embeddings=table,
    )  # fmt: skip

    for number, (ids, logps) in enumerate(zip(sampled.ids, sampled.logps, strict=True)):
        prompt = prompts[number // group_size]
        with torch.no_grad():
            hidden = expected_hidden(model.double(), [[*prompt, *ids]])
            logits = model.lm_head(hidden)[len(prompt) - 1 : -1]
        model.float()
        wanted = logits.log_softmax(1)[torch.arange(len(ids)), ids]
        torch.testing.assert_close(logps, wanted.float(), rtol=0, atol=1e-5)


def test_a_block_without_vectors_goes_as_it_is(table):
    block = torch.arange(VOCAB)[None]
    assert table.fill(block) is block


def test_a_clip_keeps_its_ids_and_is_loaded_once(table, prompts):
    assert table.ids("a", 3, None) == range(VOCAB, VOCAB + 3) and len(table) == 5
    for _ in range(2):
        table.fill(torch.tensor(prompts[:1]))
    assert table.loads == {0: 1, 1: 1}


def test_clips_that_memory_has_no_room_for_are_loaded_again(table, prompts, monkeypatch):
    monkeypatch.setattr(module, "KEPT_BYTES", 3 * WIDTH * 8)
    for _ in range(2):
        (filled,) = [table.fill(torch.tensor(prompts[:1]))]
        wanted = torch.cat([clip(0, 3), clip(1, 2), clip(0, 3)])
        assert torch.equal(filled.vectors, wanted)
    assert min(table.loads.values()) > 1


@pytest.mark.parametrize(
    ("length", "vectors", "message"),
    [
        (4, torch.zeros(3, WIDTH), r"shape \[3, 32\] was loaded, wanted \[4, H\]"),
        (2, torch.zeros(2, 7), "7 numbers each, wanted 32"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(length, vectors, message):
    table = PromptEmbeddings(VOCAB)
    ids = torch.tensor([list(table.ids("c", length, lambda: vectors))])
    with pytest.raises(UserError, match=message):
        hidden_states(tiny_model(), [table.fill(ids)])


def test_an_id_behind_the_last_vector_is_refused(table):
    settings = {"max_new_tokens": 1, "eos_id": END, "pad_id": 1, "prompt_embeddings": table}
    with pytest.raises(ValueError, match=f"holds the id {VOCAB + 5}, wanted 0 <= id < {VOCAB + 5}"):
        sample_with_logps(tiny_model(), [[VOCAB + 5]], **settings)
