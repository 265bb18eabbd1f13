"""The measured parts of README.md and of pages in docs/, between their markers."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .demo import demo_sentence
from .gpu_check import gpu_block
from .grpo import grpo_markdown, grpo_sentence
from .plots import Records, cases_of, compared_cases, main_cases, plot_names, slope_rows
from .provenance import uncommitted_note, where_measured
from .recipe import recipe_markdown
from .rows import error_name, primary_of, standings
from .tables import case_verdicts, machine_line, markdown_table, rates_line, scientific

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": ("headline",),
    "docs/getting_started.md": ("demo",),
    "docs/benchmarks.md": ("overview", "hybrid_loss", "linear_logprob", "growth", "grpo"),
    "docs/spoken_sums.md": ("spoken_sums",),
    "docs/spoken_models.md": ("memory",),
    "docs/gpu.md": ("gpu_check",),
}
"""Page -> its blocks, in any order."""
PLOTS = "benchmarks/plots"
ALT = {
    "overview": "Time of every rival over ours, case by case",
    "linear_logprob": "Time, extra memory and error of log-probabilities, by implementation",
    "hybrid_loss": "Time, extra memory and error of the hybrid step, by implementation",
    "dpo": "Time, extra memory and error of the preference loss, by implementation",
    "growth": "Time and extra memory against rows, vocabulary and hidden size",
}


def picture(name: str) -> str:
    """The plot in the reader's colour scheme."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{PLOTS}/{name}-dark.png">'
        f'<img alt="{ALT[name]}" src="{PLOTS}/{name}-light.png"></picture>'
    )


def overview(records: Records) -> str:
    """The devices, how often ours is first, the plot of all cases, and uncommitted changes."""
    lead = f"{where_measured(records)} {standing_text(compared_cases(records))}"
    return "\n\n".join(filter(None, (lead, picture("overview"), uncommitted_note(records))))


def standing_text(cases: list[dict[str, Any]]) -> str:
    """One sentence on all cases together."""
    parts = []
    for standing in standings(cases):
        level = f", level in {standing.level}" if standing.level else ""
        behind = f", behind in {standing.behind}" if standing.behind else ""
        parts.append(f"{standing.metric.title} in {standing.first}{level}{behind}")
    return f"Over the {len(cases)} measured cases, ours is first in {'; in '.join(parts)}."


def benchmark(name: str, lead: str) -> Callable[[Records], str]:
    """``lead``, the table of a benchmark's main case, its verdicts, and where it was measured."""

    def make(records: Records) -> str:
        case = main_cases(cases_of(records, name))[0]
        own = own_error(case)
        notes = [f"{text[0].upper()}{text[1:]}." for text in case_verdicts(case)]
        facts = [f"{machine_line(case)}. Medians.", rates_line(case), own]
        parts = [
            lead,
            markdown_table(case),
            " ".join(notes),
            " ".join(fact for fact in facts if fact),
        ]
        return "\n\n".join(part for part in parts if part)

    return make


def own_error(case: dict[str, Any]) -> str:
    """The error of our log-probabilities, where the rivals return none."""
    primary = primary_of(case)
    errors = {} if primary is None else case["sides"][primary].get("errors", {})
    if "logp" not in errors or error_name(case) == "logp":
        return ""
    return (
        "Largest error of our log-probabilities against float64 on the same operands: "
        f"{scientific(errors['logp'])}."
    )


def growth(records: Records) -> str:
    """The plot and the slopes of ours."""
    parts = ["Growth, one axis at a time:", picture("growth")]
    lines: dict[str, list[str]] = {}
    for axis, _, label, figures in slope_rows(records):
        if label.startswith("wavalign_fast"):
            memory = figures.get("extra_memory")
            also = "" if memory is None else f", extra memory {memory:.2f}"
            lines.setdefault(label, []).append(f"{axis}: time {figures['time']:.2f}{also}")
    if lines:
        ours = ". ".join(f"{label}: {'; '.join(found)}" for label, found in lines.items())
        parts.append(f"Slopes in the log-log plot (1 is linear, 0 is flat). {ours}.")
    return "\n\n".join(parts)


def spoken_sums(records: Records) -> str:
    """The recipe's arms: mean and spread over the seeds."""
    return recipe_markdown(_record(records, "spoken_sums"))


def memory(records: Records) -> str:
    """What a GPU needs for the paper's model, for each way to run it."""
    cases = _record(records, "memory")["cases"]
    lines = ["| the paper's model on | a GPU needs |", "|---|---:|"]
    lines += [f"| {case['name']} | {case['needed_bytes'] / 2**30:.0f} GiB |" for case in cases]
    return "\n".join(lines)


def _record(records: Records, name: str) -> dict[str, Any]:
    record = records[name]
    assert record is not None  # only blocks of measured records are rendered
    return record


HEADLINE = {
    "hybrid_loss": "The hybrid step on the paper's head",
    "linear_logprob": "Log-probabilities under a head of 32 768 ids",
}


def headline(records: Records) -> str:
    """What the losses and the trainer cost beside others, in a line each."""
    lines = []
    if compared := compared_cases(records):
        lines.append(f"- {where_measured(records)} {standing_text(compared)}")
    for name, what in HEADLINE.items():
        if cases := main_cases(cases_of(records, name)):
            verdicts = "; ".join(case_verdicts(cases[0])[:2])
            lines.append(f"- {what} ({machine_line(cases[0])}): {verdicts}.")
    if grpo := records.get("grpo"):
        lines.append(f"- {grpo_sentence(grpo)}")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[Records], str]] = {
    "headline": headline,
    "overview": overview,
    "hybrid_loss": benchmark("hybrid_loss", "The hybrid step on the paper's head:"),
    "linear_logprob": benchmark(
        "linear_logprob", "Log-probabilities of given ids, which every such trainer needs:"
    ),
    "growth": growth,
    "grpo": lambda records: grpo_markdown(_record(records, "grpo")),
    "spoken_sums": spoken_sums,
    "memory": memory,
    "demo": lambda records: demo_sentence(_record(records, "demo")),
    "gpu_check": lambda records: gpu_block(records.get("gpu_check")),
}


def read_pages() -> dict[str, str]:
    """The pages as they are."""
    return {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def rendered(pages: Mapping[str, str], records: Records) -> dict[str, str]:
    """The pages with every block regenerated; the block of something not measured is empty."""
    measured = {*plot_names(records), *(name for name, record in records.items() if record)}
    # Those say themselves that nothing was measured.
    measured |= {"gpu_check", "headline"}
    done = {}
    for page, text in pages.items():
        for name in PAGES[page]:
            block = f"\n{_for_page(page, BLOCKS[name](records))}" if name in measured else ""
            begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
            text, count = re.subn(
                f"{re.escape(begin)}.*?{re.escape(end)}",
                lambda _, block=block, begin=begin, end=end: f"{begin}{block}\n{end}",
                text,
                flags=re.DOTALL,
            )
            if count != 1:
                raise ValueError(f"{page} has {count} places for {name}, want 1")
        done[page] = text
    return done


def _for_page(page: str, block: str) -> str:
    """Links of a block start at the repository; those of a page in docs/ start there."""
    if not page.startswith("docs/"):
        return block
    return re.sub(r'(\]\(|(?:src|srcset)=")(?=\w+/)', r"\1../", block)
