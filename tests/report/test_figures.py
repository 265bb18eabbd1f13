"""Statistics, axes and charts of the report."""

import itertools
import json
import re

import pytest

from wavalign_fast.report.charts import MAX_POINTS, curve_charts, line_chart
from wavalign_fast.report.figures import CURVES, Curve
from wavalign_fast.report.formatting import duration, percent, short, tick_labels
from wavalign_fast.report.outcome_chart import (
    BOTTOM,
    HEIGHT,
    LABEL_HEIGHT,
    LEFT,
    LETTER_WIDTH,
    RIGHT,
    TOP,
    WIDTH,
    Plane,
    Point,
    place_names,
)
from wavalign_fast.report.runs import load_runs
from wavalign_fast.report.statistics import (
    difference_interval,
    quantile,
    smooth,
    ticks,
    wilson_interval,
)
from wavalign_fast.report.tables import evaluation_table, time_bars


def test_wilson_interval_against_published_values():
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_interval_of_a_change_against_published_values():
    # Newcombe (1998), Statistics in Medicine 17:873, table II, method 10, examples a, d and g.
    assert difference_interval(48 / 80, 80, 56 / 70, 70) == pytest.approx(
        (0.0524, 0.3339), abs=5e-5
    )
    assert difference_interval(3 / 10, 10, 9 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference_interval(0.0, 10, 1.0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_the_interval_is_of_the_difference_of_two_shares():
    # Both are uncertain: 1.96 · √(2 · ¼ / 400) = 0.069, where one alone would give 0.049.
    assert difference_interval(0.470, 400, 0.530, 400)[0] < 0
    assert difference_interval(0.465, 400, 0.535, 400)[0] > 0
    low, high = difference_interval(0.530, 400, 0.470, 400)
    assert (low, high) == pytest.approx((-0.128, 0.009), abs=2e-3)


def test_smoothing_keeps_length_mean_level_and_centre():
    assert smooth([3.0] * 9, 5) == [3.0] * 9
    assert smooth([0, 0, 3, 0, 0], 3) == [0, 1, 1, 1, 0]
    assert smooth([0, 2, 4], 1) == [0, 2, 4]


def test_quantile_and_ticks():
    assert quantile([5, 1, 3], 0.5) == 3
    assert ticks(0.0, 1.0, 4) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert ticks(-0.061, 0.059, 4) == pytest.approx([-0.05, 0.0, 0.05])
    assert ticks(2.0, 2.0, 4) == [2.0]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([-0.5, 0.0, 0.5], ["−0.5", "0.0", "0.5"]),
        ([2.0, 3.0], ["2", "3"]),
        ([0.0, 2.5e-5, 5e-5], ["0", "2.5e−5", "5e−5"]),
    ],
)
def test_tick_labels_share_their_decimals(values, labels):
    assert tick_labels(values) == labels


def test_numbers_in_words():
    assert (short(0.44), short(2.713), short(-31.26), short(150.4)) == (
        "0.440",
        "2.71",
        "−31.3",
        "150",
    )
    assert percent(0.602) == "60%"
    assert (duration(12), duration(754), duration(3700)) == ("12 s", "12 min 34 s", "1 h 1 min")


def test_a_chart_has_a_line_an_arm_and_names_them(run_dir):
    runs = load_runs(run_dir)
    chart = line_chart(CURVES[0], runs)
    lines = json.loads(re.search(r'data-lines="(.*?)"', chart).group(1).replace("&quot;", '"'))
    assert [line["name"] for line in lines] == ["wavalign", "rl-all"]
    assert all(len(line["points"]) <= MAX_POINTS + 1 for line in lines)
    assert lines[0]["points"][-1][0] == 300
    assert chart.count('class="line') == chart.count('class="raw') == 2


def test_lines_stay_inside_the_frame(run_dir):
    chart = line_chart(Curve(key="kl", title="kl"), load_runs(run_dir))
    for path in re.findall(r'class="line s\d" d="M(.*?)"', chart):
        points = [tuple(map(float, point.split())) for point in path.split("L")]
        assert all(46 <= x <= 368 and 10 <= y <= 176 for x, y in points)


def test_a_chart_says_what_it_cannot_show(run_dir):
    def loss(**settings):
        text = "".join(f"{key}: {value}\n" for key, value in settings.items())
        (run_dir / "wavalign" / "config.yaml").write_text(f"train:\n  steps: 300\n{text}")
        charts, _ = curve_charts(load_runs(run_dir))
        return next(chart for chart in charts if "Policy loss" in chart)

    assert "near 0 by construction" in loss()
    assert "near 0 by construction" not in loss(**{"  updates_per_rollout": 2})


def test_the_scale_of_the_rewards_is_beside_their_chart(run_dir):
    for arm in ("wavalign", "rl-all"):
        start = {"starts": [{"reward_scale": "1 (wrong) to 5 (right)"}]}
        (run_dir / arm / "provenance.json").write_text(json.dumps(start))
    charts, _ = curve_charts(load_runs(run_dir))
    assert "mean of the step’s rollouts; 1 (wrong) to 5 (right)</small>" in charts[0]


def test_a_mean_over_all_tokens_is_not_drawn_beside_its_parts(run_dir):
    def titles():
        charts, more = curve_charts(load_runs(run_dir))
        return [re.search("<figcaption>(.*?)[ <]*<", chart).group(1) for chart in charts + more]

    assert "Entropy" in titles() and "KL to the base" in titles()
    log = run_dir / "rl-all" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"entropy": ', '"entropy": 1, "speech_entropy": '))
    assert "Entropy, speech" in titles() and "Entropy" not in titles()


def test_a_metric_without_two_values_has_no_chart(run_dir):
    assert line_chart(Curve(key="nothing", title="nothing"), load_runs(run_dir)) == ""


def test_a_value_that_is_not_finite_is_left_out(run_dir):
    kl = load_runs(run_dir)[0].curves["kl"]
    assert len(kl) == 299 and 7 not in {step for step, _ in kl}


@pytest.mark.parametrize("items", [5.0, 40.0, 400.0, None])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_the_bars_of_the_outcome_stay_inside_the_plot(share, items):
    points = [Point("a", "s0", share, 1 - share, items), Point("b", "s1", 0.4, 0.45, items)]
    plane = Plane(points)
    for point in points:
        bars = re.search(r'd="M(\S+) (\S+)H(\S+)M(\S+) (\S+)V(\S+)"', plane.mark(point))
        assert (bars is None) == (items is None)
        if bars is None:
            continue
        low, y, high, x, bottom, top = map(float, bars.groups())
        for at in (low, high, x):
            assert LEFT <= at <= WIDTH - RIGHT
        for at in (y, bottom, top):
            assert TOP <= at <= HEIGHT - BOTTOM


def test_names_of_close_points_do_not_overlap():
    points = [Point(f"arm-{n}", "s0", 0.5 + 0.01 * n, 0.6 + 0.005 * n, 400.0) for n in range(6)]
    names = place_names(points, Plane(points))
    places = set()
    for name in names:
        x, y, anchor = re.search(r'x="(.+?)" y="(.+?)" text-anchor="(.+?)"', name).groups()
        width = LETTER_WIDTH * len("arm-0")
        left = float(x) - (width if anchor == "end" else 0)
        places.add((left, float(y) - LABEL_HEIGHT, left + width, float(y)))
    assert len(places) == 6
    for one, other in itertools.combinations(places, 2):
        apart = one[2] <= other[0] + 0.2 or other[2] <= one[0] + 0.2
        assert apart or one[3] <= other[1] + 0.2 or other[3] <= one[1] + 0.2


def test_the_best_arm_is_bold_and_ties_are_not(run_dir):
    table = evaluation_table(load_runs(run_dir))
    assert "<b>60%</b><small>55–65</small>" in table
    assert "<b>79%</b>" in table and "<b>80%</b>" not in table
    assert "<b>41%</b>" not in table


def test_the_time_split_adds_up(run_dir):
    split = load_runs(run_dir)[0].phase_seconds()
    assert sum(split.values()) == pytest.approx(0.34)
    assert split["other"] == pytest.approx(0.34 - 0.33)
    assert (
        "340 ms per step: rollout 170, reward 12, reference log-probs 20, forward + backward 110"
        in time_bars(load_runs(run_dir))
    )


def test_a_phase_that_takes_next_to_nothing_is_no_part_of_the_bar(run_dir):
    def split(seconds: float) -> dict[str, float]:
        lines = [
            {"step": n, "perf/rollout_s": 1.0, "perf/exchange_s": seconds, "perf/step_s": 2.0}
            for n in (1, 2)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run_dir / "wavalign" / "metrics.jsonl").write_text(text)
        return load_runs(run_dir)[0].phase_seconds()

    assert split(0.5) == {"rollout": 1.0, "exchange": 0.5, "other": 0.5}
    assert split(0.001) == {"rollout": 1.0, "other": 1.0}
