"""Means and differences with bootstrap intervals."""

import math
import random

import pytest

from wavalign_fast.evaluation.statistics import Sample, combined, estimate, paired, plain


def numbers(seed, count, shift=0.0):
    rng = random.Random(seed)
    return [rng.gauss(shift, 1.0) for _ in range(count)]


def test_the_interval_is_that_of_a_mean():
    values = numbers(0, 400)
    found = estimate(list(map(plain, values)))
    mean = sum(values) / 400
    error = math.sqrt(sum((value - mean) ** 2 for value in values)) / 400
    assert found.value == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_the_order_of_the_records_changes_nothing_and_the_numbers_do():
    samples = list(map(plain, numbers(1, 50)))
    assert estimate(samples) == estimate(samples[::-1]) == estimate(samples)
    assert estimate(samples) != estimate([*samples[:-1], plain(9.0)])


def test_equal_records_have_no_width_and_no_records_no_number():
    assert estimate([plain(0.5)] * 7) == (0.5, 0.5, 0.5)
    assert estimate([]) is None and combined([[plain(1.0)], []]) is None and combined([]) is None


def test_columns_are_ratios_of_sums():
    """As IFEval's accuracy by instruction: longer lists count more."""
    samples = [Sample((1.0, 1.0), (1.0, 1.0)), Sample((0.0, 1.0), (1.0, 3.0))]
    found = estimate(samples)
    assert found.value == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.low == pytest.approx((0 + 1 / 3) / 2) and found.high == 1.0
    with pytest.raises(ValueError, match="columns"):
        estimate([plain(1.0), samples[0]])


def test_categories_count_alike_whatever_their_sizes():
    groups = [[plain(1.0)] * 90, list(map(plain, numbers(2, 10)))]
    found = combined(groups)
    alone = estimate(groups[1])
    assert found.value == pytest.approx((1 + alone.value) / 2)
    assert found.high - found.low == pytest.approx((alone.high - alone.low) / 2)


def test_a_paired_difference_is_narrow_where_prompts_differ_more_than_models():
    hard = numbers(3, 100)
    first = [plain(10 * value) for value in hard]
    second = [plain(10 * value + 1 + 0.1 * noise) for value, noise in
              zip(hard, numbers(4, 100), strict=True)]  # fmt: skip
    found = paired([list(zip(first, second, strict=True))])
    assert found.value == pytest.approx(1, abs=0.05) and 0.9 < found.low < found.high < 1.1
    apart = estimate(first)
    assert apart.high - apart.low > 20 * (found.high - found.low)
    back = paired([list(zip(second, first, strict=True))])
    assert back.value == pytest.approx(-found.value)
    assert paired([list(zip(first, first, strict=True))]) == (0.0, 0.0, 0.0)
