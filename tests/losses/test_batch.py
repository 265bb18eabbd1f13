"""``HybridBatch``: flat tables, and the padded rows that they come from."""

import pytest
import torch

import wavalign_fast as wf

LAYOUT = wf.ModalityLayout(vocab_size=12, speech=((7, 10),), boundary=(3, 4), eos=(5,))


def test_from_padded_places_every_token() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 2, 5, 0, 0], [6, 7, 8, 9, 0]])
    labels = torch.full_like(ids, -100)
    labels[2, 2:4] = ids[2, 2:4]
    batch = wf.HybridBatch.from_padded(
        ids, torch.tensor([[1, 1, 0], [1, 0, 0]]), labels, torch.zeros(1, 2), torch.tensor([2]),
        torch.arange(8.0).reshape(2, 4), importance=torch.arange(8.0).reshape(2, 4) + 1,
    )  # fmt: skip
    assert batch.policy_row.reshape(3, 5).tolist() == [
        [-1, 0, 0, -1, -1], [-1, 1, -1, -1, -1], [-1] * 5,
    ]  # fmt: skip
    assert batch.anchor_row.reshape(3, 5)[2].tolist() == [-1, 0, 0, -1, -1]
    assert batch.targets.reshape(3, 5)[0, 1:3].tolist() == [3, 4]
    assert batch.targets.reshape(3, 5)[2, 1:3].tolist() == [8, 9]
    assert batch.ref_logp.reshape(3, 5)[1, :4].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert batch.importance.reshape(3, 5)[1].tolist() == [5.0, 6.0, 7.0, 8.0, 0.0]


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
    with pytest.raises(ValueError, match=r"importance: got torch.int64, want a floating dtype"):
        wf.HybridBatch(row, row, row - 1, torch.zeros(1, 2), importance=row)


def test_a_demonstration_without_a_position_leaves_a_gap() -> None:
    row = torch.zeros(1, dtype=torch.long)
    batch = wf.HybridBatch(row, row - 1, row + 7, torch.zeros(0, 2))
    out = wf.HybridObjective(LAYOUT, gate=0.0)(torch.zeros(1, 4), torch.zeros(12, 4), batch)
    torch.testing.assert_close(out.anchor_loss, torch.tensor(12.0).log())
