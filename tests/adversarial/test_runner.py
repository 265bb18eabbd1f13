"""The command: crashes and hangs of a provider, what is saved, what is printed."""

import json
import shlex
import sys

import pytest

from benchmarks import bench_adversarial as bench
from benchmarks.adversarial import CASES, Failed, runner
from benchmarks.adversarial.case import Case
from benchmarks.adversarial.worker import outcome
from benchmarks.providers import PROVIDERS, Calls, Unsupported, available
from benchmarks.record import RESULTS, load

PASS = {"status": "pass", "detail": None}
CALLS = Calls(logp=lambda *_: None)


def a_case(run) -> Case:
    return Case(name="x", title="", items=(1,), source="", run=run)


def raising(error: Exception):
    def run(_calls: Calls) -> None:
        raise error

    return a_case(run)


@pytest.mark.parametrize(
    ("case", "status", "detail"),
    [
        (a_case(lambda _: "a remark"), "pass", "a remark"),
        (raising(Failed("seen")), "fail", "seen"),
        (raising(Unsupported("no bias")), "unsupported", "no bias"),
        (raising(ValueError("N: got 0")), "unsupported", "ValueError: N: got 0"),
        (
            raising(RuntimeError("at /a/b/c.cpp:9, x/y")),
            "unsupported",
            "RuntimeError: at c.cpp:9, x/y",
        ),
        (raising(AssertionError()), "crash", "AssertionError"),
        (raising(KeyError("x")), "crash", "KeyError: 'x'"),
        (raising(RuntimeError("can't allocate memory")), "unsupported", "needs more than 10 GiB"),
    ],
)
def test_outcomes(case: Case, status: str, detail: str) -> None:
    assert outcome(case, CALLS) == {"status": status, "detail": detail}


def test_a_provider_that_crashes_or_hangs_does_not_end_the_run(tmp_path, monkeypatch) -> None:
    """A stand-in for Python that answers, dies at the second case and hangs at the fourth."""
    script, stub = tmp_path / "stub.py", tmp_path / "python"
    script.write_text(
        "import os, signal, sys, time\n"
        "for name in sys.stdin:\n"
        f"    if name.strip() == {CASES[1].name!r}: os.kill(os.getpid(), signal.SIGSEGV)\n"
        f"    if name.strip() == {CASES[3].name!r}: time.sleep(60)\n"
        '    print(\'{"status": "pass", "detail": null}\', flush=True)\n'
    )
    # Python is not on the script's first line: a path with a space cannot stand there.
    stub.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))}\n")
    stub.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(stub))
    seen = {case.name: o for case, o in runner.run("any", CASES[:5], timeout=3.0)}
    assert [o["status"] for o in seen.values()] == ["pass", "crash", "pass", "timeout", "pass"]
    assert "SIGSEGV" in seen[CASES[1].name]["detail"]


def test_a_worker_answers() -> None:
    chosen = [case for case in CASES if case.name in ("vocab-2", "one-row")]
    seen = list(runner.run("torch", chosen, timeout=120.0))
    assert seen == [(case, PASS) for case in chosen]


def test_saving_keeps_the_providers_that_did_not_run() -> None:
    first = bench.record({"torch": {case.name: PASS for case in CASES}}, None)
    failed = {"status": "fail", "detail": "NaN"}
    both = bench.record({"ours-cpu": {case.name: failed for case in CASES}}, first)
    assert list(both["providers"]) == ["ours-cpu", "torch"]
    assert all(c["outcomes"] == {"torch": PASS, "ours-cpu": failed} for c in both["cases"])
    again = bench.record({"torch": {case.name: failed for case in CASES}}, both)
    assert again["cases"][0]["outcomes"]["torch"] == failed
    assert json.loads(json.dumps(again)) == again


def test_the_table_has_a_letter_for_each_case_and_counts() -> None:
    seen = {case.name: PASS for case in CASES} | {"no-rows": {"status": "timeout", "detail": ""}}
    text = bench.table({"torch": seen}, list(CASES))
    assert len([line for line in text.splitlines() if line.endswith(" .")]) == len(CASES) - 1
    assert f"{len(CASES) - 1} pass, 1 timeout" in text


def test_the_saved_results_match_the_cases() -> None:
    saved = load(bench.NAME)
    now = bench.record({}, saved)
    for part in ("items", "not_applicable"):
        want = json.loads(json.dumps(now[part]))
        assert saved[part] == want, f"{part}: run python -m benchmarks.bench_adversarial --save"
    described = [{k: v for k, v in c.items() if k != "outcomes"} for c in saved["cases"]]
    assert described == [{k: v for k, v in c.items() if k != "outcomes"} for c in now["cases"]]
    assert {p.name for p in PROVIDERS if p.serves("cpu")} == set(saved["providers"])
    assert all(set(c["outcomes"]) == set(saved["providers"]) for c in saved["cases"])


def test_rivals_are_pinned_to_the_versions_in_the_file() -> None:
    lines = (RESULTS.parent / "rivals.txt").read_text().splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    assert {p.requirement for p in PROVIDERS if p.requirement is not None} == pinned


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(ValueError, match="provider: got 'trll', want one of ours-cpu"):
        available(["trll"])
