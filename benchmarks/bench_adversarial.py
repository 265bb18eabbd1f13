"""Runs every implementation through the problems that users of fused losses have reported.

    python -m benchmarks.bench_adversarial [--providers trl,verl] [--cases NAME,...] [--save]

Each provider runs in its own process, and a crash or a hang does not end the run. With --save,
providers that do not run now keep their entries in results/adversarial.json. The exit code is 1 if
ours fails a case.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .adversarial import CASES, GROUPS, NOT_APPLICABLE, Case
from .adversarial.runner import Outcome, run
from .providers import PROVIDERS, Loaded, Provider, available, named, version
from .record import RESULTS, load, machine, save

NAME = "adversarial"
SYMBOL = {"pass": ".", "fail": "F", "unsupported": "-", "crash": "C", "timeout": "T"}
OUTRIGHT_WRONG = ("fail", "crash", "timeout")

Outcomes = dict[str, dict[str, Outcome]]
"""By provider, then by case."""


def measure(loaded: list[Loaded], cases: list[Case], timeout: float) -> Outcomes:
    outcomes: Outcomes = {}
    for provider, calls, reason in loaded:
        if calls is None:
            print(f"{provider.name}: not run, {reason}")
            continue
        outcomes[provider.name] = {}
        for case, outcome in run(provider.name, cases, timeout=timeout):
            outcomes[provider.name][case.name] = outcome
            if outcome["status"] in OUTRIGHT_WRONG:
                print(f"{provider.name:16}{case.name:30}{outcome['status']}: {outcome['detail']}",
                      flush=True)  # fmt: skip
    return outcomes


def table(outcomes: Outcomes, cases: list[Case]) -> str:
    """One letter for each case and provider, and the counts below."""
    names = list(outcomes)
    width = max(len(case.name) for case in cases) + 2
    lines = [
        ", ".join(f"{symbol} {status}" for status, symbol in SYMBOL.items()),
        *(f"{chr(ord('a') + i)} = {name}" for i, name in enumerate(names)),
        " " * width + " ".join(chr(ord("a") + i) for i in range(len(names))),
    ]
    for case in cases:
        letters = " ".join(SYMBOL[str(outcomes[name][case.name]["status"])] for name in names)
        lines.append(f"{case.name:{width}}{letters}")
    for name in names:
        counts = [str(o["status"]) for o in outcomes[name].values()]
        lines.append(
            f"{name:{width}}" + ", ".join(f"{counts.count(s)} {s}" for s in SYMBOL if s in counts)
        )
    return "\n".join(lines)


def record(outcomes: Outcomes, before: dict[str, Any] | None) -> dict[str, Any]:
    """The content of the file; providers without an outcome keep those of ``before``."""
    kept = {} if before is None else before["providers"]
    kept_cases = {} if before is None else {c["name"]: c["outcomes"] for c in before["cases"]}
    return {
        "machine": machine(),
        "providers": {
            p.name: _described(p) if p.name in outcomes else kept[p.name]
            for p in PROVIDERS
            if p.name in outcomes or p.name in kept
        },
        "items": {str(item): title for item, title in GROUPS.items()},
        "cases": [
            {
                "name": case.name,
                "title": case.title,
                "items": list(case.items),
                "source": case.source,
                "outcomes": kept_cases.get(case.name, {})
                | {name: seen[case.name] for name, seen in outcomes.items()},
            }
            for case in CASES
        ],
        "not_applicable": [entry._asdict() for entry in NOT_APPLICABLE],
    }


def _described(provider: Provider) -> dict[str, str | None]:
    return {"label": provider.label, "runs": provider.runs, "version": version(provider)}


def _write(outcomes: Outcomes, folder: Path) -> Path:
    return save(NAME, record(outcomes, load(NAME, folder)), folder)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--providers", type=_names, help=",".join(p.name for p in named(None, "cpu"))
    )
    parser.add_argument("--cases", type=_names, help="names, separated by commas; cannot be saved")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each case")
    parser.add_argument("--save", action="store_true", help=f"write results/{NAME}.json")
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"write DIR/{NAME}.json")
    arguments = parser.parse_args(argv)
    if arguments.cases is not None and (arguments.save or arguments.output):
        parser.error("--cases: a part of the suite is not saved")
    unknown = set(arguments.cases or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"--cases: no case {', '.join(sorted(unknown))}")
    cases = [c for c in CASES if arguments.cases is None or c.name in arguments.cases]
    try:
        loaded = available(arguments.providers)
    except ValueError as error:
        parser.error(f"--providers: {error}")
    outcomes = measure(loaded, cases, arguments.timeout)
    print(table(outcomes, cases))
    folder = RESULTS if arguments.save else arguments.output
    if folder is not None:
        print(f"wrote {_write(outcomes, folder)}")
    ours = outcomes.get("ours-cpu", {}).values()
    return int(any(outcome["status"] != "pass" for outcome in ours))


if __name__ == "__main__":
    sys.exit(main())
