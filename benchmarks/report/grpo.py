"""A step of GRPO by our trainer and by TRL's, as a table of docs/benchmarks.md and of the page."""

import html
from typing import Any

from ..commit import commit_text
from .tables import html_note, mebibytes, scientific, seconds

HEADS = (
    "CPU time a step", "time / ours", "rollout", "forward and backward", "peak memory",
    "gradient off by",
)  # fmt: skip


def grpo_markdown(record: dict[str, Any]) -> str:
    """A table of each size, and where it was measured."""
    parts = []
    for found in record["sizes"].values():
        lines = [
            f"| {_title(found)} | " + " | ".join(HEADS) + " |",
            "|---|" + "---:|" * len(HEADS),
        ]
        for label, ours, cells in _rows(found):
            name = f"**{label}**" if ours else label
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts += ["\n".join(lines), _note(found)]
    return "\n\n".join(parts)


def grpo_sentence(record: dict[str, Any]) -> str:
    """How many times our CPU time a step of TRL's takes, for each size, and what our head saves."""
    taken, saved = [], []
    for found in record["sizes"].values():
        sides, title = found["sides"], found["size"]["title"]
        taken.append(f"{sides['trl']['cpu_s_over_ours']['median']:.2f}× on {title}")
        if fused := sides.get("trl-fused-head"):
            saved.append(f"{fused['cpu_s'] / sides['trl']['cpu_s']:.0%}")
    text = f"A step of GRPO by TRL's trainer takes {' and '.join(taken)} of the CPU time of ours"
    if saved:
        text += f"; over our head, by one changed import, {' and '.join(saved)} of its own"
    return f"{text}. One thread."


def grpo_html(record: dict[str, Any]) -> str:
    """The same as HTML."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    parts = []
    for found in record["sizes"].values():
        body = "".join(
            f'<tr class="{"ours" if ours else "rival"}"><th scope="row">{html.escape(label)}</th>'
            f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
            for label, ours, cells in _rows(found)
        )
        parts.append(
            f'<div class="scroll"><table><caption><span>{html.escape(_title(found))}</span>'
            f'</caption><thead><tr><th scope="col">side</th>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{html_note(_note(found))}"
        )
    return "".join(parts)


def _title(found: dict[str, Any]) -> str:
    size = found["size"]
    return f"{size['title']}, {size['prompts']} × {size['group']}, up to {size['length']} ids"


def _rows(found: dict[str, Any]) -> list[tuple[str, bool, list[str]]]:
    """(label, whether it is ours, its cells)."""
    rows = []
    for side in found["sides"].values():
        ratio, phases = side["cpu_s_over_ours"], side["phases_cpu_s"]
        low, high = ratio["range"]
        spread = "" if low == high else f" ({low:.2f} to {high:.2f})"
        cells = [
            seconds(side["cpu_s"]),
            f"{ratio['median']:.2f}{spread}",
            seconds(phases["rollout"]),
            seconds(phases["forward_backward"]),
            mebibytes(side["peak_MiB"] * 2**20),
            scientific(side["gradient_error"]) if side["gradient_error"] else "",
        ]
        rows.append((side["label"], side["ours"], cells))
    return rows


def _note(found: dict[str, Any]) -> str:
    """How it was measured, and where."""
    machine, size = found["machine"], found["size"]
    facts = [
        f"{machine['cpu']}, {machine['isa']}, one thread, load {machine['load']:.1f} on "
        f"{machine['cores']} cores",
        f"torch {machine['torch']}, TRL {found['versions']['trl']}",
        commit_text(machine.get("commit")),
        machine["date"],
    ]
    equal = found["equal_groups"]
    skipped = (
        f" In {100 * equal:.0f} % of the groups all rewards are equal; ours leaves their forward "
        "and backward pass out, for their gradient is 0."
        if equal
        else ""
    )
    return (
        f"{found['rounds']} rounds of {size['steps']} steps; a time is the median over rounds, a "
        f"ratio the median and the range over rounds.{skipped} "
        f"{', '.join(fact for fact in facts if fact)}."
    )
