"""A pytest plugin that writes the outcomes of tests while they run.

    pytest -p tools.gpu_check.outcomes --outcomes FILE --outcomes-run NAME

With pytest-xdist the controlling process writes. A run that is killed at its time limit leaves the
outcomes known one second before.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_check import files

EVERY_S = 1.0
SLOWEST = 10
FAILURES = 40
"""Further failures are counted but not listed."""
WHY_CHARACTERS = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="the JSON file")
    parser.addoption("--outcomes-run", default="tests", help="name of the run in the file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--outcomes") and not hasattr(config, "workerinput"):
        path, name = config.getoption("--outcomes"), config.getoption("--outcomes-run")
        config.pluginmanager.register(Outcomes(path, name), "gpu_check_outcomes")


class Outcomes:
    """Counts reports, and keeps the reasons of failures."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, str]] = []
        self.durations: list[tuple[float, str]] = []
        self.started = self.written = time.monotonic()
        self.write(finished=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            # An error in a fixture's teardown counts beside the test's own outcome.
            self.counts["failed" if report.when == "call" else "errors"] += 1
            self.failed(report)
        elif report.when == "call" or (report.skipped and report.when == "setup"):
            self.counts["xfailed" if hasattr(report, "wasxfail") else report.outcome] += 1
        if report.when == "call":
            self.durations.append((report.duration, report.nodeid))
        if time.monotonic() > self.written + EVERY_S:
            self.write(finished=False)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["errors"] += 1
            self.failed(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and not self.counts["passed"]:
            # All were skipped, for example because torch sees no GPU: nothing was tested.
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        self.write(finished=True)

    def failed(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if len(self.failures) < FAILURES:
            crash = getattr(report.longrepr, "reprcrash", None)
            # A traceback without one ends with the reason.
            whole = " ".join((crash.message if crash else report.longreprtext).split())
            why = whole[:WHY_CHARACTERS] if crash else whole[-WHY_CHARACTERS:]
            self.failures.append({"test": report.nodeid, "why": why})

    def write(self, *, finished: bool) -> None:
        self.written = time.monotonic()
        self.durations = sorted(self.durations, reverse=True)[:SLOWEST]
        record: dict[str, Any] = {
            "finished": finished,
            "seconds": round(self.written - self.started, 1),
            **{name: self.counts[name] for name in ("passed", "failed", "errors", "skipped")},
            "xfailed": self.counts["xfailed"],
            "failures": self.failures,
            "slowest": [{"test": test, "seconds": s} for s, test in self.durations],
        }
        files.put(self.path, "runs", self.name, record)
