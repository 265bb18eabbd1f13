"""The arms of a recipe over several seeds: mean and spread of their held-out figures.

    python -m benchmarks.bench_recipe [--arms a,b] [--seeds 0,1,2] [--jobs 2] [--save]

Every run is the ordinary command `wavalign-fast train`, one process and one thread each; runs that
are there already are finished or kept, not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .record import machine, save

RECIPE = "spoken-sums"
ARMS = "wavalign,on-policy,rl-all,sft-imperfect"


def train(arm: str, seed: int, output: Path) -> dict[str, Any]:
    """Trains and evaluates one arm with one seed; its evaluation record."""
    name = f"{RECIPE}-{arm}-seed{seed}"
    command = [sys.executable, "-m", "wavalign_fast.cli", "train", "--recipe", RECIPE]
    command += ["--arm", arm, "--seed", str(seed), "--name", name, "--output", str(output)]
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
    names = ("text_accuracy", "speech_matches_text", "speech_says_sum")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names)


def spread(records: list[dict[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and the values of every figure over the seeds."""
    figures = {}
    for name in records[0][part]:
        values = [record[part][name] for record in records]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[name] = {"mean": statistics.mean(values), "std": deviation, "values": values}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--save", action="store_true", help="write results/spoken_sums.json")
    arguments = parser.parse_args()
    arms, seeds = arguments.arms.split(","), [int(s) for s in arguments.seeds.split(",")]
    facts = machine()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = {
            arm: [pool.submit(train, arm, seed, arguments.output) for seed in seeds] for arm in arms
        }
        records = {arm: [job.result() for job in jobs] for arm, jobs in pending.items()}
    report: dict[str, Any] = {"recipe": RECIPE, "machine": facts, "seeds": seeds, "arms": {}}
    report["base"] = spread(next(iter(records.values())), "base")
    for arm, runs in records.items():
        report["arms"][arm] = spread(runs, "final")
        report["arms"][arm]["seconds"] = {"values": [run["seconds"] for run in runs]}
    if arguments.save:
        print(f"wrote {save('spoken_sums', report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
