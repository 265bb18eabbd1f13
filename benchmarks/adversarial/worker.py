"""Runs one provider in its own process: reads case names, writes one JSON line per case."""

import json
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import TextIO

import torch

from ..providers import Calls, Unsupported, available
from . import CASES, REFUSALS, Case, Failed, error_line

MEMORY_CAP = 10 * 2**30
"""Memory that a case may allocate beyond what its process has when it begins."""


def outcome(case: Case, calls: Calls) -> dict[str, str | None]:
    """Runs one case and returns its status and detail; never raises an ``Exception``."""
    try:
        return {"status": "pass", "detail": case.run(calls)}
    except Failed as error:
        return {"status": "fail", "detail": str(error)}
    except Unsupported as error:
        return {"status": "unsupported", "detail": str(error)}
    except REFUSALS as error:
        if "can't allocate memory" in str(error):
            return {
                "status": "unsupported",
                "detail": f"needs more than {MEMORY_CAP / 2**30:.0f} GiB",
            }
        # An assertion without a message tells a user nothing.
        return {"status": "unsupported" if str(error) else "crash", "detail": error_line(error)}
    except Exception as error:
        return {"status": "crash", "detail": error_line(error)}


def _cap_memory() -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        return
    line = next(ln for ln in status.read_text().splitlines() if ln.startswith("VmSize:"))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (int(line.split()[1]) * 1024 + MEMORY_CAP, hard))


def _fresh_compiler() -> None:
    """Drops compiled code, and raises the recompilation limit beyond what a case needs."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64


def serve(name: str, requests: TextIO, replies: TextIO) -> None:
    (loaded,) = available([name])
    if loaded.calls is None:
        raise SystemExit(f"{name}: {loaded.reason}")
    by_name = {case.name: case for case in CASES}
    for line in requests:
        _fresh_compiler()
        _cap_memory()
        torch.manual_seed(0)
        reply = outcome(by_name[line.strip()], loaded.calls)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    # Keeps what a provider prints out of the replies.
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        serve(sys.argv[1], sys.stdin, replies)
