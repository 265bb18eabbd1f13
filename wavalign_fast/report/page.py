"""Fills the template and writes the page."""

from collections.abc import Sequence
from pathlib import Path

from wavalign_fast.report.charts import curve_charts, smoothing_width
from wavalign_fast.report.formatting import escape
from wavalign_fast.report.frame import page, section, write_page
from wavalign_fast.report.outcome_chart import outcome_chart
from wavalign_fast.report.provenance import provenance_section
from wavalign_fast.report.runs import Run, load_runs
from wavalign_fast.report.samples import sample_cards
from wavalign_fast.report.settings import settings_section
from wavalign_fast.report.summary import findings, headline, lead
from wavalign_fast.report.tables import evaluation_table, legend, time_bars


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` about the run in ``run_dir``, or about the runs one folder below.

    The page is self-contained: it includes styles, script, charts and audio. It names what is
    missing or damaged.

    Raises:
        UserError: there is no run, or the page cannot be written.
    """
    run_dir = Path(run_dir)
    text = render(load_runs(run_dir), title=run_dir.resolve().name)
    return write_page(run_dir / "report.html", text)


def render(runs: Sequence[Run], *, title: str) -> str:
    """Returns the page as text."""
    opening = (
        f'<div class="opening">\n<div>\n<p class="lead">{escape(lead(runs))}</p>\n'
        f"{findings(runs)}\n</div>\n{outcome_chart(runs)}\n</div>"
    )
    return page(
        kind="Run",
        title=title,
        headline=headline(runs),
        opening=opening,
        sections=[
            section("Missing or damaged", "notes", _notes(runs)),
            section("Results", "results", evaluation_table(runs)),
            section("Training curves", "curves", _curves(runs)),
            section(_answers_title(runs), "samples", _answers(runs)),
            section("Where a step’s time goes", "times", time_bars(runs)),
            section("How it was made", "provenance", provenance_section(runs)),
            section("Configuration", "configs", settings_section(runs)),
        ],
    )


def _notes(runs: Sequence[Run]) -> str:
    lines = [
        f"<li><b>{escape(run.name)}</b>: {escape(note)}.</li>" for run in runs for note in run.notes
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _curves(runs: Sequence[Run]) -> str:
    known, other = curve_charts(runs)
    if not known and not other:
        return ""
    more = (
        f"<details><summary>{len(other)} more metrics</summary>"
        f'<div class="charts">{"".join(other)}</div></details>'
    )
    width = smoothing_width(runs)
    note = (
        f'<p class="note">Strong lines: mean over {width} steps. Faint lines: every step, single '
        "spikes cut off.</p>"
    )
    return (
        f"{legend(runs)}{note if width > 1 else ''}"
        f'<div class="charts">{"".join(known)}</div>{more if other else ""}'
    )


def _answers_title(runs: Sequence[Run]) -> str:
    spoken = any("wav" in sample for run in runs for sample in run.samples)
    return "Listen" if spoken else "Answers"


def _answers(runs: Sequence[Run]) -> str:
    cards = sample_cards(runs)
    if not cards:
        return ""
    note = "Held-out prompts. <i>Wrote</i> is the text in the answer"
    if any("heard" in sample for run in runs for sample in run.samples):
        note += ", <i>heard</i> is what the judge, a speech recogniser, understood of its audio"
    if any("reward" in sample for run in runs for sample in run.samples):
        note += ", <i>reward</i> is what the reward function gave it, on its own scale"
    note += "."
    return f'<p class="note">{note}</p>{cards}'
