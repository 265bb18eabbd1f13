"""The figures of docs/method.md show what the gate and the record say."""

import pytest

pytest.importorskip("matplotlib")

from benchmarks import method_figures as made
from benchmarks.record import RESULTS, load
from benchmarks.report.theme import LIGHT


def test_the_gate_is_the_one_of_the_losses():
    assert made.weight_of([5.0, 5.0, 1.0, 1.0]) == pytest.approx(0.8, abs=1e-3)
    assert made.weight_of([5.0, 1.0, 1.0, 1.0]) == pytest.approx(0.6, abs=1e-3)
    assert made.weight_of([4.0] * 4) == 0
    left = made.gate_figure(LIGHT).axes[0]
    last = [float(line.get_ydata()[-1]) for line in left.lines]
    assert last == pytest.approx([0.6, 0.8, 0.0], abs=1e-3)


def test_every_arm_stands_where_its_record_says():
    record = load("spoken_sums", RESULTS)
    axes = made.scopes_figure(record, LIGHT).axes[0]
    drawn = [line for line in axes.lines if line.get_marker() == "o"]
    points = {tuple(map(float, line.get_xydata()[0])) for line in drawn}
    for found in (record["base"], *record["arms"].values()):
        assert tuple(found[name]["mean"] for name in made.AXES) in points
