"""The memory of planned runs, on a tiny model, and the section that shows it."""

import pytest

from benchmarks import bench_memory
from benchmarks.memory_section import DESIGN, section
from benchmarks.record import load
from tests.plan.tiny import tiny_config


@pytest.fixture(scope="module")
def record():
    pytest.importorskip("peft")
    sizes = bench_memory.Sizes(rows=2, length=24, live=30, sampled=4, sampled_length=24)
    return {"cases": bench_memory.measured(tiny_config(), bench_memory.runs(sizes))}


def test_every_run_of_the_design_is_measured(record):
    assert {case["name"] for case in record["cases"]} == DESIGN.keys()
    assert {case["name"] for case in load("memory")["cases"]} == DESIGN.keys()


def test_a_tiny_model(record):
    cases = {case["name"]: case for case in record["cases"]}
    phases = {name: case["phases"] for name, case in cases.items()}
    lasting = {name: case["lasting_bytes"] for name, case in cases.items()}
    one, four, eight = (lasting[name] for name in ("1 GPU, fp32 weights", "4 GPUs", "8 GPUs"))
    assert one / 8 < eight < four < one / 3
    copy = "whole copy for rollouts"
    assert copy not in phases["4 GPUs"]["training"] and copy in phases["4 GPUs"]["rollout"]
    assert copy not in phases["1 GPU, bf16 weights, adamw8bit"]["rollout"]
    kept = phases["4 GPUs, copy kept"]
    assert kept["training"] == phases["4 GPUs"]["training"] | {copy: kept["rollout"][copy]}
    with_reference = phases["4 GPUs, reference policy"]["training"]
    assert with_reference["reference"] == with_reference["weights"] / 2
    assert lasting["4 GPUs, reference policy"] > four
    assert "reference" not in phases["1 GPU, LoRA r 64 over bf16"]["training"]


def test_the_section_has_the_numbers_of_the_record(record):
    case = next(case for case in record["cases"] if case["name"] == "4 GPUs")
    case["lasting_bytes"] = 12345 * 2**30
    line = next(line for line in section(record).splitlines() if line.startswith("| 4 GPUs |"))
    assert "12345.0" in line
    assert str(DESIGN["4 GPUs"].lasting) in line
