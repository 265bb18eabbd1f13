"""The model of GPU speed: its arithmetic, its labels, and its files, which are up to date."""

import json
from dataclasses import replace

import pytest

from benchmarks import gpu_model, shapes
from benchmarks.gpu_model import LABEL, Array, Work
from benchmarks.gpu_model_page import page
from benchmarks.published_times import PUBLISHED
from benchmarks.record import load
from wavalign_fast.gpu_specifications import GPUS

A100, H100, H200, B200 = GPUS
PAPER = shapes.PAPER


def test_the_files_are_up_to_date():
    """If this fails, run: python -m benchmarks.gpu_model --save"""
    found = json.loads(json.dumps(gpu_model.record()))
    assert load("gpu_model") == found
    assert gpu_model.PAGE.read_text(encoding="utf-8") == page(found)


def test_every_table_says_that_it_is_a_model():
    found = gpu_model.record()
    assert found["label"] == LABEL == "model, not measured"
    title, *sections = page(found).split("\n## ")
    for section in [title, *(text for text in sections if not text.startswith("Peaks"))]:
        assert LABEL in " ".join(section.lower().split())


def test_every_shape_is_there():
    named = {(entry["kind"], entry["shape"]["name"]) for entry in gpu_model.record()["shapes"]}
    for kind, members in (("hybrid", shapes.HYBRID), ("linear_logprob", shapes.LOGPROB)):
        assert {(kind, name) for name in members if name != "quick"} <= named
    assert ("growth", "hidden-4096") in named


def test_three_gemms_on_live_rows_against_four_on_all_rows():
    entry = gpu_model.modelled("hybrid", PAPER)
    assert entry["flops"] == 6 * 252 * 3584 * 168072
    assert entry["others_flops"] == 8 * 1008 * 3584 * 168072


def test_a_kernel_takes_the_time_of_its_slowest_limit():
    work = Work(name="", flops=int(H100.matrix_flops), exponentials=1, reads=(Array(10),))
    assert work.seconds(H100) == 1.0
    slow = replace(H100, memory_bytes=1.0, l2_bytes=0)
    assert work.seconds(slow) == 10.0
    # One multiply-add for each lane and second is one clock a second: sixteen exponentials.
    idle = replace(H100, multiprocessors=1, lanes=1, vector_flops=2.0)
    assert Work(name="", exponentials=160).seconds(idle) == 10.0


@pytest.mark.parametrize(
    ("array", "moved"),
    [
        (Array(60), 60),  # fits: once, however often
        (Array(60, 5), 60),
        (Array(60, 0), 0),
        (Array(60, 5, between=True), 0),  # fits: never leaves the chip
        (Array(300), 300),
        (Array(300, 5), 5 * 200 + 100),  # a part of 100 stays from pass to pass
        (Array(300, 5, between=True), 5 * 200),
    ],
)
def test_a_perfect_cache(array, moved):
    assert array.moved(replace(H100, l2_bytes=100)) == moved


def test_bounds_are_never_below_what_the_products_need():
    for entry in gpu_model.record()["shapes"]:
        for gpu in GPUS:
            found = entry["gpus"][gpu.name]
            assert found["bound_s"] >= entry["flops"] / gpu.matrix_flops
            assert found["bound_s"] == found["products_s"] + found["row_kernels_s"]


def test_a_faster_gpu_has_a_lower_bound():
    for entry in gpu_model.record()["shapes"]:
        bounds = [entry["gpus"][gpu.name]["bound_s"] for gpu in GPUS]
        assert bounds == sorted(bounds, reverse=True)


def test_published_rates_are_below_the_peak():
    """A figure above it would be misread."""
    for published in PUBLISHED:
        beside = gpu_model.beside(published)
        peak = next(gpu.matrix_flops for gpu in GPUS if gpu.name == published.gpu)
        assert 0.05 < beside["flops_per_s"] / peak < 1


def test_peaks_agree_with_units_and_clocks():
    """Matrix multiply-adds of a multiprocessor each clock: 1024, 2048 and 4096."""
    for gpu, per_clock in ((A100, 1024), (H100, 2048), (H200, 2048), (B200, 4096)):
        clock = gpu.matrix_flops / (2 * per_clock * gpu.multiprocessors)
        assert 1.4e9 < clock <= 1.005 * gpu.clock_hz < 2.2e9
