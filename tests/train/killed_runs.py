"""Kills a training command in steps, in half-written files and at renames, and resumes it.

``killed_runs.py DIRECTORY [--world N] [--random KILLS] [--only PLACE ...]`` prints one JSON object
per line: the place of the kill, the exit statuses, and whether the resumed run equals the
undisturbed one. Each rank is a forked process: torch is imported once, and SIGKILL ends the process
without any clean-up. With ``--random`` a rank is killed at a random moment of the run, the others
after it as by torchrun.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen2ForCausalLM  # noqa: F401  (before the forks, to import it once)

from wavalign_fast import recipes
from wavalign_fast.cli import main
from wavalign_fast.config.layers import parse_overrides
from wavalign_fast.train import checkpoint, export, sharded_files
from wavalign_fast.train.sharded_files import load_tensors, saved_tensors
from wavalign_fast.train.trainer import Trainer

spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("conftest.py"))
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

COMMAND = [
    "train", "--recipe", "toy", "train.checkpoint_every=1", "train.eval_items=1",
    "train.keep_checkpoints=2",
]  # fmt: skip
GRACE_S = 60

Prepare = Callable[[int], None]
"""Prepares the process of a rank, e.g. for its death."""


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
    """Kills this process when half of the n-th file that ``torch.save`` writes is written."""
    save, calls = torch.save, []

    def fatal(state, file, **kwargs):
        save(state, file, **kwargs)
        if kwargs:  # not into a file of a checkpoint
            return
        calls.append(None)
        if len(calls) == nth:
            if file.seekable():  # a part file of several ranks is not, and has other tensors yet
                file.truncate(file.tell() // 2)
            die()

    torch.save = fatal


def kill_between_the_renames(nth: int) -> None:
    """Kills this process when the old checkpoint is away and the n-th one not yet in its place."""
    replace, calls = checkpoint.replace_directory, []

    def fatal(*args):
        calls.append(None)
        if len(calls) == nth:
            kill_at(os, "replace", 2)
        replace(*args)

    checkpoint.replace_directory = fatal


def kill_after(seconds: float) -> None:
    """Kills this process at some moment, whatever it does then."""
    threading.Timer(seconds, die).start()


def run(name: str, *options: str, world: int = 1, prepare: Prepare = lambda rank: None) -> int:
    """Runs the command on ``world`` ranks; returns the status of the first that failed, or 0.

    The others are killed then, as by torchrun. A killed rank has status -9.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = {start(name, options, rank, world, port, prepare) for rank in range(world)}
    failed = 0
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if os.waitstatus_to_exitcode(status) and not failed:
            failed = os.waitstatus_to_exitcode(status)
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return failed


def start(
    name: str, options: tuple[str, ...], rank: int, world: int, port: int, prepare: Prepare
) -> int:
    """Forks one rank; returns its process."""
    pid = os.fork()
    if pid:
        return pid
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if world > 1:
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= places | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ["WORLD_SIZE"] = str(world)
    signal.alarm(GRACE_S)  # a rank that waits for ever fails
    prepare(rank)
    os._exit(main([*COMMAND, "--name", name, *options]))


def weights(place: Path) -> object:
    """Returns the weights of a checkpoint and the optimizer's state, comparable."""
    if not (place / "weights").is_dir():
        return (place / "model.safetensors").read_bytes()
    found = {}
    for part in ("weights", "optimizer"):
        tensors = saved_tensors(place / part)
        tensors = {name: torch.empty_like(value, device="cpu") for name, value in tensors.items()}
        load_tensors(place / part, tensors)
        found |= {f"{part} {name}": value.tolist() for name, value in tensors.items()}
    return found


def result(name: str) -> tuple:
    """Returns weights, results and metrics of a run, without times."""
    place = Path("runs", name)
    lines = (place / "metrics.jsonl").read_text().splitlines()
    timed = ("perf/", "memory/", "time_s", "tokens_per_s")
    return (
        weights(place / "checkpoint"),
        json.loads((place / "evaluation.json").read_text())["final"],
        [[(k, v) for k, v in json.loads(x).items() if not k.startswith(timed)] for x in lines],
        sorted(path.name for path in (place / "checkpoints").iterdir()),
        [path.name for path in place.iterdir() if path.name.endswith(".tmp")],
    )


def of_rank(wanted: int, act: Callable[[], None]) -> Prepare:
    return lambda rank: act() if rank == wanted else None


def places(world: int) -> Iterator[tuple[str, Prepare]]:
    """Yields the place of each kill and how to prepare the processes for it."""
    last = world - 1
    yield "step 2", of_rank(last, lambda: kill_at(toy.ToyTask, "rewards", 2))
    if world > 1:
        yield "part file", of_rank(last, lambda: kill_in_half_a_file(40))
        yield "between parts", of_rank(last, lambda: kill_at(sharded_files, "save", 4))
        yield "between renames", of_rank(0, lambda: kill_between_the_renames(2))
        yield "export", of_rank(0, lambda: kill_at(export, "replace_directory", 1))
        return
    yield "save 1", of_rank(0, lambda: kill_at(Trainer, "save", 1))
    yield "state file 2", of_rank(0, lambda: kill_in_half_a_file(2))
    for nth in range(1, 100):
        yield f"rename {nth}", of_rank(0, partial(kill_at, os, "replace", nth))


def moments(world: int, kills: int, seconds: float) -> Iterator[tuple[str, Prepare]]:
    """Yields random moments of a run that takes ``seconds``, and a random rank."""
    source = random.Random(0)
    for _ in range(kills):
        moment, rank = source.uniform(0, seconds), source.randrange(world)
        yield f"rank {rank} after {moment:.2f} s", of_rank(rank, partial(kill_after, moment))


def go(directory: str, world: int, kills: int, only: list[str]) -> None:
    os.chdir(directory)
    torch.set_num_threads(1)
    sys.modules["torch.utils.tensorboard"] = None  # not what is tested, and slow to start
    recipes.load_recipe = lambda name: (
        {"recipe": "toy", "arm": "both", **parse_overrides(toy.FAST)}, toy.ARMS, toy.ToyTask
    )  # fmt: skip
    sys.modules["wavalign_fast.report"] = type("report", (), {"write_report": lambda root: root})
    steps = f"train.steps={8 if kills else 2}"
    began = time.perf_counter()
    assert run("whole", steps, world=world) == 0
    seconds = time.perf_counter() - began
    whole = result("whole")
    deaths = moments(world, kills, seconds) if kills else places(world)
    for number, (what, prepare) in enumerate(deaths):
        if only and what not in only:
            continue
        name = f"run{number}"
        killed = run(name, steps, world=world, prepare=prepare)
        if killed == 0 and not kills:
            break  # the command has fewer renames
        options = []
        if Path("runs", name, "config.yaml").exists():
            options = ["--resume"]
        elif Path("runs", name, ".wavalign-run.json").exists():
            options = ["--overwrite"]
        resumed = run(name, steps, *options, world=world)
        same = resumed == 0 and result(name) == whole
        print(json.dumps({"what": what, "killed": killed, "resumed": resumed, "same": same}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    go(given.directory, given.world, given.random, given.only)
