"""The scaling page is what its script writes, and its arithmetic holds where it can be checked."""

from dataclasses import replace

import pytest

from benchmarks import scaling
from benchmarks.record import load
from benchmarks.scaling import NETWORK, NVLINK, Step
from benchmarks.scaling_page import page


@pytest.fixture(scope="module", autouse=True)
def sizes_once():
    """The sizes of the model take a second: they are counted once here."""
    found = scaling.sizes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "sizes", lambda: found)
        yield found


def test_the_page_is_up_to_date():
    """If this fails, run: python -m benchmarks.scaling --save"""
    assert scaling.PAGE.read_text(encoding="utf-8") == page(load("scaling"), load("memory"))


def test_the_page_says_what_it_is():
    text = " ".join(page(load("scaling"), load("memory")).split())
    assert "No GPU has run any of this" in text
    assert "not a measurement" in text


def test_the_model_is_the_paper_s(sizes_once):
    size, weights, cached = sizes_once
    assert weights == pytest.approx(7.73e9, rel=0.002)
    assert cached == 56 * 1024  # 56 KiB of keys and values a token
    assert size.head.trained == 168072 * 3584


def test_collectives_of_the_head_are_those_that_were_counted():
    """Milliseconds at 8 and 64 ranks with 2000 rows each, from the bytes of each collective."""
    for ranks, link, gathered, sharded in (
        (8, NVLINK, 8.8, 0.8), (8, NETWORK, 70, 6.7), (64, NVLINK, 9.9, 7.8), (64, NETWORK, 79, 62),
    ):  # fmt: skip
        found = scaling.head_seconds(ranks, 2000, link)
        assert 1e3 * found["gathered"] == pytest.approx(gathered, rel=0.02)
        assert 1e3 * found["sharded"] == pytest.approx(sharded, rel=0.06)


def test_both_heads_move_as_much_where_all_rows_are_the_vocabulary():
    for ranks in (8, 64):
        found = scaling.head_seconds(ranks, scaling.level_rows(ranks), NVLINK)
        assert found["sharded"] == pytest.approx(found["gathered"], rel=0.2)


def test_more_gpus_are_faster_and_waste_more():
    one, eight, many = (scaling.step_times(gpus, Step()) for gpus in (1, 8, 64))
    assert one.total > eight.total > many.total
    assert one.total <= 8 * eight.total
    assert 8 * eight.total < 64 * many.total
    assert one.communication == one.copy == 0


def test_a_step_of_one_gpu_by_hand():
    step = replace(Step(), prompts=1, group=1, demonstrations=0, new_tokens=10, prompt_tokens=10)
    times = scaling.step_times(1, step)
    weights, memory = 7.73e9, 0.7 * 3350e9
    assert times.rollout == pytest.approx(10 * 2 * weights / memory, rel=0.01)
    assert times.optimizer == pytest.approx(28 * weights / memory, rel=0.01)
    body = 7.73e9 - 2 * 168072 * 3584
    flops = 8 * body * 19 + 6 * 168072 * 3584 * 2  # twice forward, backward; head on two rows
    assert times.compute == pytest.approx(flops / (0.4 * 989.4e12), rel=0.01)


def test_an_overlapped_judge_is_never_slower():
    times = scaling.step_times(8, Step())
    for seconds in (0.0, 0.1, 5.0, 100.0):
        total, overlapped = scaling.judged(times, Step(), seconds, 16)
        assert times.total <= overlapped <= total
    assert scaling.judged(times, Step(), 2.0, 16)[0] == times.total + 64 / 16 * 2.0


def test_published_kernels_stay_below_the_peak():
    assert scaling.TRAINING_SHARE < scaling.gemm_share() < 1
