"""Trains the arms of a recipe with several seeds: mean and spread of the held-out figures.

    python -m benchmarks.bench_recipe [--arms a,b] [--seeds 0,1,2] [--jobs 2] [--quick | --save]

Each run is the ordinary command `wavalign-fast train`, in its own process with one thread. Runs are
kept by commit: an existing run is resumed or reused, not repeated. `--quick` trains two steps of
every arm and discards them, to check that the full command will work.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .commit import refuse_dirty
from .record import machine, save

RECIPE = "spoken-sums"
ARMS = "wavalign,on-policy,rl-all,sft-imperfect"
QUICK = ("train.steps=2", "train.eval_items=8")


def train(arm: str, seed: int, output: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Trains and evaluates one arm with one seed; returns its evaluation record."""
    name = f"{RECIPE}-{arm}-seed{seed}"
    command = [sys.executable, "-m", "wavalign_fast.cli", "train", "--recipe", RECIPE]
    command += ["--arm", arm, "--seed", str(seed), "--name", name, "--output", str(output)]
    command += settings
    if (output / name).exists():
        command.append("--resume")
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread())
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    record: dict[str, Any] = json.loads((output / name / "evaluation.json").read_text())
    print(f"{name}: {record['seconds']:.0f} s, {summary(record['final'])}", flush=True)
    return record


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def summary(metrics: dict[str, float]) -> str:
    names = ("text_accuracy", "text_accuracy_greedy", "speech_matches_text", "speech_says_sum")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names)


def spread(records: list[dict[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and the values of every figure over the seeds."""
    figures = {}
    for name in records[0][part]:
        values = [record[part][name] for record in records]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[name] = {"mean": statistics.mean(values), "std": deviation, "values": values}
    return figures


def measure(
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    jobs: int,
    output: Path,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """All runs, ``jobs`` at a time, as the record of `results/spoken_sums.json`."""
    report: dict[str, Any] = {"recipe": RECIPE, "machine": machine(), "seeds": list(seeds)}
    with ThreadPoolExecutor(jobs) as pool:
        pending = {
            arm: [pool.submit(train, arm, seed, output, settings) for seed in seeds] for arm in arms
        }
        records = {arm: [job.result() for job in runs] for arm, runs in pending.items()}
    report |= {"jobs": jobs, "arms": {}, "base": spread(next(iter(records.values())), "base")}
    for arm, runs in records.items():
        report["arms"][arm] = spread(runs, "final")
        report["arms"][arm]["seconds"] = {"values": [run["seconds"] for run in runs]}
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path, help="by default runs/bench/COMMIT")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="two steps of every arm, not kept")
    kind.add_argument("--save", action="store_true", help="write results/spoken_sums.json")
    arguments = parser.parse_args(argv)
    arms, seeds = arguments.arms.split(","), [int(s) for s in arguments.seeds.split(",")]
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            measure(arms, seeds[:1], jobs=arguments.jobs, output=Path(folder), settings=QUICK)
        return 0
    commit = machine()["commit"] or "no-commit"
    if arguments.save:
        # Kept runs may come from other code than the current one, and nothing would show it.
        refuse_dirty(parser, commit)
    output = arguments.output or Path("runs/bench") / commit
    report = measure(arms, seeds, jobs=arguments.jobs, output=output)
    if arguments.save:
        print(f"wrote {save('spoken_sums', report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
