"""The programs that the stages of tools/gpu_check.sh run, tested on made-up outputs."""

import json
import os
import textwrap
from types import SimpleNamespace

import pytest
import torch

from benchmarks import case
from benchmarks.shapes import HybridShape
from tests.benchmarks.synthetic import case as some_case
from tools.gpu_check import bench, files, machine, outcomes, sanitizer, step_profile

pytest_plugins = ["pytester"]

TESTS = "12 passed, 3 deselected in 4.21s\n"
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
HAZARDS = "========= RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("status", "output", "outcome", "errors"),
    [
        (0, TESTS + CLEAN, "clean", 0),
        (0, "=== 12 passed in 4.21s ===\n" + HAZARDS.format(0, 0), "clean", 0),
        (99, TESTS + "========= ERROR SUMMARY: 1 error\n", "found something", 1),
        (99, TESTS + HAZARDS.format(2, 2), "found something", 2),
        (1, "1 failed, 11 passed in 4.21s\n" + CLEAN, "tests failed", 0),
        (0, "12 skipped in 4.21s\n" + CLEAN, "no test ran", 0),
        (5, "12 deselected in 4.21s\n" + CLEAN, "no test ran", 0),
        (0, TESTS, "the tool did not get to its summary", None),
        (
            255,
            "========= Error: Device not supported\n",
            "the tool did not get to its summary",
            None,
        ),
    ],
)
def test_a_sanitizer_is_clean_only_if_tests_passed(status, output, outcome, errors):
    found = sanitizer.run_outcome(status, output)
    assert (found["outcome"], found["errors"]) == (outcome, errors)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a compute-sanitizer on the PATH."""

    def make(body: str) -> None:
        path = tmp_path / sanitizer.PROGRAM
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return make


def test_a_sanitizer_writes_before_and_after(program, tmp_path, capsys):
    path = tmp_path / "sanitizer.json"
    program(
        f'[ "$1" = --help ] && exit; cp {path} {path}.before; echo "got $@"; '
        'echo "2 passed in 1s"; echo "ERROR SUMMARY: 0 errors"'
    )
    assert sanitizer.main("memcheck", str(path), "--", "pytest", "-x") == 0
    assert json.loads(path.read_text())["tools"]["memcheck"]["outcome"] == "clean"
    before = json.loads(path.with_name("sanitizer.json.before").read_text())
    assert before["tools"]["memcheck"]["outcome"] == "not finished"
    # An unsupported option is not passed.
    assert "--kernel-name" not in capsys.readouterr().out
    program('[ "$1" = --help ] && echo "--kernel-name"; echo "got $@"')
    assert sanitizer.main("racecheck", str(path), "--", "pytest") == 1
    assert "got --tool racecheck --kernel-name kns=wavalign " in capsys.readouterr().out
    assert set(json.loads(path.read_text())["tools"]) == {"memcheck", "racecheck"}


def test_a_machine_without_the_sanitizer_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "sanitizer.json"
    assert sanitizer.main("memcheck", str(path), "--", "pytest") == 3
    outcome = json.loads(path.read_text())["tools"]["memcheck"]["outcome"]
    assert outcome == "there is no compute-sanitizer"


@pytest.mark.parametrize(
    ("capability", "archs"),
    [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100a"), ((10, 3), "103a"),
     ((12, 0), "120")],
)  # fmt: skip
def test_kernels_are_built_for_the_card_that_is_there(capability, archs):
    assert machine.archs(capability) == archs
    known = {"80", "89", "90", "100", "103", "120"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WAVALIGN_CUDA_ARCHS", archs)
        assert [str(arch) for arch in machine.build_cuda.architectures(known)] == [archs]


def test_a_machine_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RuntimeError, match="sees no GPU"):
        machine.facts()


def row(key: str, count: int, device: str = "CUDA", micros: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(
        key=key, count=count, device_type=SimpleNamespace(name=device),
        self_device_time_total=micros,
    )  # fmt: skip


def test_launches_are_counted_on_the_device():
    rows = [
        row("gemm", 6, micros=2000.0),
        row("hybrid_rows", 2, micros=1000.0),
        row("Memcpy HtoD (Pinned -> Device)", 10, micros=20.0),
        row("Memset (Device)", 4, micros=4.0),
        row("cudaLaunchKernel", 8, "CPU", 77.0),
        row("cudaStreamSynchronize", 2, "CPU"),
        row("aten::mm", 6, "CPU", 2000.0),
    ]
    found = step_profile.summary(rows, {"wall_s": 2e-3, "host_s": 1e-3}, 2)
    assert (found["kernels"], found["copies"], found["fills"], found["launches"]) == (4, 5, 2, 11)
    assert found["device_s"] == pytest.approx(1.512e-3)
    assert found["busy_share"] == pytest.approx(0.756)
    assert found["calls"] == {"cudaLaunchKernel": 4, "cudaStreamSynchronize": 1}
    assert [kernel["name"] for kernel in found["slowest"][:2]] == ["gemm", "hybrid_rows"]
    line = step_profile.line("cuda", found)
    assert "2.000 ms a step, host 1.000 ms, 11 launches, device 1.512 ms, busy 76%" in line


def test_a_profile_without_kernels_is_no_measurement():
    with pytest.raises(RuntimeError, match="the profiler saw no kernel"):
        step_profile.summary([row("aten::mm", 6, "CPU")], {"wall_s": 1.0, "host_s": 1.0}, 1)
    line = step_profile.line("cuda", {"wall_s": 1.0, "host_s": 0.5, "error": "no kernel"})
    assert line == "cuda: 1000.000 ms a step, host 500.000 ms; no kernel"
    assert step_profile.line("triton", {"error": "absent"}) == "triton: absent"


def test_the_parts_have_the_requested_shapes_and_providers():
    shapes = {c.shape.name: c.shape for part in bench.PARTS.values() for c in part}
    assert shapes["long-answers"].live == 2250 and shapes["vita-audio"].live == 252
    large = shapes["h4096-v131072"]
    assert (large.rows, large.hidden, large.vocab) == (8192, 4096, 131072)
    for part in bench.PARTS.values():
        for comparison in part:
            assert set(comparison.providers) >= {"ours-cuda", "ours-triton", "torch"}
            hybrid = isinstance(comparison.shape, HybridShape)
            assert comparison.benchmark == ("hybrid_loss" if hybrid else "linear_logprob")


def test_a_failed_comparison_does_not_lose_the_others(tmp_path, monkeypatch):
    """And the later comparison of a case replaces the earlier one."""
    outcomes_of = iter([{"torch": 2.0}, RuntimeError("out of memory"), {"torch": 2.0, "trl": 3.0}])

    def record_case(name, built, options):
        outcome = next(outcomes_of)
        if isinstance(outcome, Exception):
            raise outcome
        return some_case(outcome, name=name)

    monkeypatch.setenv(files.RUN, json.dumps({"commit": "abc1234"}))
    monkeypatch.setattr(case, "record_case", record_case)
    monkeypatch.setattr(bench.Comparison, "build", lambda self, options: None)
    monkeypatch.setitem(bench.PARTS, "hybrid", bench.PARTS["hybrid"][:1] * 3)
    assert bench.run_part("hybrid", tmp_path) == 1
    record = json.loads((tmp_path / "hybrid_loss.json").read_text())
    assert record["run"] == {"commit": "abc1234"}
    assert [list(one["sides"]) for one in record["cases"]] == [
        ["ours-cpu", "torch", "trl", "three_gemms"]
    ]
    with pytest.raises(ValueError, match="part: got 'big', want one of hybrid"):
        bench.main("big", str(tmp_path))


SOME_TESTS = """
    import pytest

    @pytest.mark.parametrize("n", range(3))
    def test_passes(n):
        pass

    def test_fails():
        assert 1 == 2, "a reason"

    def test_skips():
        pytest.skip("because")

    @pytest.mark.xfail
    def test_fails_as_expected():
        assert False

    @pytest.fixture
    def broken():
        raise OSError("no such thing")

    def test_errs(broken):
        pass
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]])
def test_outcomes_are_counted_and_failures_listed(pytester, workers, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd(), prepend=os.pathsep)
    pytester.makepyfile(textwrap.dedent(SOME_TESTS))
    plugin = ["-p", "tools.gpu_check.outcomes", "--outcomes", "tests.json"]
    done = pytester.runpytest_inprocess(*plugin, "--outcomes-run", "some", *workers)
    done.assert_outcomes(passed=3, failed=1, skipped=1, xfailed=1, errors=1)
    run = json.loads((pytester.path / "tests.json").read_text())["runs"]["some"]
    counts = {name: run[name] for name in ("passed", "failed", "skipped", "xfailed", "errors")}
    assert counts == {"passed": 3, "failed": 1, "skipped": 1, "xfailed": 1, "errors": 1}
    assert run["finished"] is True and len(run["slowest"]) == 6  # all that ran
    reasons = {failure["test"].rpartition("::")[2]: failure["why"] for failure in run["failures"]}
    assert "a reason" in reasons["test_fails"] and "no such thing" in reasons["test_errs"]


def test_a_file_that_cannot_be_imported_is_an_error(pytester):
    pytester.makepyfile("import nothing_of_this_name")
    pytester.runpytest_inprocess("-p", "tools.gpu_check.outcomes", "--outcomes", "tests.json")
    run = json.loads((pytester.path / "tests.json").read_text())["runs"]["tests"]
    assert run["errors"] == 1 and "nothing_of_this_name" in run["failures"][0]["why"]


def test_a_run_with_only_skipped_tests_fails(pytester):
    pytester.makepyfile("import pytest\n\ndef test_skips():\n    pytest.skip('no GPU')")
    plugin = ["-p", "tools.gpu_check.outcomes", "--outcomes", "tests.json"]
    assert pytester.runpytest_inprocess(*plugin).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    pytester.makepyfile("def test_passes():\n    pass")
    assert pytester.runpytest_inprocess(*plugin).ret == pytest.ExitCode.OK


def test_a_killed_run_leaves_the_outcomes_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "EVERY_S", 0.0)
    path = tmp_path / "tests.json"
    watched = outcomes.Outcomes(path, "together")
    assert json.loads(path.read_text())["runs"]["together"]["finished"] is False
    passed = SimpleNamespace(
        failed=False, skipped=False, when="call", outcome="passed", duration=0.1, nodeid="a"
    )
    watched.pytest_runtest_logreport(passed)
    known = json.loads(path.read_text())["runs"]["together"]
    assert (known["passed"], known["finished"]) == (1, False)
