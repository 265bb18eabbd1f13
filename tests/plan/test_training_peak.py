"""The peak of a forward and backward pass: fake tensors against real ones, and what moves it."""

from dataclasses import replace

import pytest
import torch

from tests.plan.tiny import tiny_config
from tests.ranks import run_ranks
from wavalign_fast.ops.chunked import chunks
from wavalign_fast.plan import state
from wavalign_fast.plan import training_peak as peak
from wavalign_fast.plan.live_bytes import LiveBytes
from wavalign_fast.plan.planned_run import PlannedRun

RUN = PlannedRun(rows=2, length=24, live=30)


def real_peak(run: PlannedRun) -> int:
    """The peak of the same pass over real tensors, on this rank."""
    policy = peak.sharded(peak.Policy(peak.planned_model(tiny_config(), run)), run)
    return peak.peak_of(policy, run)


def assert_near(fake: int, real: int) -> None:
    """Fake kernels of a few ops hold an operand longer than the real ones, never shorter."""
    assert real <= fake <= 1.03 * real


def test_fake_tensors_take_what_real_ones_take():
    for run in (RUN, replace(RUN, checkpointing=True)):
        assert_near(peak.training_peak(tiny_config(), run), real_peak(run))


def test_so_they_do_on_a_rank_of_two():
    run = replace(RUN, shard=2, compute_dtype=torch.bfloat16)
    first, _ = run_ranks(2, real_peak, run)
    assert_near(peak.training_peak(tiny_config(), run), first)


@pytest.mark.parametrize("head", [False, True])
def test_so_they_do_with_adapters(head):
    pytest.importorskip("peft")
    half = replace(RUN, weights_dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    for run in (RUN, half, replace(half, checkpointing=True)):
        run = replace(run, lora_rank=4, lora_head=head)
        assert_near(peak.training_peak(tiny_config(), run), real_peak(run))


def test_so_they_do_with_adapters_on_a_rank_of_two():
    pytest.importorskip("peft")
    run = replace(RUN, shard=2, compute_dtype=torch.bfloat16, lora_rank=4, lora_head=True)
    first, _ = run_ranks(2, real_peak, run)
    assert_near(peak.training_peak(tiny_config(), run), first)


def real_peak_of_a_slice(run: PlannedRun) -> int:
    policy = peak.sharded(peak._Policy(peak.planned_model(tiny_config(), run)), run)
    assert policy.head_is_sharded
    return peak.peak_of(policy, run)


def test_so_they_do_on_a_rank_of_two_with_a_slice_of_the_head():
    run = replace(RUN, shard=2, compute_dtype=torch.bfloat16, head="sharded")
    first, _ = run_ranks(2, real_peak_of_a_slice, run)
    assert_near(peak.training_peak(tiny_config(), run), first)


def of(vocab_size: int = 501, **changes) -> int:
    sizes = dict(vocab_size=vocab_size, num_hidden_layers=2, hidden_size=64, intermediate_size=256)
    return peak.training_peak(tiny_config(**sizes), replace(RUN, **changes))


def test_checkpointing_more_ranks_and_fewer_tokens_need_less():
    whole = of(rows=8, live=100)
    assert of(rows=8, live=100, checkpointing=True) < 0.8 * whole
    assert of(rows=8, live=100, shard=4) < whole
    assert of(rows=4, live=96) < 0.8 * whole


def test_a_sharded_head_needs_less_and_more_so_on_more_ranks():
    def saved(ranks: int) -> int:
        return sum(
            sign * of(vocab_size=20_000, shard=ranks, head=head)
            for sign, head in ((1, "gathered"), (-1, "sharded"))
        )

    assert 0 < saved(2) < saved(4)


def test_alone_a_sharded_head_is_the_whole_one():
    assert of(head="sharded") == of()


def test_a_replica_holds_what_one_rank_holds():
    assert of(compute_dtype=torch.bfloat16, replicate=2) == of(compute_dtype=torch.bfloat16)


def test_weights_and_gradients_are_below_the_peak():
    model = peak.planned_model(tiny_config(), RUN)
    lasting = state.weight_bytes(model, RUN) + state.gradient_bytes(model, RUN)
    assert lasting < peak.training_peak(tiny_config(), RUN)


def test_the_loss_holds_one_chunk_of_logits_and_both_gradients(monkeypatch):
    """Live bytes inside the loss alone: 512 rows over 1000 ids, one chunk, then two."""
    hidden = torch.zeros(600, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(1000, 16, dtype=torch.bfloat16, requires_grad=True)

    def held() -> int:
        with LiveBytes() as bytes_:
            peak.FusedLoss.apply(hidden, weight, torch.arange(512))
        return bytes_.peak

    pitch = chunks.chunks_of(512, 1000, 4, chunks.ChunkOptions("", 2**30, True, 512)).pitch
    ids, rows, of_hidden, of_weight = 512 * 8, 512 * 16 * 2, 512 * 16 * 2, 1000 * 16 * 4
    one = ids + rows + of_hidden + of_weight + 512 * (pitch + 16) * 4
    assert held() == one
    monkeypatch.setattr(peak, "DEFAULT_MEMORY_BUDGET", 256 * pitch * 4)
    assert held() == one - 256 * (pitch + 16) * 4


def test_the_loss_of_a_slice_holds_the_rows_of_all_ranks(monkeypatch):
    """A slice of 1000 of 4000 ids on 4 ranks with 64 rows each: one chunk, then two."""
    hidden = torch.zeros(80, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(1000, 16, dtype=torch.bfloat16, requires_grad=True)

    def held() -> int:
        with LiveBytes() as bytes_:
            peak.FusedShardedLoss.apply(hidden, weight, torch.arange(64), 4000, 4)
        return bytes_.peak

    pitch = chunks.pitch_of(1000)
    ids, own, of_own, of_weight = 64 * 8, 64 * 16 * 2, 64 * 16 * 4, 1000 * 16 * 4
    of_all = 256 * 16 * (2 + 4)  # states and their gradients
    rounded = 1000 * 16 * 2  # dW in the weight's dtype, while all else is still there
    logits = 256 * pitch * 4
    small = 64 * 16 * 4  # dH, joined to one, is smaller than what is freed before
    assert held() == ids + own + of_own + of_weight + of_all + rounded + logits
    assert small < rounded
    monkeypatch.setattr(chunks, "PRODUCT_ROWS", 128)
    monkeypatch.setattr(peak, "PRODUCT_ROWS", 128)
    monkeypatch.setattr("wavalign_fast.ops.sharded.steps.PRODUCT_ROWS", 128)
    monkeypatch.setattr(peak, "DEFAULT_MEMORY_BUDGET", 1)
    # Half of the logits; the rows of a chunk wait for the next one to take their place.
    assert held() < ids + own + of_own + of_weight + of_all + rounded + logits


def test_a_frozen_head_needs_no_gradient_of_the_weight():
    hidden = torch.zeros(600, 16, requires_grad=True)
    weight = torch.zeros(100_000, 16)
    with LiveBytes() as held:
        peak.FusedLoss.apply(hidden, weight, torch.arange(2)).backward()
    trained = weight.clone().requires_grad_(True)
    with LiveBytes() as more:
        peak.FusedLoss.apply(hidden, trained, torch.arange(2)).backward()
    # The logits' buffer is free again before the gradient is rounded, here to its own dtype.
    assert more.peak - held.peak == weight.numel() * 4
