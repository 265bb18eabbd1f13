"""Batched sampling with a cache against one row at a time without a cache."""

import math
import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_fast.errors import UserError
from wavalign_fast.rollout import sample_completions, sample_with_logps
from wavalign_fast.rollout.choice import choose_tokens
from wavalign_fast.rollout.lean_decode import LeanDecode
from wavalign_fast.rollout.plain_decode import PlainDecode

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


@pytest.fixture(params=["lean", "plain"], autouse=True)
def way(request, monkeypatch):
    """How tokens are decoded: by the C++ calls for this family, and by transformers' own code."""
    if request.param == "plain":
        monkeypatch.setattr(LeanDecode, "of", lambda *_: None)
    return request.param


def sample(model, prompts=PROMPTS, **options):
    defaults = {"max_new_tokens": 12, "eos_id": EOS, "pad_id": PAD}
    return sample_completions(model, prompts, **(defaults | options))


def drop_at(share: float, monkeypatch) -> None:
    """Drops ended rows from this share of them on."""
    for kind in (LeanDecode, PlainDecode):
        monkeypatch.setattr(kind, "drop_share", share)


@torch.no_grad()
def decode_slowly(model, prompt, max_new_tokens, draws=None):
    """Samples one row and recomputes the whole sequence for each token; ``draws`` are uniform."""
    ids = list(prompt)
    for step in range(max_new_tokens):
        logits = model(torch.tensor([ids])).logits[:, -1]
        uniform = None if draws is None else draws[step]
        ids.append(choose_tokens(logits, 1.0, uniform).item())
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def test_greedy_equals_uncached_decode(model):
    rows = sample(model, temperature=0.0)
    assert rows == [decode_slowly(model, prompt, 12) for prompt in PROMPTS]
    assert len({len(row) for row in rows}) > 1, "no row ended early: the case tests nothing"


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("drop_share", [0.01, 2.0])
def test_sampling_equals_uncached_decode(model, group_size, drop_share, monkeypatch):
    drop_at(drop_share, monkeypatch)
    generator = torch.Generator().manual_seed(7)
    rows = sample(model, group_size=group_size, generator=generator)

    total = len(PROMPTS) * group_size
    replay = torch.Generator().manual_seed(7)
    draws = [torch.rand(total, generator=replay, dtype=torch.float64) for _ in range(12)]
    for row, completion in enumerate(rows):
        own = [draw[row : row + 1] for draw in draws]
        assert completion == decode_slowly(model, PROMPTS[row // group_size], 12, own)


def test_a_row_takes_its_own_draws_whatever_is_sampled_beside_it(model):
    draws = torch.rand(len(PROMPTS) * 3, 12, generator=torch.Generator().manual_seed(7)).double()
    rows = sample(model, group_size=3, draws=draws)
    for row, completion in enumerate(rows):
        prompt = PROMPTS[row // 3]
        assert completion == decode_slowly(model, prompt, 12, draws[row, :, None])
        assert [completion] == sample(model, [prompt], draws=draws[row : row + 1])
    assert len({len(row) for row in rows}) > 1, "no row ended early: the case tests nothing"


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probs_are_those_of_the_sampler(model, temperature):
    make = torch.Generator().manual_seed(1)
    draws = torch.rand(len(PROMPTS) * 2, 12, generator=make).double() if temperature else None
    options = {"group_size": 2, "max_new_tokens": 12, "eos_id": EOS, "pad_id": PAD}
    options |= {"temperature": temperature, "draws": draws}
    sampled = sample_with_logps(model, PROMPTS, **options)
    assert sampled.ids == sample_completions(model, PROMPTS, **options)
    for row, (ids, logps) in enumerate(zip(sampled.ids, sampled.logps, strict=True)):
        assert logps.shape == (len(ids),) and logps.dtype == torch.float32
        prompt = PROMPTS[row // 2]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        if temperature == 0:
            assert logits.argmax(-1).tolist() == ids and not logps.any()
            continue
        wanted = torch.log_softmax(logits.double() / temperature, -1)
        torch.testing.assert_close(
            logps.double(), wanted[torch.arange(len(ids)), ids], atol=5e-5, rtol=0
        )


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


NAN, INF = math.nan, math.inf
ZEROS = torch.zeros(1, 12, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("value", "seen"), [(NAN, "1 NaN, 0 inf, 23"), (INF, "0 NaN, 1 inf, 23")])
def test_a_model_that_is_not_finite_is_named_not_sampled(model, value, seen, temperature):
    """Whatever the row and the token: here only what follows two fives."""
    head = model.get_output_embeddings()

    def spoil(module, args, output):
        if inputs[-1].shape[1] == 1:  # not the prompts, but the tokens after them
            output = output.clone()
            output[1, -1, 3] = value
        return output

    inputs = []
    hooks = [
        model.get_input_embeddings().register_forward_pre_hook(lambda _, a: inputs.append(a[0])),
        head.register_forward_hook(spoil),
    ]
    try:
        with pytest.raises(UserError, match=rf"completion 1 \(of prompt 0\), token 1: .*{seen}"):
            sample(model, group_size=2, temperature=temperature, eos_id=None)
    finally:
        for hook in hooks:
            hook.remove()


def test_what_a_row_computes_after_its_end_is_no_error(model, way, monkeypatch):
    drop_at(2.0, monkeypatch)  # ended rows stay in the batch
    wanted = sample(model, temperature=0.0)
    assert min(map(len, wanted)) < max(map(len, wanted))
    kind = LeanDecode if way == "lean" else PlainDecode
    logits_of = kind.logits
    ended = torch.zeros(len(PROMPTS), dtype=torch.bool)

    def spoilt(self, tokens):
        ended.logical_or_(tokens == EOS)
        logits = logits_of(self, tokens).clone()
        logits[ended] = NAN
        return logits

    monkeypatch.setattr(kind, "logits", spoilt)
    assert sample(model, temperature=0.0) == wanted
    assert ended.any()


def test_eos_ends_a_row_and_is_kept(model):
    rows = sample(model, group_size=16, generator=torch.Generator().manual_seed(1))
    ended = [row for row in rows if EOS in row]
    assert 0 < len(ended) < len(rows), "all or none ended: the case tests nothing"
    assert all(row.index(EOS) == len(row) - 1 for row in ended)
    assert all(len(row) == 12 for row in rows if EOS not in row)


def test_any_of_several_ends_ends_a_row_in_whatever_form_they_come(model):
    rows = sample(model, temperature=0.0, eos_id=None)
    assert all(len(row) == 12 for row in rows)
    ends = {rows[0][3], rows[1][5]}
    wanted = [
        row[: next((place for place, token in enumerate(row, 1) if token in ends), 12)]
        for row in rows
    ]
    first, second = sorted(ends)
    assert len(wanted[0]) <= 4 and len(wanted[1]) <= 6
    for form in (
        [second, first],
        (first, second),
        ends,
        frozenset(ends),
        range(first, second + 1, second - first),
        iter([first, second, second]),
        torch.tensor([first, second]),
        torch.tensor([first, second]).numpy(),
        [torch.tensor(first), torch.tensor(second).numpy()],
    ):
        assert sample(model, temperature=0.0, eos_id=form) == wanted, form
    one = sample(model, temperature=0.0, eos_id=first)
    for form in ([first], torch.tensor(first), torch.tensor([first]), torch.tensor(first).numpy()):
        assert sample(model, temperature=0.0, eos_id=form) == one, form
    assert sample(model, temperature=0.0, eos_id=-1) == rows


@pytest.mark.parametrize(
    ("eos_id", "message"),
    [
        (True, "eos_id: True .bool. given, wanted a whole number"),
        (1.0, "eos_id: 1.0 .float."),
        ("1", "eos_id is '1' .str."),
        ("</s>", "eos_id is '</s>'"),
        ({1: "end"}, "eos_id is .* .dict."),
        ([], "eos_id is empty, wanted ids, or None"),
        (torch.tensor([], dtype=torch.int64), "eos_id is empty"),
        ([1, True], "eos_id: True"),
        ([1, None], "eos_id: None"),
        ([[1, 2]], r"eos_id: \[1, 2\] .list."),
        (torch.tensor([[1]]), r"eos_id: \[1\]"),
        (torch.tensor([1.0]), "eos_id: 1.0 .float."),
        (torch.tensor([True]), "eos_id: True .bool."),
        (object(), "eos_id: <object"),
        ([1, -1], "eos_id is -1, wanted 0 or more"),
        (-2, "eos_id is -2, wanted 0 or more"),
        (VOCAB, f"eos_id is {VOCAB}, wanted 0 <= id < {VOCAB}"),
        ([1, 10**30], "wanted 0 <= id < "),
    ],
)
def test_ends_that_cannot_be_honoured_are_refused(model, eos_id, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sample(model, eos_id=eos_id)


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
        ([[3], 4], {}, r"prompt 1 is 4 \(int\), wanted a sequence of ids"),
        ([3, 4], {}, "prompt 0 is 3"),
        (["hello"], {}, r"prompt 0 is 'hello' \(str\)"),
        ([[3, 4.0]], {}, r"prompt 0: 4.0 \(float\) given"),
        ([[3, True]], {}, "prompt 0: True"),
        ([[3], [5, VOCAB]], {}, f"prompt 1 holds the id {VOCAB}, wanted 0 <= id < {VOCAB}"),
        ([[3, -100]], {}, "prompt 0 holds the id -100"),
        ([[3]], {"group_size": 0}, "group_size is 0"),
        ([[3]], {"group_size": 2.0}, "group_size: 2.0"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[3]], {"max_new_tokens": True}, "max_new_tokens: True"),
        ([[3]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[3]], {"temperature": NAN}, "temperature is nan"),
        ([[3]], {"temperature": INF}, "temperature is inf"),
        ([[3]], {"temperature": 1e-40}, "temperature is 1e-40, wanted 0 .greedy. or at least"),
        ([[3]], {"temperature": "1"}, "temperature is '1'"),
        ([[3]], {"temperature": 10**400}, r"temperature is 10+\.\.\.0+, wanted 0 .greedy. or more"),
        ([[3]], {"generator": 3}, r"generator is 3 \(int\), wanted a torch\.Generator"),
        ([[3]], {"draws": torch.zeros(1, 12)}, r"draws are torch.float32 \[1, 12\], wanted .*64"),
        ([[3]], {"draws": ZEROS[:, :3]}, r"draws are torch.float64 \[1, 3\], wanted .* \[1, 12\]"),
        ([[3]], {"draws": [0.5]}, r"draws are \[0.5\], wanted torch.float64"),
        ([[3]], {"draws": ZEROS + 1}, "outside of .0, 1."),
        ([[3]], {"draws": ZEROS * NAN}, "outside of .0, 1."),
        ([[3]], {"draws": ZEROS, "generator": torch.Generator()}, "a generator and draws"),
        ([[3]], {"draws": ZEROS, "temperature": 0.0}, "draws are given at temperature 0"),
        ([[3]], {"pad_id": None}, "pad_id: None"),
        ([[3]], {"pad_id": VOCAB}, f"pad_id is {VOCAB}"),
        ([[3]], {"pad_id": -1}, "pad_id is -1"),
    ],
)
def test_wrong_arguments_name_the_value(model, prompts, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sample(model, prompts, **options)


def test_prompts_may_be_tensors_or_arrays(model):
    wanted = sample(model, [[5, 6], [7, 8]], temperature=0.0)
    for form in (
        torch.tensor([[5, 6], [7, 8]]),
        torch.tensor([[5, 6], [7, 8]]).numpy(),
        [torch.tensor([5, 6]), (7, 8)],
    ):
        assert sample(model, form, temperature=0.0) == wanted


def test_no_prompts_no_rows(model):
    assert sample(model, []) == []
