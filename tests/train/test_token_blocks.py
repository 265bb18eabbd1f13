"""Rows, blocks and their tables against the released code's padded layout; ids off the layout."""

import pytest
import torch

from wavalign_fast.data.records import Completion, Demonstration, Example
from wavalign_fast.errors import UserError
from wavalign_fast.losses import HybridBatch
from wavalign_fast.train.deal import deal, rounds
from wavalign_fast.train.token_blocks import LossIds, count_tables, lay_out, step_rows

PROMPTS = [(2, 3), (2, 3, 4, 5)]
SAMPLED = [(7, 8, 1), (9,), (10, 11, 12, 13), (14, 1)]
SHOWN = [((2, 3, 4), (20, 21, 1)), ((5,), (22, 1))]


def loss_ids(vocab_size=24, policy=None):
    """All ids carry loss, or in completions only those in ``policy``."""
    some = [policy is None or token in policy for token in range(vocab_size)]
    return LossIds(policy=some, anchor=[True] * vocab_size)


def records():
    examples = [Example(id="", prompt="", prompt_ids=ids, reference="") for ids in PROMPTS]
    completions = [
        Completion(example=examples[row // 2], ids=ids, ended=ids[-1] == 1)
        for row, ids in enumerate(SAMPLED)
    ]
    shown = [Demonstration(prompt_ids=p, answer_ids=a) for p, a in SHOWN]
    return completions, shown


def blocks_of(rows, block_tokens, world=1):
    dealt = deal(rows, world=world, block_tokens=block_tokens)
    return [lay_out(part, pad_id=0) for mine in dealt for part in mine]


def entries(tables, previous=None):
    """Returns the content of the tables as (kind, row, previous id, target), in sorted order."""
    found = []
    previous = previous or [None] * len(tables.targets)
    for target, policy, anchor, seen in zip(
        tables.targets.tolist(),
        tables.policy_row.tolist(),
        tables.anchor_row.tolist(),
        previous,
        strict=True,
    ):
        if policy >= 0:
            found.append(("policy", policy, seen, target))
        if anchor >= 0:
            found.append(("anchor", anchor, seen, target))
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("block_tokens", [1, 12, 10_000])
def test_tables_agree_with_the_padded_layout(block_tokens, world):
    blocks = blocks_of(step_rows(*records(), loss_ids=loss_ids()), block_tokens, world)
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
    found = [
        entry for block in blocks for entry in entries(block.tables, block.ids.flatten().tolist())
    ]
    assert sorted(found) == sorted(entries(padded, ids.flatten().tolist()))
    for block in blocks:
        assert (block.tables.policy_row == -1).all() or block.is_rollout


def test_the_tables_that_are_counted_have_the_rows_without_padding():
    rows = step_rows(*records(), loss_ids=loss_ids())
    found = [entry for block in blocks_of(rows, 12) for entry in entries(block.tables)]
    tables = count_tables(rows)
    assert sorted(entries(tables)) == sorted(found) and len(tables.targets) == len(found)


def test_skipped_completions_keep_the_indices_of_the_others():
    rows = step_rows(*records(), loss_ids=loss_ids(), skipped={0, 2})
    assert [(row.is_rollout, row.index) for row in rows] == [
        (True, 1), (True, 3), (False, 0), (False, 1)
    ]  # fmt: skip


def test_similar_lengths_share_a_block():
    completions, _ = records()
    rows = step_rows(completions, [], loss_ids=loss_ids())
    assert [tuple(block.ids.shape) for block in blocks_of(rows, 10)] == [(2, 7), (2, 4)]


def test_a_row_ends_with_the_last_id_that_carries_loss():
    completions, _ = records()
    rows = step_rows(completions, [], loss_ids=loss_ids(policy={7, 12, 14}))
    (block,) = blocks_of(rows, 10_000)
    # Completions 0, 2 and 3 hold an id with loss. The ids after it and all of 1 are left out.
    assert block.ids.tolist() == [[2, 3, 4, 5, 10, 11], [2, 3, 4, 5, 0, 0], [2, 3, 0, 0, 0, 0]]
    in_a_row = block.tables.policy_row >= 0
    assert block.tables.targets[in_a_row].tolist() == [10, 11, 12, 14, 7]


def test_ranks_get_equal_shares_and_every_row_once():
    rows = step_rows(*records(), loss_ids=loss_ids())
    dealt = deal(rows, world=3, block_tokens=10)
    shares = [sum(len(row) for part in mine for row in part) for mine in dealt]
    longest = max(len(row) for row in rows)
    assert max(shares) - min(shares) <= longest
    given = [(row.is_rollout, row.index) for mine in dealt for part in mine for row in part]
    assert sorted(given) == sorted((row.is_rollout, row.index) for row in rows)


def test_a_row_longer_than_a_block_is_packed_alone():
    rows = [row for row in step_rows(*records(), loss_ids=loss_ids()) if row.is_rollout]
    lengths = [
        [len(row) for row in part] for part in deal(rows, world=1, block_tokens=5, packed=True)[0]
    ]
    assert sorted(map(len, rows)) == [2, 4, 5, 7]
    assert lengths == [[7], [5], [4], [2]]
    fits = deal(rows, world=1, block_tokens=7, packed=True)[0]
    assert [[len(row) for row in part] for part in fits] == [[7], [5, 2], [4]]


def test_a_rank_that_has_less_gets_more():
    rows = step_rows(*records(), loss_ids=loss_ids())
    shown, sampled = rows[4:], rows[:4]
    beside = deal(shown, world=2, block_tokens=9)
    dealt = deal(sampled, world=2, block_tokens=9, beside=beside)
    assert [sum(len(row) for part in mine for row in part) for mine in beside] == [5, 2]
    assert [[row.index for part in mine for row in part] for mine in dealt] == [[3, 1], [2, 0]]


def test_all_ranks_run_as_many_rounds_as_the_busiest():
    rows = step_rows(*records(), loss_ids=loss_ids())
    assert rounds(deal(rows, world=1, block_tokens=1)) == (6, 4)
    assert rounds(deal(rows, world=8, block_tokens=1)) == (1, 1)
    assert rounds(deal(rows[4:], world=2, block_tokens=1)) == (1, 0)
    assert rounds(deal([], world=2, block_tokens=1)) == (0, 0)


def test_without_rows_a_block_counts_nowhere():
    block = lay_out([], pad_id=5)
    assert block.ids.tolist() == [[5]] and entries(block.tables) == []


def test_an_id_outside_the_layout_is_named():
    with pytest.raises(
        UserError, match="demonstration 0: id 21 at position 4, wanted 0 <= id < 21"
    ):
        step_rows(*records(), loss_ids=loss_ids(21))


def test_an_empty_prompt_is_refused():
    empty = [Demonstration(prompt_ids=(), answer_ids=(1,))]
    with pytest.raises(UserError, match="demonstration 0: empty prompt"):
        step_rows([], empty, loss_ids=loss_ids(9))


def test_packed_rows_have_the_entries_of_padded_ones_and_no_padding():
    rows = step_rows(*records(), loss_ids=loss_ids())
    padded = [entry for block in blocks_of(rows, 12) for entry in entries(block.tables)]
    dealt = deal(rows, world=1, block_tokens=12, packed=True)
    blocks = [lay_out(part, pad_id=0, packed=True) for part in dealt[0]]
    found = [entry for block in blocks for entry in entries(block.tables)]
    assert sorted(found) == sorted(padded)
    positions = [block.ids.ids.numel() for block in blocks]
    assert positions == [sum(map(len, part)) for part in dealt[0]]
    # First-fit: the first row of a block of its kind had no room in the ones before it.
    assert max(positions) <= 12
    for kind in (True, False):
        parts = [part for part in dealt[0] if part[0].is_rollout is kind]
        for place, part in enumerate(parts):
            assert all(sum(map(len, one)) + len(part[0]) > 12 for one in parts[:place])
    idle = lay_out([], pad_id=5, packed=True)
    assert idle.ids.ids.tolist() == [[5]] and entries(idle.tables) == []


@pytest.mark.parametrize("packed", [False, True])
def test_earlier_answers_in_the_prompt_are_learnt_too(packed):
    shown = [
        Demonstration(prompt_ids=(2, 20, 21, 3, 22, 4), answer_ids=(9, 1), history=(1, 2, 4)),
        Demonstration(prompt_ids=(2, 5), answer_ids=(6,)),
    ]
    rows = step_rows([], shown, loss_ids=loss_ids())
    tables = lay_out(rows, pad_id=0, packed=packed).tables
    wanted = [(0, 20), (0, 21), (0, 22), (0, 9), (0, 1), (1, 6)]
    for found in (tables, count_tables(rows)):
        kept = found.anchor_row >= 0
        assert [
            *zip(found.anchor_row[kept].tolist(), found.targets[kept].tolist(), strict=True)
        ] == wanted
    if not packed:
        assert tables.targets.view(2, -1)[0].tolist() == [20, 21, 0, 22, 0, 9, 1]


def test_a_row_whose_history_alone_carries_loss_is_kept():
    only = LossIds(policy=[True] * 24, anchor=[token == 20 for token in range(24)])
    shown = [Demonstration(prompt_ids=(2, 20, 3), answer_ids=(9, 1), history=(1,))]
    (row,) = step_rows([], shown, loss_ids=only)
    assert (row.answer, row.learnt, len(row)) == ((), (20,), 2)
    assert lay_out([row], pad_id=0).tables.targets.tolist() == [20, 0]
    assert step_rows([], [Demonstration(prompt_ids=(2, 20), answer_ids=(9,))], loss_ids=only) == []
