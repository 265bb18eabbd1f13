"""Layout, advantages, gate and batch: the small parts of the objective."""

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


def test_advantages_are_standard_scores_within_the_group() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, NAN, 1.0, NAN]])
    got = wf.group_advantages(rewards)
    first = rewards[0]
    want = (first - first.mean()) / (first.std(unbiased=False) + 1e-4)
    torch.testing.assert_close(got[0], want)
    torch.testing.assert_close(got[1], torch.tensor([2 / 2.0001, 0.0, -2 / 2.0001, 0.0]))
    sample = wf.group_advantages(rewards, std="sample")
    torch.testing.assert_close(sample[0], (first - first.mean()) / (first.std() + 1e-4))


@pytest.mark.parametrize("std", ["population", "sample"])
@pytest.mark.parametrize("row", [[0.1, 0.1, 0.1], [NAN, 2.0, NAN], [NAN, NAN, NAN], [4.0]], ids=str)
def test_an_uninformative_group_has_no_advantage(row: list[float], std: str) -> None:
    assert torch.equal(wf.group_advantages(torch.tensor([row]), std=std), torch.zeros(1, len(row)))


def test_gate_values_of_the_paper() -> None:
    groups = [[4, 3, 5, 2], [1, 3, 4, 5], [2, 3, 3, 4], [3, 3, 4, 4], [1, 1, 5, 5], [2, 2, 2, 2]]
    wants = [0.250, 0.4375, 0.099, 0.050, 0.80, 0.0]
    for group, want in zip(groups, wants, strict=True):
        assert wf.MixingGate()(torch.tensor([group], dtype=torch.float32)).item() == pytest.approx(
            want, abs=1e-3
        )


def test_gate_smooths_and_its_state_survives() -> None:
    gate = wf.MixingGate()
    assert gate.value is None
    assert gate.state_dict() == {"value": torch.tensor(-1.0)}
    first = gate(torch.tensor([[1.0, 1.0, 5.0, 5.0]]))
    second = gate(torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 5.0, 5.0]]))
    assert second.item() == pytest.approx(0.9 * first.item() + 0.1 * 0.4, abs=1e-4)
    assert second.shape == () and second.dtype == torch.float32
    resumed = wf.MixingGate()
    resumed.load_state_dict(gate.state_dict())
    rewards = torch.tensor([[1.0, 4.0]])
    assert torch.equal(resumed(rewards), gate(rewards))
    initial = wf.MixingGate(initial=0.55)
    assert initial.value.item() == pytest.approx(0.55)
    initial.load_state_dict(wf.MixingGate().state_dict())
    assert initial.value is None


def test_gate_leaves_missing_rewards_out() -> None:
    with_gaps = torch.tensor([[1.0, NAN, 5.0, NAN], [NAN, NAN, NAN, NAN]])
    assert torch.equal(wf.MixingGate()(with_gaps), wf.MixingGate()(torch.tensor([[1.0, 5.0]])))
    gate = wf.MixingGate(initial=0.3)
    assert gate(torch.full((2, 4), NAN)).item() == pytest.approx(0.3)
    assert gate(torch.zeros(0, 4)).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lambda_max": 1.5}, "lambda_max: got 1.5"),
        ({"ema": -0.1}, "ema: got -0.1"),
        ({"variance_scale": 0.0}, "variance_scale: got 0.0"),
        ({"initial": 0.9}, "initial: got 0.9"),
    ],
)
def test_a_bad_gate_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wf.MixingGate(**settings)


@pytest.mark.parametrize("eps", [NAN, float("inf"), -1e-4, "1e-4", None])
def test_an_eps_that_is_not_a_finite_number_is_refused(eps) -> None:
    with pytest.raises(ValueError, match=r"eps: got .*, want >= 0 and finite"):
        wf.group_advantages(torch.ones(1, 2), eps=eps)


def test_from_padded_places_every_token() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 2, 5, 0, 0], [6, 7, 8, 9, 0]])
    labels = torch.full_like(ids, -100)
    labels[2, 2:4] = ids[2, 2:4]
    batch = wf.HybridBatch.from_padded(
        ids, torch.tensor([[1, 1, 0], [1, 0, 0]]), labels, torch.zeros(1, 2), torch.tensor([2]),
        torch.arange(8.0).reshape(2, 4),
    )  # fmt: skip
    assert batch.policy_row.reshape(3, 5).tolist() == [
        [-1, 0, 0, -1, -1], [-1, 1, -1, -1, -1], [-1] * 5,
    ]  # fmt: skip
    assert batch.anchor_row.reshape(3, 5)[2].tolist() == [-1, 0, 0, -1, -1]
    assert batch.targets.reshape(3, 5)[0, 1:3].tolist() == [3, 4]
    assert batch.targets.reshape(3, 5)[2, 1:3].tolist() == [8, 9]
    assert batch.ref_logp.reshape(3, 5)[1, :4].tolist() == [4.0, 5.0, 6.0, 7.0]


def test_a_batch_that_does_not_fit_is_refused() -> None:
    ids = torch.zeros(3, 4, dtype=torch.long)
    good = [ids, torch.ones(2, 2), ids, torch.zeros(1, 2), torch.tensor([2])]
    wf.HybridBatch.from_padded(*good)
    for position, bad, message in (
        (1, torch.ones(3, 2), "3 rows, want B·G = 2"),
        (1, torch.ones(2, 3), r"completion_mask\[0, 2\] is set"),
        (2, ids[:, :2], r"labels: got \(3, 2\), want \(3, 4\)"),
        (4, torch.tensor([2, 2]), r"prompt_lengths: got \(2,\), want \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            wf.HybridBatch.from_padded(*good[:position], bad, *good[position + 1 :])
    row = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"policy_row: got 2, want -1 or a row in \[0, B·G = 2\)"):
        wf.HybridBatch(row, row + 2, row - 1, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="anchor_row: got -2, want -1 or a row"):
        wf.HybridBatch(row, row, row - 2, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"ref_logp: got shape \(3,\), want \(4,\)"):
        wf.HybridBatch(row, row, row - 1, torch.zeros(1, 2), torch.zeros(3))


def test_a_demonstration_without_a_position_leaves_a_gap() -> None:
    row = torch.zeros(1, dtype=torch.long)
    batch = wf.HybridBatch(row, row - 1, row + 7, torch.zeros(0, 2))
    out = wf.HybridObjective(layout(), gate=0.0)(torch.zeros(1, 4), torch.zeros(12, 4), batch)
    torch.testing.assert_close(out.anchor_loss, torch.tensor(12.0).log())


def test_rounding_of_a_mean_gives_no_advantage() -> None:
    row = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert row.sum() / 3 != row[0, 0]
    assert torch.equal(wf.group_advantages(row), torch.zeros_like(row))
