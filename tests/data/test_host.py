"""Packing and interleaving: what plain Python defines, and its compiled twin."""

import random
import time
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavalign_fast.data import interleave as interleaving
from wavalign_fast.data import packing_plan
from wavalign_fast.data.host import EXTENSION, HOST
from wavalign_fast.data.interleave import interleave
from wavalign_fast.data.packing_plan import plan_packing
from wavalign_fast.errors import UserError

compiled = pytest.mark.skipif(HOST is None, reason=str(EXTENSION))
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4)
IDS = st.integers(0, 60)


@pytest.fixture(params=["plain", pytest.param("compiled", marks=compiled)])
def twin(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(packing_plan, "HOST", None)
        monkeypatch.setattr(interleaving, "HOST", None)
    return request.param


def first_fit(lengths, budget):
    """First-fit decreasing as books have it, in quadratic time."""
    groups = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        for group in groups:
            if sum(lengths[member] for member in group) + lengths[row] <= budget:
                group.append(row)
                break
        else:
            groups.append([row])
    return groups


def test_rows_are_packed_first_fit_decreasing(twin):
    draw = random.Random(5)
    for _ in range(200):
        budget = draw.randint(1, 40)
        lengths = [draw.randint(1, budget) for _ in range(draw.randint(0, 60))]
        assert plan_packing(lengths, budget) == first_fit(lengths, budget)


def test_equal_rows_keep_their_order(twin):
    assert plan_packing([2] * 7, 6) == [[0, 1, 2], [3, 4, 5], [6]]
    assert plan_packing((3, 5, 1, 3), 6) == [[1, 2], [0, 3]]


@pytest.mark.parametrize(("lengths", "row"), [([3, 0, 9], 1), ([3, 8, 9, 0], 2), ([-1], 0)])
def test_a_row_without_room_is_named(twin, lengths, row):
    message = rf"row {row} has {lengths[row]} tokens, wanted 1 to 8, the budget of a group"
    with pytest.raises(UserError, match=message):
        plan_packing(lengths, 8)


@compiled
def test_a_million_rows_are_packed_in_two_seconds_of_one_core():
    draw = random.Random(0)
    lengths = [draw.randint(1, 4096) for _ in range(10**6)]
    started = time.process_time()
    groups = plan_packing(lengths, 4096)
    assert time.process_time() - started < 2
    fill = [sum(lengths[row] for row in group) for group in groups]
    assert max(fill) <= 4096 and sum(map(len, groups)) == 10**6
    assert len(groups) < 1.01 * sum(lengths) / 4096


@compiled
@settings(max_examples=300, deadline=None)
@given(text=IDS, codes=IDS, sizes=SIZES, speech=SIZES, bounded=st.booleans())
def test_the_twin_interleaves_as_plain_python_does(text, codes, sizes, speech, bounded):
    bounds = ("begin", "end") if bounded else (None, None)
    stream = [f"t{n}" for n in range(text)], tuple(f"c{n}" for n in range(codes))
    plain = interleaving._interleave(*stream, sizes, speech, *bounds)
    assert HOST.interleave(*stream, sizes, speech, *bounds) == plain


@settings(max_examples=200, deadline=None)
@given(text=st.integers(1, 60), codes=st.integers(1, 60), sizes=SIZES, speech=SIZES)
def test_chunks_have_the_sizes_of_the_ratio(text, codes, sizes, speech):
    """From the definition in words, not from either twin."""
    ratio = [size for pair in zip(sizes, speech, strict=False) for size in (pair[0], pair[1] + 2)]
    mixed = interleave(range(text), range(100, 100 + codes), ratio, begin=-1, end=-2)
    assert [one for one in mixed if one >= 100] == list(range(100, 100 + codes))
    assert [one for one in mixed if 0 <= one < 100] == list(range(text))
    opened = [at for at, one in enumerate(mixed) if one == -1]
    closed = [at for at, one in enumerate(mixed) if one == -2]
    pairs = list(zip(ratio[::2], ratio[1::2], strict=True))
    pairs += [pairs[-1]] * len(opened)
    ends = list(accumulate(size for size, _ in pairs))
    for k, (at, stop) in enumerate(zip(opened[:-1], closed[:-1], strict=True)):
        assert stop - at + 1 == pairs[k][1]
        assert mixed[at - 1] == ends[k] - 1
    # One more chunk could not be filled from both streams.
    k = len(opened) - 1
    spoken = sum(size - 2 for _, size in pairs[: k + 1])
    assert ends[k] >= text or spoken >= codes


@compiled
def test_the_twin_holds_no_reference_too_many_or_too_few():
    import sys

    text, codes, begin = [object() for _ in range(50)], [object() for _ in range(90)], object()
    before = [sys.getrefcount(one) for one in (*text, *codes, begin)]
    for _ in range(100):
        HOST.interleave(text, codes, [1, 4], [2, 3], begin, begin)
    assert [sys.getrefcount(one) for one in (*text, *codes, begin)] == before
    with pytest.raises(TypeError, match="text: wanted a sequence of ids"):
        HOST.interleave(3, codes, [1], [1], None, None)
