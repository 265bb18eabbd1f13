"""The table of a case: on the terminal, in Markdown, in HTML."""

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..commit import commit_text
from .rows import Place, Row, error_name, places, rows_of


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of figures; ``of`` returns "" where a side has none."""

    head: str
    of: Callable[[Row], str]
    best: Callable[[Row], float | None] | None = None
    """The figure whose least value is highlighted."""
    page_only: bool = False


def seconds(value: float | None) -> str:
    """``0.00312 -> "3.12 ms"``."""
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 0.9995 else f"{_three(value * 1e3)} ms"


def mebibytes(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value / 2**20:.0f} MiB" if value >= 2**20 else f"{value / 2**20:.1f} MiB"


def scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def _three(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _quartiles(row: Row) -> str:
    if row.wall_quartiles is None:
        return ""
    low, high = (seconds(value) for value in row.wall_quartiles)
    number, _, unit = low.partition(" ")
    return f"{number} – {high}" if high.endswith(f" {unit}") else f"{low} – {high}"


ERROR = "error"
ERROR_HEADS = {"logp": "largest ℓ error", "loss": "loss error"}
COLUMNS = (
    Column(head="time", of=lambda row: seconds(row.wall), best=lambda row: row.wall),
    Column(head="quartiles", of=_quartiles, page_only=True),
    Column(head="CPU time", of=lambda row: seconds(row.cpu), best=lambda row: row.cpu),
    Column(head="as a graph", of=lambda row: seconds(row.graph), best=lambda row: row.graph),
    Column(head="time / ours", of=lambda row: "" if row.ratio is None else f"{row.ratio:.2f}"),
    Column(head="of the GEMM rate", of=lambda row: _share(row.roofline)),
    Column(head="extra memory", of=lambda row: mebibytes(row.extra), best=lambda row: row.extra),
    Column(head=ERROR, of=lambda row: scientific(row.error), best=lambda row: row.error),
    Column(
        head="gradient error",
        of=lambda row: scientific(row.gradient_error),
        best=lambda row: row.gradient_error,
        page_only=True,
    ),
)


def used_columns(case: dict[str, Any], rows: list[Row], *, page: bool) -> list[Column]:
    """The columns in which at least one side has a figure."""
    error_head = ERROR_HEADS[error_name(case)]
    return [
        replace(column, head=error_head) if column.head == ERROR else column
        for column in COLUMNS
        if (page or not column.page_only) and any(column.of(row) for row in rows)
    ]


def text_table(case: dict[str, Any]) -> str:
    """For the terminal."""
    rows = rows_of(case)
    timed = [row for row in rows if row.wall is not None]
    columns = used_columns(case, timed, page=False)
    width = max(len(row.label) for row in rows)
    lines = [" " * width + "".join(f"{column.head:>18}" for column in columns)]
    for row in timed:
        lines.append(f"{row.label:{width}}" + "".join(f"{c.of(row):>18}" for c in columns))
    lines += [f"{row.label:{width}}  {why}" for row, why in _failed(rows)]
    lines += absent(rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def markdown_table(case: dict[str, Any]) -> str:
    """The sides with a time; the best figure of each column is bold."""
    rows = [row for row in rows_of(case) if row.wall is not None]
    columns = used_columns(case, rows, page=False)
    best = {column.head: _best(column, rows) for column in columns}
    lines = [
        f"| {caption(case)} | " + " | ".join(column.head for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for row in rows:
        cells = []
        for column in columns:
            cell = column.of(row)
            cells.append(f"**{cell}**" if cell and row is best[column.head] else cell)
        lines.append(f"| {markdown_name(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_name(row: Row) -> str:
    """Ours in bold, a bound in italics."""
    return f"**{row.label}**" if row.ours else f"*{row.label}*" if row.bound else row.label


def html_table(case: dict[str, Any]) -> str:
    """All sides, including those that did not run."""
    rows = rows_of(case)
    timed = [row for row in rows if row.wall is not None]
    columns = used_columns(case, timed, page=True)
    best = {column.head: _best(column, timed) for column in columns}
    heads = "".join(f'<th scope="col">{html.escape(column.head)}</th>' for column in columns)
    body = []
    for row in timed:
        kind = "ours" if row.ours else "bound" if row.bound else "rival"
        cells = "".join(
            f"<td{' class=best' if row is best[c.head] else ''}>{html.escape(c.of(row))}</td>"
            for c in columns
        )
        body.append(f'<tr class="{kind}">{_name(row)}{cells}</tr>')
    for row, reason in _failed(rows):
        why = f'<td class="why" colspan="{len(columns)}">{html.escape(reason)}</td>'
        body.append(f'<tr class="rival">{_name(row)}{why}</tr>')
    without = " ".join(f"{line}." for line in absent(rows))
    return (
        f'<div class="scroll"><table><caption><span>{html.escape(caption(case))}</span>'
        "</caption><thead><tr>"
        f'<th scope="col">side</th>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        + html_note(without)
    )


def html_note(text: str) -> str:
    """A paragraph of the page in small print; "" where there is no text."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def _name(row: Row) -> str:
    version = f" <small>{html.escape(row.version)}</small>" if row.version else ""
    title = f' title="{html.escape(row.runs)}"' if row.runs else ""
    return f'<th scope="row"{title}>{html.escape(row.label)}{version}</th>'


def caption(case: dict[str, Any]) -> str:
    """Model, head, rows, operation and dtype of a case."""
    shape = case["shape"]
    live = shape.get("live")
    positions = _positions(shape)
    rows = f"{live} rows" if positions == live else f"{positions} positions, {live} with loss"
    size = f"H {shape['hidden']}, V {shape['vocab']}"
    title = shape.get("title", shape["name"])
    head = size if size in title else f"{title}: {size}"
    device = "" if case["device"] == "cpu" else f", {case['device']}"
    return f"{head}, {rows}, {case['operation']}, {case['dtype']}{device}"


def _positions(shape: dict[str, Any]) -> int:
    if "rollouts" in shape:
        return int((shape["rollouts"] + shape["anchors"]) * shape["length"])
    return int(shape["live"])


def machine_line(case: dict[str, Any]) -> str:
    """The machine, the software and the date of a measurement."""
    machine = case["machine"]
    facts = [machine["gpu"]] if "gpu" in machine else []
    facts += [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}",
        f"torch {machine['torch']}",
        commit_text(machine.get("commit")),
        machine["date"],
    ]
    return ", ".join(fact for fact in facts if fact)


def rates_line(case: dict[str, Any]) -> str:
    """The rates of the machine in the same run."""
    rates = case.get("rates")
    if not rates:
        return ""
    return (
        f"In the same run torch's own GEMMs reached {rates['gemm_flops_per_s'] / 1e9:.0f} "
        f"GFLOP/s and a copy {rates['copy_bytes_per_s'] / 1e9:.1f} GB/s."
    )


def distribution_line(case: dict[str, Any]) -> str:
    """The operands of a skipping case, and their probability mass on the other modality."""
    mass = case.get("off_modality_mass")
    if mass is None:
        return ""
    return (
        f"Rows: {case['distribution']}; probability of the other modality: median "
        f"{scientific(mass['median'])}, at most {scientific(mass['max'])}."
    )


def verdict(place: Place) -> str:
    """One clause on the place of ours in a metric."""
    return f"{place.metric.title}: {standing(place)}"


def standing(place: Place) -> str:
    """The place of ours, the best rival, and the factor between them."""
    best = place.best.label
    if place.level:
        return f"level with {best}"
    if not place.first:
        return f"behind {best}, {_times(1 / place.factor if place.factor else None)}"
    return f"first, {_times(place.factor)} ahead of {best}"


def short_standing(place: Place) -> str:
    """The same for a narrow table, which names the rival only where it is ahead."""
    if place.level or not place.first:
        return "level" if place.level else standing(place)
    return f"first, {_times(place.factor)}"


def _times(factor: float | None) -> str:
    if factor is None:
        return "by any factor"
    return f"{factor:.2f}×" if factor < 10 else f"{factor:.0f}×"


def case_verdicts(case: dict[str, Any]) -> list[str]:
    return [verdict(place) for place in places(case)]


def _failed(rows: list[Row]) -> list[tuple[Row, str]]:
    """The sides that ran but were not timed, and why."""
    return [(row, _why(row)) for row in rows if row.outcome in ("wrong", "error")]


def _why(row: Row) -> str:
    if row.outcome == "wrong":
        errors = f"error {scientific(row.error)}, gradient {scientific(row.gradient_error)}"
        return f"wrong result, not timed: {errors}"
    return f"fails: {row.detail}"


def absent(rows: list[Row]) -> list[str]:
    """The sides that did not run, one line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row.outcome == "absent":
            by_reason.setdefault(row.detail or "no reason given", []).append(row.label)
    return [f"Not run ({reason}): {', '.join(labels)}" for reason, labels in by_reason.items()]


def _best(column: Column, rows: list[Row]) -> Row | None:
    """The row with the least figure, bounds excluded; ``None`` unless two rows have one."""
    figure = column.best
    if figure is None:
        return None
    measured = [row for row in rows if not row.bound and figure(row) is not None]
    return min(measured, key=lambda row: figure(row) or 0.0) if len(measured) > 1 else None
