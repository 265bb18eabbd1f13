"""The benchmarks, start to end, on a pretended GPU with interpreted Triton kernels."""

import os
import subprocess
import sys

import pytest

from benchmarks.record import load


def test_every_benchmark_runs_where_it_finds_a_gpu(tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.benchmarks.pretended_gpu", str(tmp_path)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert done.returncode == 0, done.stderr
    cases = load("pretended", tmp_path)["cases"]
    assert [entry["operation"] for entry in cases] == [
        "logp+entropy", "mean CE", "hybrid step", "dpo",
    ]  # fmt: skip
    # A step in one call returns log-probs; one composed of a provider's functions does not.
    assert "logp" in cases[2]["sides"]["ours-triton"]["errors"]
    for entry in cases:
        assert entry["device"] == "cuda" and entry["machine"]["rehearsed"] is True
        sides = entry["sides"]
        assert sides["ours-cuda"]["detail"] == "it is only pretended"
        for name in ("ours-triton", "torch"):
            assert sides[name]["outcome"] == sides[name]["graph"]["outcome"] == "right"
            assert sides[name]["wall_s"] > 0 and sides[name]["graph"]["wall_s"] > 0
