"""The results of a run on their way to README.md: shown, saved or refused."""

import json

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report import gpu_check, readme
from benchmarks.report.gpu_check import NAMES, RehearsalError, gpu_block, is_rehearsed, read_gpu
from tests.benchmarks.synthetic import MACHINE, case
from tools.gpu_check import files, results

RUN = {"commit": "abc1234", "date": "2026-12-01", "rehearsed": False}
GPU = {"gpu": "NVIDIA H100", "driver": "580.1", "sm_max_mhz": 1980, "power_limit_w": 700.0}


def on_gpu(name: str, ours: float, rivals: dict[str, float], mhz: float, **options) -> dict:
    found = case(rivals, ours=ours, name=name, **options)
    found["sides"]["ours-cpu"]["graph"] = {"outcome": "right", "wall_s": ours / 2}
    machine = (
        MACHINE
        | GPU
        | {"gpu_use": {"sm_mhz": mhz}, "commit": None, "cuda": "13.0", "torch": "2.11.0+cu130"}
    )
    return found | {"device": "cuda", "machine": machine}


def records() -> dict[str, dict]:
    tests = {"passed": 158, "failed": 1, "errors": 0, "skipped": 4, "finished": True}
    failures = [{"test": "tests/gpu/x.py::test_y", "why": "assert 1 == 2"}]
    step = {"launches": 268.0, "host_s": 1.6e-3, "device_s": 1.5e-3, "wall_s": 2e-3}
    return {
        "machine": {
            "machine": MACHINE | GPU | {"torch": "2.11.0+cu130", "cuda": "13.0"},
            "nvidia_smi": {"driver_version": "1", "clocks.max.sm": "2 MHz"},
            "nvcc": "13.0",
            "versions": {"triton": "3.6.0"},
        },
        "tests": {"runs": {"together": tests | {"failures": failures}}},
        "hybrid_loss": {
            "cases": [on_gpu("paper", 2e-3, {"torch": 9e-3}, 1755.2, operation="hybrid step")]
        },
        "linear_logprob": {
            "cases": [on_gpu("large", 40e-3, {"torch": 90e-3, "cce": 30e-3}, 1410.0)]
        },
        "profile": {"backends": {"cuda": step | {"busy_share": 0.75}, "triton": {"error": "no"}}},
        "sanitizer": {"tools": {"memcheck": {"outcome": "clean"}}},
    }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Writes a run's directory."""

    def write(found: dict[str, dict], of: dict = RUN):
        directory = tmp_path / "out"
        directory.mkdir(exist_ok=True)
        monkeypatch.setenv(files.RUN, json.dumps(of))
        for name, record in found.items():
            files.write(directory / f"{name}.json", record)
        monkeypatch.delenv(files.RUN)
        (directory / "summary.txt").write_text(
            "commit abc1234, 2026-12-01\nstage build rc=0 seconds=31 limit=85\n"
            "stage tests rc=124 seconds=140 limit=140\nstage profile skipped left=-3\n"
            "FAILED stage nothing rc=1\n"
        )
        return directory

    return write


@pytest.fixture
def saved(run, tmp_path):
    target = tmp_path / "results" / gpu_check.FOLDER
    results.save(run(records()), None, target)
    return target.parent


def test_saved_results_become_the_table(saved):
    text = gpu_block(read_gpu(saved / gpu_check.FOLDER))
    first, checks, times, memory, launches = text.split("\n\n")
    assert first == (
        "NVIDIA H100, driver 580.1, clock up to 1980 MHz, while measured 1410 to 1755 MHz, power "
        "limit 700 W, torch 2.11.0+cu130, CUDA 13.0, nvcc 13.0, triton 3.6.0, commit abc1234, "
        "2026-12-01."
    )
    assert "`pytest -m gpu` (together): 158 passed, 1 failed, 4 skipped." in checks
    assert "compute-sanitizer memcheck: clean." in checks
    assert "Stages that failed: tests (out of time), profile (no time was left)." in checks
    head, rule, *lines = times.splitlines()
    assert head.count("|") == rule.count("|") == 4
    assert [line.split(" | ")[0] for line in lines] == [
        "| **wavalign_fast**", "| wavalign_fast, as a graph", "| Rival torch", "| Rival cce",
        "| *three products alone*",
    ]  # fmt: skip
    assert lines[0].endswith("| **2.00 ms** | 40.0 ms |")
    assert lines[1].endswith("| 1.00 ms | 20.0 ms |")
    assert lines[3].endswith("|  | **30.0 ms** |")
    assert "**10 MiB**" in memory and "as a graph" not in memory
    assert "cuda: 268 launches, host 1.60 ms, device 1.50 ms of 2.00 ms (busy 75%)" in launches
    assert "triton: no" in launches


def test_a_commit_with_uncommitted_changes_is_shown_as_one(run):
    shown = results.show(run(records(), RUN | {"commit": "abc1234-dirty"}))
    assert "commit abc1234 with uncommitted changes, 2026-12-01." in shown


def test_the_page_shows_what_was_saved_and_says_where_nothing_was(saved):
    page = "docs/gpu.md"
    pages = {page: readme.read_pages()[page]}
    known = report.read_records(report.RESULTS)
    nothing = readme.rendered(pages, known | {"gpu_check": None})
    assert "has not run on a GPU yet" in nothing[page] and "(../tools/README.md)" in nothing[page]
    measured = report.read_records(saved)["gpu_check"]
    assert set(measured) == set(NAMES)
    full = readme.rendered(pages, known | {"gpu_check": measured})
    assert "has not run on a GPU" not in full[page] and "268 launches" in full[page]
    assert readme.rendered(full, known | {"gpu_check": None}) == nothing


def test_every_saved_case_knows_its_commit(saved):
    for name in ("hybrid_loss", "linear_logprob"):
        record = json.loads((saved / gpu_check.FOLDER / f"{name}.json").read_text())
        assert record["run"] == RUN
        assert [one["machine"]["commit"] for one in record["cases"]] == ["abc1234"]


def test_an_unknown_commit_is_asked_for(run, tmp_path):
    directory = run(records(), RUN | {"commit": ""})
    with pytest.raises(results.ResultsError, match="give --commit"):
        results.save(directory, None, tmp_path / "to")
    results.save(directory, "fed4321", tmp_path / "to")
    assert json.loads((tmp_path / "to" / "machine.json").read_text())["run"]["commit"] == "fed4321"


@pytest.mark.parametrize("where", ["run", "machine", "case"])
def test_a_rehearsal_is_never_saved_nor_reported(run, tmp_path, where, capsys, monkeypatch):
    """One flag anywhere is enough."""
    found, of = records(), dict(RUN)
    if where == "run":
        of["rehearsed"] = True
    elif where == "machine":
        found["machine"]["machine"]["rehearsed"] = True
    else:
        found["linear_logprob"]["cases"][0]["machine"]["rehearsed"] = True
    directory = run(found, of)
    with pytest.raises(results.ResultsError, match="got a rehearsal"):
        results.save(directory, None, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    directory.rename(tmp_path / gpu_check.FOLDER)
    with pytest.raises(RehearsalError, match="want those of a GPU"):
        read_gpu(tmp_path / gpu_check.FOLDER)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.main([]) == report.main(["--check"]) == 2
    assert "results of a rehearsal" in capsys.readouterr().err


def test_a_rehearsal_is_shown_as_one(run):
    shown = results.show(run(records(), RUN | {"rehearsed": True}))
    assert gpu_check.REHEARSAL in shown and "FAILED tests/gpu/x.py::test_y: assert 1 == 2" in shown
    assert gpu_check.REHEARSAL not in results.show(run(records()))


def test_an_incomplete_run_is_shown(run):
    for name in records():
        assert results.show(run({name: records()[name]}))
    assert "out of time" in results.show(run({}))


def test_a_file_without_a_run_gets_that_of_the_others(run):
    directory = run(records())
    path = directory / "hybrid_loss.json"
    record = json.loads(path.read_text())
    del record["run"]
    path.write_text(json.dumps(record))
    assert results.collected(directory)["hybrid_loss"]["run"] == RUN


def test_a_directory_without_a_run_is_refused(run, tmp_path, capsys):
    assert results.main(["save", str(tmp_path)]) == results.main(["show", str(tmp_path)]) == 2
    assert "has no summary.txt" in capsys.readouterr().err
    found = records()
    del found["machine"]
    with pytest.raises(results.ResultsError, match=r"no machine\.json"):
        results.save(run(found), None, tmp_path / "to")


def test_sides_that_could_not_be_timed_are_named_once(run):
    found = records()
    for one in found["linear_logprob"]["cases"]:
        one["sides"]["trl"] = {"label": "TRL", "outcome": "error", "detail": "out of memory"}
        one["sides"]["verl"] = {"label": "verl", "outcome": "absent", "detail": "not there"}
    text = gpu_block(found)
    assert text.count("TRL, logp") == 1 and "out of memory" in text and "not there" not in text


def test_the_stages_are_read_from_the_summary(run):
    assert results.stages(run({}) / "summary.txt") == {
        "build": {"rc": 0, "seconds": 31, "limit": 85},
        "tests": {"rc": 124, "seconds": 140, "limit": 140},
        "profile": {"left": -3},
    }


def test_a_flag_counts_at_any_depth():
    assert is_rehearsed({"a": [{"b": {"rehearsed": True}}]})
    assert not is_rehearsed({"a": [{"b": {"rehearsed": False}}], "rehearsed": None})
