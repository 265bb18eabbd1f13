"""Padded rows: where prompts begin, and which argument is wrong."""

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, H, V

NAN = float("nan")
PAD = 0
PROMPTS = ([5, 6, 7], [8])
COMPLETIONS = ([1, 2, 3], [4, 2], [3, 4, 3], [])
SHOWN = ([9, 9], [1, 2])
REWARDS = torch.tensor([[1.0, 2.0], [4.0, NAN]])


def padded(left: int | None, *, right: int = 1) -> dict[str, torch.Tensor]:
    """The arguments of ``from_padded``: prompts end at column ``left``, or rows begin at 0."""
    length = (left or 3) + 3 + right
    ids = torch.full((5, length), PAD)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    mask = torch.zeros(4, 3, dtype=torch.long)

    def put(row: int, tokens: list[int], start: int) -> None:
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        attention[row, start : start + len(tokens)] = 1

    for row, completion in enumerate(COMPLETIONS):
        prompt = PROMPTS[row // 2]
        put(row, prompt + completion, 0 if left is None else left - len(prompt))
        mask[row, : len(completion)] = 1
    put(4, SHOWN[0] + SHOWN[1], 0)
    labels[4, 2:4] = torch.tensor(SHOWN[1])
    return {
        "input_ids": ids, "completion_mask": mask, "labels": labels, "rewards": REWARDS,
        "prompt_lengths": torch.tensor([3, 1]), "attention_mask": attention,
    }  # fmt: skip


def tokens_of(batch: wf.HybridBatch) -> dict[tuple[str, int], list[int]]:
    """The ids that each rollout and demonstration has a loss on, in order."""
    found: dict[tuple[str, int], list[int]] = {}
    for name in ("policy", "anchor"):
        for row, target in zip(getattr(batch, f"{name}_row"), batch.targets, strict=True):
            if row >= 0:
                found.setdefault((name, int(row)), []).append(int(target))
    return found


WANTED = {("policy", row): ids for row, ids in enumerate(COMPLETIONS) if ids} | {
    ("anchor", 0): SHOWN[1]
}


@pytest.mark.parametrize("left", [None, 3, 5])
@pytest.mark.parametrize("mask_rows", [4, 5])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_an_attention_mask_says_where_prompts_begin(left, mask_rows, mask_dtype) -> None:
    given = padded(left)
    given["attention_mask"] = given["attention_mask"][:mask_rows].to(mask_dtype)
    given["completion_mask"] = given["completion_mask"].to(mask_dtype)
    batch = wf.HybridBatch.from_padded(**given)
    assert tokens_of(batch) == WANTED
    # Position t predicts id t + 1.
    at = torch.nonzero(batch.policy_row >= 0).flatten()
    assert torch.equal(batch.targets[at], given["input_ids"].flatten()[at + 1])


@pytest.mark.parametrize(
    "lengths", [[3, 1], (3, 1), torch.tensor([3, 1], dtype=torch.int32)], ids=str
)
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32, torch.uint8])
def test_without_an_attention_mask_rows_are_right_padded(lengths, ids_dtype) -> None:
    given = padded(None)
    del given["attention_mask"]
    given |= {"input_ids": given["input_ids"].to(ids_dtype), "prompt_lengths": lengths}
    batch = wf.HybridBatch.from_padded(**given)
    assert tokens_of(batch) == WANTED and batch.targets.dtype == torch.int64


@pytest.mark.parametrize("left", [3, 4, 6])
@pytest.mark.parametrize("right", [0, 2])
@pytest.mark.parametrize("rows", [slice(0, 4), slice(2, 4)], ids=["both prompts", "one prompt"])
def test_left_padded_prompts_without_a_mask_are_recognised(left, right, rows) -> None:
    given = padded(left, right=right)
    first = rows.start
    prompts = slice(first // 2, None)
    with pytest.raises(
        ValueError, match=r"input_ids: row \d begins with \d × id 0, as if its prompt"
    ):
        wf.HybridBatch.from_padded(
            given["input_ids"][first:], given["completion_mask"][rows], given["labels"][first:],
            given["rewards"][prompts], given["prompt_lengths"][prompts],
        )  # fmt: skip


def moved(given: dict[str, torch.Tensor], columns: list[int]) -> dict[str, torch.Tensor]:
    """``given`` with each row and its labels so far to the right, without its mask."""
    for name in ("input_ids", "labels"):
        rows = [row.roll(by) for row, by in zip(given[name], columns, strict=True)]
        given[name] = torch.stack(rows)
    del given["attention_mask"]
    return given


@pytest.mark.parametrize("right", [1, 4])
def test_rows_that_end_together_without_a_mask_are_recognised(right) -> None:
    """As ``padding_side="left"`` pads a text of prompt and completion."""
    given = padded(None, right=right)
    given = moved(given, (given["attention_mask"] == 0).sum(1).tolist())
    with pytest.raises(ValueError, match=r"input_ids: row \d begins with \d × id 0, as if its p"):
        wf.HybridBatch.from_padded(**given)


@pytest.mark.parametrize("left", [4, 6])
@pytest.mark.parametrize("padding", [5, 8])
def test_a_padding_that_begins_a_prompt_as_well_is_recognised(left, padding) -> None:
    given = padded(left)
    given["input_ids"][given.pop("attention_mask") == 0] = padding
    with pytest.raises(ValueError, match=rf"row \d begins with \d+ × id {padding}, as if its p"):
        wf.HybridBatch.from_padded(**given)


def test_left_padded_rows_with_a_mask_of_ones_are_recognised() -> None:
    given = padded(5)
    given["attention_mask"] = torch.ones_like(given["attention_mask"])
    with pytest.raises(ValueError, match=r"input_ids: row \d begins with \d × id 0, as if"):
        wf.HybridBatch.from_padded(**given)


def test_a_mask_decides_where_the_ids_are_ambiguous() -> None:
    """The padding begins every text, and the end of an answer, 2, has no loss."""
    ids = torch.tensor([[0, 7, 3, 5, 4, 2, 0], [0, 7, 3, 6, 2, 0, 0], [9, 9, 9, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    labels = torch.full_like(ids, -100)
    given = ids, mask, labels, torch.zeros(1, 2), [2]
    with pytest.raises(ValueError, match=r"row \d begins with 1 × id 0, as if"):
        wf.HybridBatch.from_padded(*given)
    attention = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0]])
    batch = wf.HybridBatch.from_padded(*given, attention_mask=attention)
    assert tokens_of(batch) == {("policy", 0): [3, 5, 4], ("policy", 1): [3, 6]}


def test_padding_between_prompts_and_completions_counts_as_prompt() -> None:
    given = padded(None, right=3)
    ids = given["input_ids"]
    for row in (2, 3):  # of the prompt with one token
        ids[row, 1:] = ids[row, 1:].roll(2)
    del given["attention_mask"]
    with pytest.raises(ValueError, match=r"prompt_lengths: got 1 for row \d .* 2 × id 0, as if"):
        wf.HybridBatch.from_padded(**given)
    assert tokens_of(wf.HybridBatch.from_padded(**(given | {"prompt_lengths": [3, 3]}))) == WANTED


def test_completions_of_no_columns_have_no_tokens() -> None:
    given = padded(None)
    given["completion_mask"] = given["completion_mask"][:, :0]
    for mask in (given["attention_mask"], None):
        batch = wf.HybridBatch.from_padded(**(given | {"attention_mask": mask}))
        assert set(tokens_of(batch)) == {("anchor", 0)}


def test_right_padded_rows_that_begin_with_the_padding_are_not_taken_for_left_padded() -> None:
    """Models without a padding id of their own use the one that begins or ends every text."""
    given = padded(None)
    del given["attention_mask"]
    begun = torch.nn.functional.pad(given["input_ids"], (1, 0), value=PAD)
    given |= {
        "input_ids": begun,
        "labels": torch.nn.functional.pad(given["labels"], (1, 0), value=-100),
        "prompt_lengths": given["prompt_lengths"] + 1,
    }
    assert tokens_of(wf.HybridBatch.from_padded(**given)) == WANTED
    # Tokens sampled after the end of an answer may follow.
    begun[:4, -2:] = torch.tensor([[3, 4], [4, 3], [3, 3], [4, 4]])
    assert tokens_of(wf.HybridBatch.from_padded(**given)) == WANTED


def test_log_probs_of_both_policies_are_placed() -> None:
    given = padded(5)
    shape = (4, given["input_ids"].shape[1] - 1)
    tables = {name: torch.randn(shape) for name in ("ref_logp", "old_logp")}
    batch = wf.HybridBatch.from_padded(**given, **tables)
    for name, table in tables.items():
        placed = getattr(batch, name).reshape(5, -1)
        assert torch.equal(placed[:4, :-1], table)
        assert not placed[4].any() and not placed[:, -1].any()
    assert not torch.equal(batch.ref_logp, batch.old_logp)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_ids": [[1, 2]]}, r"input_ids: got a list, want a torch\.Tensor"),
        ({"input_ids": torch.zeros(7).long()}, r"input_ids: got shape \(7,\), want \[R, L\]"),
        ({"input_ids": torch.zeros(5, 7)}, "input_ids: got torch.float32, want an integer dtype"),
        ({"labels": torch.zeros(5, 7)}, "labels: got torch.float32, want an integer dtype"),
        ({"labels": torch.zeros(5, 6).long()}, r"labels: got \(5, 6\), want \(5, 7\)"),
        ({"labels": torch.zeros(5, 7).long().to("meta")}, "labels: got a tensor on meta, want cpu"),
        ({"completion_mask": torch.ones(4).long()}, r"completion_mask: got shape \(4,\), want \["),
        ({"completion_mask": torch.ones(3, 3)}, r"3 rows, want B·G = 4 of rewards \(2, 2\)"),
        ({"completion_mask": 2 * torch.ones(4, 3)}, r"completion_mask\[0, 0\]: got 2.0, want 0 or"),
        ({"completion_mask": torch.full((4, 3), NAN)}, r"completion_mask\[0, 0\]: got nan"),
        ({"completion_mask": torch.ones(4, 6)}, r"completion_mask\[0, 4\] is set"),
        ({"rewards": REWARDS.flatten()}, r"rewards: got shape \(4,\), want \[B, G\]"),
        ({"rewards": [1.0, 2.0, 4.0, None]}, r"rewards: got shape \(4,\), want \[B, G\].*reshape"),
        ({"rewards": torch.ones(2, 2).long()}, "rewards: got torch.int64 .*want floats"),
        ({"rewards": "12"}, "rewards: got a str"),
        ({"rewards": [[1.0, 2.0], [3.0]]}, "rewards: got a list .*want floats"),
        ({"rewards": [[1.0, 2.0], [3.0, float("inf")]]}, r"rewards\[1, 1\]: got inf"),
        ({"prompt_lengths": [3, 3, 1, 1]}, r"prompt_lengths: got \(4,\), want \[2\]"),
        ({"prompt_lengths": torch.ones(2)}, "prompt_lengths: got torch.float32, want an integer"),
        ({"prompt_lengths": [3.0, 1.0]}, r"prompt_lengths: got \[3.0, 1.0\], want whole numbers"),
        ({"prompt_lengths": 3}, "prompt_lengths: got 3, want whole numbers"),
        ({"prompt_lengths": [0, 1]}, r"completion_mask\[0, 0\] is set, but prompt end 0"),
        ({"ref_logp": torch.zeros(4, 3)}, r"ref_logp: got shape \(4, 3\), want .* = \(4, 6\)"),
        ({"ref_logp": torch.zeros(5, 6)}, r"ref_logp: got shape \(5, 6\), want .* = \(4, 6\)"),
        ({"old_logp": torch.zeros(24)}, r"old_logp: got shape \(24,\), want .* = \(4, 6\)"),
        ({"old_logp": [[0.0]]}, r"old_logp: got a list, want a torch\.Tensor"),
        (
            {"attention_mask": torch.ones(4, 3)},
            r"attention_mask: got shape \(4, 3\), want \(5, 7\)",
        ),
        ({"attention_mask": [[1]]}, "attention_mask: got a list"),
        # A mask to add to attention scores: its 0 means the opposite.
        (
            {"attention_mask": torch.where(torch.arange(7) < 6, 0.0, -1e9).expand(5, 7)},
            r"attention_mask\[0, 6\]: got -1000000000\.0, want 0 or 1",
        ),
        ({"attention_mask": torch.full((5, 7), NAN)}, r"attention_mask\[0, 0\]: got nan"),
        (
            {"attention_mask": torch.arange(7).expand(5, 7) > 5},
            r"prompt end 6 \(columns that attention_mask leaves out\) \+ 3 \+ 0 is outside",
        ),
        ({"rewards": None}, "rewards and advantages: got neither, want one of them"),
        ({"rewards": [[10**400, 1.0], [1.0, 1.0]]}, "rewards: got a list .*too large"),
        ({"prompt_lengths": [-1, 1]}, r"prompt_lengths\[0\]: got -1, want 0 <= length <= 7"),
        ({"prompt_lengths": [3, 8]}, r"prompt_lengths\[1\]: got 8, want 0 <= length <= 7"),
        ({"prompt_lengths": [True, 3]}, r"prompt_lengths: got \[True, 3\], want whole numbers"),
        ({"prompt_lengths": [3, 2**70]}, r"prompt_lengths: got \[3, \d+\], want whole numbers"),
        (
            {"prompt_lengths": torch.ones(2).long().to("meta")},
            "prompt_lengths: got a tensor on meta, want cpu",
        ),
        (
            {"attention_mask": torch.tensor([1, 1, 1, 0, 0, 0, 0]).expand(5, 7)},
            r"completion_mask\[0, 0\] is set, but attention_mask\[0, 3\] is 0",
        ),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_the_argument_that_is_wrong_is_named(change: dict, message: str) -> None:
    given = padded(None)
    wf.HybridBatch.from_padded(**given)
    with pytest.raises(ValueError, match=message):
        wf.HybridBatch.from_padded(**(given | change))


@pytest.mark.parametrize("given", [
    [[1.0, 2.0], [4.0, None]], ((1, 2), (4, NAN)), REWARDS.numpy(), list(REWARDS),
    [[torch.tensor(1.0), 2], [4.0, None]],
], ids=lambda x: type(x).__name__)  # fmt: skip
def test_rewards_may_be_numbers_of_any_kind(given) -> None:
    row = torch.zeros(2, dtype=torch.long)
    batch = wf.HybridBatch(row, row, row - 1, given)
    assert batch.rewards.dtype == torch.float32
    assert torch.equal(batch.rewards.nan_to_num(-9), REWARDS.nan_to_num(-9))
    assert torch.equal(wf.group_advantages(given), wf.group_advantages(REWARDS))
    assert torch.equal(wf.MixingGate()(given), wf.MixingGate()(REWARDS))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": [0, 0]}, r"targets: got a list, want a torch\.Tensor"),
        (
            {"targets": torch.zeros(2, dtype=torch.int32)},
            "targets: got torch.int32, want torch.int",
        ),
        ({"anchor_row": torch.zeros(2)}, "anchor_row: got torch.float32, want torch.int64"),
        ({"policy_row": torch.zeros(2).long().to("meta")}, "policy_row: got a tensor on meta"),
        ({"ref_logp": [0.0, 0.0]}, "ref_logp: got a list"),
        ({"old_logp": torch.zeros(2).long()}, "old_logp: got torch.int64, want a floating dtype"),
        ({"rewards": torch.ones(4)}, r"rewards: got shape \(4,\), want \[B, G\]"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_a_flat_table_that_is_wrong_is_named(change: dict, message: str) -> None:
    row = torch.zeros(2, dtype=torch.long)
    good = {"targets": row, "policy_row": row, "anchor_row": row - 1, "rewards": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=message):
        wf.HybridBatch(**(good | change))


def test_idle_options_are_warned_of_once(recwarn) -> None:
    from wavalign_fast.ops import notices

    notices._given.clear()
    row = torch.tensor([0, 1])

    def step(rewards: torch.Tensor, old: torch.Tensor | None, clip: float | None) -> None:
        batch = wf.HybridBatch(row, row, torch.full_like(row, -1), rewards, old_logp=old)
        wf.HybridObjective(LAYOUT, clip=clip)(torch.randn(2, H), torch.randn(V, H), batch)

    pair, alone = torch.tensor([[1.0, 5.0]]), torch.tensor([[1.0], [5.0]])
    step(pair, None, None)
    step(pair, torch.zeros(2), 0.2)
    assert not recwarn.list
    for _ in range(2):
        step(pair, None, 0.2)
    assert "clip = 0.2 without batch.old_logp" in str(recwarn.pop(UserWarning).message)
    for _ in range(2):
        step(alone, None, None)
    assert "in groups of 1 every advantage is 0" in str(recwarn.pop(UserWarning).message)
    assert not recwarn.list
