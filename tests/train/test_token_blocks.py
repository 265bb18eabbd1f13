"""The flat tables against the released code's padded layout, and ids outside the layout."""

import pytest
import torch

from wavalign_fast.data.records import Completion, Demonstration, Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import HybridBatch
from wavalign_fast.train.token_blocks import LossIds, build_blocks

PROMPTS = [(2, 3), (2, 3, 4, 5)]
SAMPLED = [(7, 8, 1), (9,), (10, 11, 12, 13), (14, 1)]
SHOWN = [((2, 3, 4), (20, 21, 1)), ((5,), (22, 1))]


def loss_ids(vocab_size=24, policy=None):
    """All ids carry loss, or in completions only those in ``policy``."""
    everything = torch.ones(vocab_size, dtype=torch.bool)
    some = torch.tensor([policy is None or token in policy for token in range(vocab_size)])
    return LossIds(policy=some, anchor=everything)


def records():
    examples = [Example(id="", prompt="", prompt_ids=ids, reference="") for ids in PROMPTS]
    completions = [
        Completion(example=examples[row // 2], ids=ids, ended=ids[-1] == 1)
        for row, ids in enumerate(SAMPLED)
    ]
    shown = [Demonstration(prompt_ids=p, answer_ids=a) for p, a in SHOWN]
    return completions, shown


def entries(targets, policy_row, anchor_row, previous):
    """Returns the content of the tables as (kind, row, previous id, target), in sorted order."""
    found = []
    for target, policy, anchor, seen in zip(
        targets.tolist(), policy_row.tolist(), anchor_row.tolist(), previous, strict=True
    ):
        if policy >= 0:
            found.append(("policy", policy, seen, target))
        if anchor >= 0:
            found.append(("anchor", anchor, seen, target))
    return sorted(found)


@pytest.mark.parametrize("block_tokens", [1, 12, 10_000])
def test_tables_agree_with_the_padded_layout(block_tokens):
    completions, shown = records()
    tokens = build_blocks(
        completions, shown, pad_id=0, loss_ids=loss_ids(), block_tokens=block_tokens
    )
    previous = torch.cat([block.flatten() for block in tokens.blocks]).tolist()

    rows = [[*PROMPTS[row // 2], *ids] for row, ids in enumerate(SAMPLED)]
    rows += [[*prompt, *answer] for prompt, answer in SHOWN]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(SHOWN, start=4):
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    mask = torch.tensor([[1] * len(done) + [0] * (4 - len(done)) for done in SAMPLED])
    padded = HybridBatch.from_padded(
        ids, mask, labels, torch.zeros(2, 2), torch.tensor([len(p) for p in PROMPTS])
    )
    assert entries(tokens.targets, tokens.policy_row, tokens.anchor_row, previous) == entries(
        padded.targets, padded.policy_row, padded.anchor_row, ids.flatten().tolist()
    )
    assert tokens.rollout_positions == sum(
        b.numel() for b in tokens.blocks[: tokens.rollout_blocks]
    )
    assert (tokens.policy_row[tokens.rollout_positions :] == -1).all()


def test_skipped_completions_keep_the_indices_of_the_others():
    completions, shown = records()
    tokens = build_blocks(
        completions, shown, pad_id=0, loss_ids=loss_ids(), block_tokens=12, skipped={0, 2}
    )
    assert set(tokens.policy_row.tolist()) == {-1, 1, 3}


def test_similar_lengths_share_a_block():
    completions, _ = records()
    tokens = build_blocks(completions, [], pad_id=0, loss_ids=loss_ids(), block_tokens=10)
    assert [tuple(block.shape) for block in tokens.blocks] == [(2, 7), (2, 4)]


def test_a_row_ends_with_the_last_id_that_carries_loss():
    completions, _ = records()
    tokens = build_blocks(
        completions, [], pad_id=0, loss_ids=loss_ids(policy={7, 12, 14}), block_tokens=10_000
    )
    (block,) = tokens.blocks
    # Completions 0, 2 and 3 hold an id with loss. The ids after it and all of 1 are left out.
    assert block.tolist() == [[2, 3, 4, 5, 10, 11], [2, 3, 4, 5, 14, 0], [2, 3, 7, 0, 0, 0]]
    assert tokens.targets[tokens.policy_row >= 0].tolist() == [10, 11, 12, 14, 7]


def test_nothing_gives_empty_tables():
    tokens = build_blocks([], [], pad_id=0, loss_ids=loss_ids(), block_tokens=8)
    assert tokens.blocks == [] and tokens.targets.shape == (0,)


def test_an_id_outside_the_layout_is_named():
    completions, shown = records()
    with pytest.raises(
        UserError, match="demonstration 0: id 21 at position 4, wanted 0 <= id < 21"
    ):
        build_blocks(completions, shown, pad_id=0, loss_ids=loss_ids(21), block_tokens=8)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="demonstration 0: empty prompt"):
        build_blocks(
            [],
            [Demonstration(prompt_ids=(), answer_ids=(1,))],
            pad_id=0,
            loss_ids=loss_ids(9),
            block_tokens=8,
        )
