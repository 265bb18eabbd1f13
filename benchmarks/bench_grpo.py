"""A step of GRPO: our trainer beside TRL's, on the same model, prompts and rewards, on one thread.

    python -m benchmarks.bench_grpo [--size recipe] [--side ours] [--rounds 5] [--save]

First the gradient of every side, of the whole model on the same completions, is compared with ours
in fp32. Then each run is a process of its own, and the sides take turns. CPU seconds decide, for
they change little when others use the machine. At last the lengths and the rewards of what the
sides have sampled are compared: they must be alike, or the sides have not done the same work.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .commit import refuse_dirty
from .grpo.sides import SIDES, WARM, disagreement, missing, run
from .grpo.work import SIZES, Size
from .record import installed_version, load, machine, save
from .report.grpo import grpo_markdown

NAME = "grpo"
BASELINE = "ours"
MOST_DEVIATIONS = 4.0
"""Standard errors by which two sides' mean lengths and mean rewards may differ."""


class WrongWorkError(Exception):
    """A side has another gradient, or samples from another distribution."""


def child(what: str, side: str, size: Size, seed: int) -> Any:
    """The result of one process on one thread."""
    words = [sys.executable, "-m", f"{__package__}.bench_grpo"]
    words += [what, side, size.name, str(seed)]
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])


def check_gradients(sides: Sequence[str], size: Size) -> dict[str, float]:
    """The distance of each side's gradient from ours in fp32.

    Raises:
        WrongWorkError: it exceeds the side's tolerance.
    """
    errors = {}
    for side in sides:
        if side == BASELINE:
            errors[side] = 0.0
            continue
        errors[side] = child("--check", side, size, 0)
        print(f"{size.name} {side}: gradient off by {errors[side]:.1e}", flush=True)
        if not errors[side] <= SIDES[side].tolerance:
            raise WrongWorkError(
                f"{size.name} {side}: gradient off by {errors[side]:.1e}, "
                f"want at most {SIDES[side].tolerance:.0e}"
            )
    return errors


def check_work(runs: Mapping[str, Sequence[Mapping[str, Any]]], size: Size) -> None:
    """Compares what the sides have sampled with what ours has.

    Raises:
        WrongWorkError: another number of completions, or a mean length or reward that differs by
            more than chance.
    """
    wanted = (WARM + size.steps) * size.completions
    for side, found in runs.items():
        counts = {len(one["lengths"]) for one in found}
        if counts != {wanted}:
            raise WrongWorkError(f"{size.name} {side}: {counts} completions, want {wanted}")
        for name in ("lengths", "rewards"):
            ours = group_means(runs[BASELINE], name, size.group)
            z = deviations(group_means(found, name, size.group), ours)
            if abs(z) > MOST_DEVIATIONS:
                raise WrongWorkError(
                    f"{size.name} {side}: mean of {name} {z:.1f} standard errors from ours, "
                    f"want at most {MOST_DEVIATIONS:.0f}"
                )


def group_means(runs: Sequence[Mapping[str, Any]], name: str, group: int) -> list[float]:
    """The mean over each prompt's completions, which are alike, of a figure."""
    values = [value for one in runs for value in one[name]]
    return [statistics.mean(values[i : i + group]) for i in range(0, len(values), group)]


def deviations(one: Sequence[float], other: Sequence[float]) -> float:
    """The difference of two means in standard errors."""
    gap = statistics.mean(one) - statistics.mean(other)
    error = math.hypot(*(statistics.stdev(values) / len(values) ** 0.5 for values in (one, other)))
    return 0.0 if gap == 0 else gap / error if error else math.copysign(math.inf, gap)


def summary(runs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The medians over the rounds, and the median and range of the times over ours."""
    figures: dict[str, Any] = {
        name: statistics.median(one[name] for one in runs)
        for name in ("cpu_s", "wall_s", "peak_MiB")
    }
    figures["phases_cpu_s"] = {
        phase: statistics.median(one["phases_cpu_s"][phase] for one in runs)
        for phase in runs[0]["phases_cpu_s"]
    }
    for name in ("cpu_s", "peak_MiB"):
        ratios = [a[name] / b[name] for a, b in zip(runs, ours, strict=True)]
        figures[f"{name}_over_ours"] = {
            "median": statistics.median(ratios), "range": [min(ratios), max(ratios)],
        }  # fmt: skip
    figures["runs_cpu_s"] = [one["cpu_s"] for one in runs]
    figures["mean_length"] = statistics.mean(n for one in runs for n in one["lengths"])
    figures["mean_reward"] = statistics.mean(r for one in runs for r in one["rewards"])
    return figures


def equal_groups(runs: Sequence[Mapping[str, Any]], group: int) -> float:
    """The share of prompts whose completions have equal rewards, and so no gradient."""
    values = [reward for one in runs for reward in one["rewards"]]
    groups = [values[i : i + group] for i in range(0, len(values), group)]
    return sum(len(set(found)) == 1 for found in groups) / len(groups)


def measure(size: Size, sides: Sequence[str], rounds: int) -> dict[str, Any]:
    """The record of a size.

    Raises:
        WrongWorkError: the sides have not done the same work, so no time is worth anything.
    """
    facts, loads = machine(), []
    errors = check_gradients(sides, size)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            loads.append(os.getloadavg()[0])
            runs[side].append(child("--run", side, size, number))
            print(f"{size.name} {number} {side}: {runs[side][-1]['cpu_s']:.3f} CPU s", flush=True)
    check_work(runs, size)
    return {
        "size": {
            "title": size.title, "prompts": size.prompts, "group": size.group,
            "length": size.length, "steps": size.steps,
        },
        "machine": facts | {"threads": 1, "load": statistics.median(loads)},
        "versions": {name: installed_version(name) for name in ("trl", "transformers")},
        "rounds": rounds,
        "equal_groups": equal_groups(runs[BASELINE], size.group),
        "sides": {
            side: {"label": SIDES[side].label, "ours": SIDES[side].ours}
            | {"gradient_error": errors[side]}
            | summary(runs[side], runs[BASELINE])
            for side in sides
        },
    }  # fmt: skip


def command(arguments: argparse.Namespace) -> str:
    """What to type to measure this again."""
    words = ["python -m benchmarks.bench_grpo"]
    for flag in ("size", "side"):
        words += [f"--{flag} {value}" for value in getattr(arguments, flag) or ()]
    return " ".join([*words, f"--rounds {arguments.rounds}", "--save"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", action="append", choices=tuple(SIZES), help="all by default")
    parser.add_argument("--side", action="append", choices=tuple(SIDES), help="all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/grpo.json")
    for flag in ("--run", "--check"):  # what `child` starts
        parser.add_argument(flag, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for started, call in ((arguments.run, run), (arguments.check, disagreement)):
        if started:
            side, name, seed = started
            print(json.dumps(call(side, SIZES[name], int(seed))))
            return 0
    if arguments.rounds < 2:
        parser.error(f"--rounds: got {arguments.rounds}, want at least 2")
    if arguments.save:
        refuse_dirty(parser, machine()["commit"])
    sides = [side for side in SIDES if side in (arguments.side or SIDES) or side == BASELINE]
    if reason := missing(sides):
        parser.error(reason)
    for name in arguments.size or SIZES:
        try:
            found = measure(SIZES[name], sides, arguments.rounds)
        except WrongWorkError as error:
            print(f"FAILED: {error}: nothing is recorded", file=sys.stderr)
            return 1
        print(grpo_markdown({"sizes": {name: found}}))
        if arguments.save:
            record = load(NAME) or {"benchmark": NAME, "sizes": {}}
            record["sizes"][name] = found | {"command": command(arguments)}
            print(f"wrote {save(NAME, record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
