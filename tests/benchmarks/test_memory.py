"""The memory of planned runs, on a tiny model."""

import pytest

from benchmarks import bench_memory
from tests.plan.tiny import tiny_config


@pytest.fixture(scope="module")
def record():
    sizes = bench_memory.Sizes(rows=2, length=24, live=30, sampled=4, sampled_length=24)
    return {"cases": bench_memory.measured(tiny_config(), bench_memory.runs(sizes))}


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
    assert lasting["4 GPUs, reference policy"] > four
