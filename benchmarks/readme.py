"""Writes the measured tables into README.md from results/*.json, between their markers.

python -m benchmarks.readme [--check]
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.timing import RESULTS

README = Path(__file__).parents[1] / "README.md"
SIDES = {
    "wavalign_fast": "wavalign_fast",
    "released": "released code's order of operations",
    "three_gemms": "three bf16 products of the live rows alone",
}
FIGURES = {
    "text_accuracy": "text right",
    "speech_matches_text": "speech = own text",
    "speech_says_sum": "speech right",
    "speech_ce": "speech CE",
    "text_ce": "text CE",
    "ended": "ends",
}


def hybrid_loss(record: dict[str, Any]) -> str:
    shape, machine, errors = record["shape"], record["machine"], record["errors"]
    positions = (shape["rollouts"] + shape["anchors"]) * shape["length"]
    live = shape["rollouts"] * shape["text_tokens"] + shape["anchors"] * shape["anchor_tokens"]
    lines = [
        f"| H {shape['hidden']}, V {shape['vocab']}, {positions} positions, {live} live | seconds "
        "| CPU seconds | time / ours | extra memory beyond the gradients |",
        "|---|---|---|---|---|",
    ]
    for name, label in SIDES.items():
        side = record["sides"][name]
        ratio = side["wall_ratio_to"].get("wavalign_fast", 1.0)
        extra = side["extra_bytes_beyond_gradients"]
        memory = "?" if extra is None else f"{extra / 2**20:.0f} MiB"
        lines.append(
            f"| {label} | {side['wall_s']:.2f} | {side['cpu_s']:.2f} | {ratio:.2f} | {memory} |"
        )
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} shared cores, {machine['isa']}, torch "
        f"{machine['torch']}, {machine['date']}. Medians. Largest error of our log-probabilities "
        f"against float64 on the same operands: {errors['logp_max_error']:.1e}.",
    ]
    return "\n".join(lines)


def spoken_sums(record: dict[str, Any]) -> str:
    lines = [
        "| arm | " + " | ".join(FIGURES.values()) + " | training |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    for arm, figures in ({"base": record["base"]} | record["arms"]).items():
        cells = []
        for name in FIGURES:
            mean, deviation = figures[name]["mean"], figures[name]["std"]
            cells.append(f"{mean:.3f}" + ("" if arm == "base" else f" ± {deviation:.3f}"))
        seconds = figures.get("seconds")
        spent = f"{statistics.mean(seconds['values']):.0f} s" if seconds else ""
        label = arm if arm == "base" else f"`{arm}`"
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {spent} |")
    items = record["base"]["items"]["mean"]
    lines += [
        "",
        f"{items:.0f} held-out spoken answers each, sampled at T = 1; one thread a run, two runs "
        f"at a time on {record['machine']['cores']} shared cores, {record['machine']['date']}. "
        "CE is cross-entropy in nats per token on right demonstrations.",
    ]
    return "\n".join(lines)


TABLES = {"hybrid_loss": hybrid_loss, "spoken_sums": spoken_sums}


def rendered(text: str) -> str:
    """README with every table made anew."""
    for name, make in TABLES.items():
        table = make(json.loads((RESULTS / f"{name}.json").read_text()))
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        block = f"{begin}\n{table}\n{end}"
        text, count = re.subn(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, b=block: b, text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"README.md has {count} places for {name}, want 1")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    arguments = parser.parse_args()
    before = README.read_text()
    after = rendered(before)
    if arguments.check:
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
