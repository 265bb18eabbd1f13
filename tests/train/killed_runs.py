"""Kills a training command in steps, in a half-written file and at every rename, and resumes it.

``killed_runs.py DIRECTORY`` prints one JSON object per line: the place of the kill, the exit
statuses, and whether the resumed run equals the undisturbed one. Each command is a forked process:
torch is imported once, and SIGKILL ends the process without any clean-up.
"""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM  # noqa: F401  (before the forks, to import it once)

from wavalign_fast import recipes
from wavalign_fast.cli import main
from wavalign_fast.config.layers import parse_overrides
from wavalign_fast.train.trainer import Trainer

spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("conftest.py"))
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

COMMAND = [
    "train", "--recipe", "toy", "train.steps=2", "train.checkpoint_every=1", "train.eval_items=1",
    "train.keep_checkpoints=2",
]  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(owner: object, name: str, nth: int) -> None:
    """Kills this process at its n-th call of ``owner.name``."""
    call, calls = getattr(owner, name), []

    def fatal(*args, **kwargs):
        calls.append(None)
        if len(calls) == nth:
            die()
        return call(*args, **kwargs)

    setattr(owner, name, fatal)


def kill_in_half_a_file(nth: int) -> None:
    """Kills this process when half of its n-th state file is written."""
    save, calls = torch.save, []

    def fatal(state, file):
        calls.append(None)
        save(state, file)
        if len(calls) == nth:
            file.truncate(file.tell() // 2)
            die()

    torch.save = fatal


def run(name: str, *options: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Runs the command in a process of its own and returns its exit status, -9 if killed."""
    pid = os.fork()
    if pid == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        prepare()
        os._exit(main([*COMMAND, "--name", name, *options]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result(name: str) -> tuple:
    """Returns weights, results and metrics of a run, without times."""
    place = Path("runs", name)
    lines = (place / "metrics.jsonl").read_text().splitlines()
    timed = ("perf/", "time_s", "tokens_per_s")
    return (
        (place / "checkpoint" / "model.safetensors").read_bytes(),
        json.loads((place / "evaluation.json").read_text())["final"],
        [[(k, v) for k, v in json.loads(x).items() if not k.startswith(timed)] for x in lines],
        sorted(path.name for path in (place / "checkpoints").iterdir()),
        [path.name for path in place.iterdir() if path.name.endswith(".checkpoint.tmp")],
    )


def places():
    """Yields the place of each kill and how to prepare the process for it."""
    yield "step 2", lambda: kill_at(toy.ToyTask, "rewards", 2)
    yield "save 1", lambda: kill_at(Trainer, "save", 1)
    yield "state file 2", lambda: kill_in_half_a_file(2)
    for nth in range(1, 100):
        yield f"rename {nth}", lambda nth=nth: kill_at(os, "replace", nth)


def go() -> None:
    os.chdir(sys.argv[1])
    torch.set_num_threads(1)
    sys.modules["torch.utils.tensorboard"] = None  # not what is tested, and slow to start
    recipes.load_recipe = lambda name: (
        {"recipe": "toy", "arm": "both", **parse_overrides(toy.FAST)}, toy.ARMS, toy.ToyTask
    )  # fmt: skip
    sys.modules["wavalign_fast.report"] = type("report", (), {"write_report": lambda root: root})
    assert run("whole") == 0
    for number, (what, prepare) in enumerate(places()):
        name = f"run{number}"
        killed = run(name, prepare=prepare)
        if killed == 0:
            break  # the command has fewer renames
        options = []
        if Path("runs", name, "config.yaml").exists():
            options = ["--resume"]
        elif Path("runs", name, ".wavalign-run.json").exists():
            options = ["--overwrite"]
        resumed = run(name, *options)
        same = resumed == 0 and result(name) == result("whole")
        print(json.dumps({"what": what, "killed": killed, "resumed": resumed, "same": same}))


if __name__ == "__main__":
    go()
