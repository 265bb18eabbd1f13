"""The shapes: the rows that carry loss, and the sources of the heads."""

from itertools import pairwise

import pytest
import torch

from benchmarks.bench_hybrid_loss import Step
from benchmarks.shapes import AXES, DPO, HEADS, HYBRID, LOGPROB, PAPER, QUICK, TINY, Head, growth


@pytest.mark.parametrize(
    ("name", "positions", "live"),
    [
        ("vita-audio", 1008, 252),
        ("glm4-voice", 1008, 276),
        ("step-audio-2", 1008, 252),
        ("covo-audio", 1008, 228),
        ("kimi-audio", 1008, 252),
        ("tiny", 3840, 1344),
        ("quick", 1008, 252),
    ],
)
def test_positions_and_rows_that_carry_loss(name, positions, live):
    assert (HYBRID[name].positions, HYBRID[name].live) == (positions, live)


@pytest.mark.parametrize("name", ["quick", "tiny"])
def test_the_step_has_the_live_rows_of_its_shape(name):
    step = Step(HYBRID[name], torch.float32)
    live = step.objective("cpu").token_weights(step.batch).live
    assert int(live.sum()) == HYBRID[name].live
    assert torch.equal(torch.nonzero(live).squeeze(1), step.live())


def test_heads_are_those_of_the_models():
    sizes = {head.name: (head.hidden, head.vocab) for head in HEADS}
    assert sizes == {
        "tiny": (128, 296),
        "vita-audio": (3584, 168072),
        "glm4-voice": (4096, 168960),
        "step-audio-2": (3584, 158720),
        "covo-audio": (3584, 168055),
        "kimi-audio": (3584, 168448),
    }
    codes = {head.name: head.speech[1] - head.speech[0] for head in HEADS}
    assert codes == {
        "tiny": 256,
        "vita-audio": 16384,
        "glm4-voice": 16384,
        "step-audio-2": 6562,
        "covo-audio": 16384,
        "kimi-audio": 16384,
    }


def test_the_tiny_head_is_the_shipped_one():
    from safetensors import safe_open

    from wavalign_fast.recipes.spoken_sums.assets import ASSETS

    with safe_open(ASSETS / "base" / "model.safetensors", "pt") as weights:
        assert weights.get_slice("lm_head.weight").get_shape() == [TINY.vocab, TINY.hidden]


def test_every_shape_names_its_source():
    for shapes in (LOGPROB, HYBRID, DPO):
        for name, shape in shapes.items():
            assert shape.name == name
            assert shape.source
    assert PAPER is HYBRID["vita-audio"] and QUICK is HYBRID["quick"]


def test_speech_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"speech \(5, 11\) is not inside \[1, 10\]"):
        Head(name="x", title="x", source="x", hidden=4, vocab=10, speech=(5, 11))


@pytest.mark.parametrize(
    ("axis", "low", "high"), [("rows", 256, 8192), ("vocab", 8192, 262144), ("hidden", 128, 4096)]
)
def test_growth_doubles_one_axis_and_holds_the_others(axis, low, high):
    shapes = growth(axis, quick=False)
    values = [getattr(shape, axis) for shape in shapes]
    assert (values[0], values[-1]) == (low, high)
    assert all(b == 2 * a for a, b in pairwise(values))
    for other in set(AXES) - {axis}:
        assert len({getattr(shape, other) for shape in shapes}) == 1
