"""The saved table of who fails what still holds, where the rivals are installed."""

import pytest

from benchmarks import bench_adversarial as bench
from benchmarks.adversarial import CASES
from benchmarks.adversarial.runner import run
from benchmarks.providers import PROVIDERS, available, version
from benchmarks.record import load, machine

RIVALS = [p for p in PROVIDERS if p.requirement is not None and p.serves("cpu")]
SAVED = load(bench.NAME)
# Inductor compiles each case anew, which takes minutes; the largest needs gigabytes.
COMPILED = {"cce"}
QUICK = [case for case in CASES if not case.slow and case.name != "memory"]


@pytest.mark.slow
@pytest.mark.parametrize("provider", RIVALS, ids=lambda p: p.name)
def test_rivals_do_what_the_table_says(provider) -> None:
    (loaded,) = available([provider.name])
    if loaded.calls is None:
        pytest.skip(str(loaded.reason))
    if provider.name in COMPILED:
        pytest.skip("compiles every case")
    saved = SAVED["providers"][provider.name]
    if version(provider) != saved["version"]:
        pytest.skip(f"version {version(provider)}, the table is of {saved['version']}")
    table = {case["name"]: case["outcomes"][provider.name]["status"] for case in SAVED["cases"]}
    here = machine()
    if any(here[key] != SAVED["machine"][key] for key in ("cpu", "isa", "torch")):
        # The order of float sums depends on the machine; faults of logic do not.
        table = {k: v for k, v in table.items() if not k.startswith("batch-invariance")}
    seen = {case.name: o for case, o in run(provider.name, QUICK, timeout=300.0)}
    others = {
        name: f"{o['status']}, not {table[name]}: {o['detail']}"
        for name, o in seen.items()
        if name in table and o["status"] != table[name]
    }
    assert not others
