"""Fills the template and writes the page."""

import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from string import Template

from wavalign_fast.errors import UserError
from wavalign_fast.outputs import write_whole
from wavalign_fast.report.charts import curve_charts, smoothing_width
from wavalign_fast.report.formatting import escape
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
    path = run_dir / "report.html"
    text = render(load_runs(run_dir), title=run_dir.resolve().name)
    try:
        # JSON may hold half of a surrogate pair, which UTF-8 cannot encode.
        write_whole(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def render(runs: Sequence[Run], *, title: str) -> str:
    """Returns the page as text."""
    return Template(_asset("template.html")).substitute(
        style=_asset("style.css"),
        script=_asset("script.js"),
        title=escape(title),
        headline=escape(headline(runs)),
        lead=escape(lead(runs)),
        findings=findings(runs),
        outcome=outcome_chart(runs),
        notes=_section("Missing or damaged", "notes", _notes(runs)),
        results=_section("Results", "results", evaluation_table(runs)),
        curves=_section("Training curves", "curves", _curves(runs)),
        times=_section("Where a step’s time goes", "times", time_bars(runs)),
        samples=_section(_answers_title(runs), "samples", _answers(runs)),
        provenance=_section("How it was made", "provenance", provenance_section(runs)),
        configs=_section("Configuration", "configs", settings_section(runs)),
        versions=escape(_versions()),
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(title: str, name: str, content: str) -> str:
    if not content:
        return ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'


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


def _versions() -> str:
    names = ("wavalign-fast", "torch", "transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except Exception:  # not installed, or its metadata cannot be read
            continue
    return ", ".join([*found, f"Python {sys.version.split()[0]}"])
