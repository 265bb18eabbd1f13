"""`import wavalign_fast` is cheap beside torch, even with every public name."""

import json
import os
import subprocess
import sys

import pytest

MOST_MODULES = 10
"""Modules beyond torch's and ours. A second of imports loads hundreds of modules, and unlike the
time their number does not depend on the load of the machine."""

# The first line loads what torch itself may load, so that only our own imports count.
SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
import wavalign_fast
for name in wavalign_fast.__all__:
    getattr(wavalign_fast, name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""

HEAVY = {"transformers", "triton", "pydantic", "numpy", "yaml", "rich", "tensorboard"}
OURS = {"cli", "config", "data", "recipes", "report", "rollout", "train"}


@pytest.fixture(scope="module")
def modules() -> list[str]:
    """Returns the modules that an import loads, in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


def test_import_loads_few_modules(modules):
    assert "wavalign_fast" in modules
    others = [name for name in modules if name.partition(".")[0] != "wavalign_fast"]
    assert len(others) <= MOST_MODULES, others


def test_import_loads_nothing_heavy(modules):
    loaded = {name.split(".")[0] for name in modules} & HEAVY
    assert not loaded, f"import wavalign_fast imports {sorted(loaded)}"
    parts = {name.split(".")[1] for name in modules if name.startswith("wavalign_fast.")}
    assert not parts & OURS, f"import wavalign_fast imports its own {sorted(parts & OURS)}"
