"""Formats the results at the end of a training command as plain text of a given width."""

from collections.abc import Mapping, Sequence

MIN_WIDTH = 40
GAP = " "


def result_table(figures: Mapping[str, Mapping[str, float]], *, width: int) -> str:
    """Formats one row per arm and one column per metric; wraps columns into several blocks.

    Column heads are broken at ``_`` and ``/``, so that long names need lines instead of width.
    """
    names = list(dict.fromkeys(name for metrics in figures.values() for name in metrics))
    if not names:
        return ""
    heads = {name: _head(name) for name in names}
    height = max(map(len, heads.values()))
    label_column = [""] * (height - 1) + ["held out", *figures]
    blocks: list[list[list[str]]] = [[]]
    room = max(width, MIN_WIDTH) - _width(label_column)
    left = room
    for name, head in heads.items():
        column = [""] * (height - len(head)) + head + _cells(name, figures)
        needed = len(GAP) + _width(column)
        if needed > left and blocks[-1]:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= needed
    return "\n\n".join(_block(label_column, block) for block in blocks)


def _head(name: str) -> list[str]:
    return name.replace("/", " ").replace("_", " ").split() or [name]


def _cells(name: str, figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    values = [metrics.get(name) for metrics in figures.values()]
    whole = all(value is None or (value.is_integer() and abs(value) > 1) for value in values)
    form = "{:.0f}" if whole else "{:.3f}"
    return ["" if value is None else form.format(value) for value in values]


def _width(column: Sequence[str]) -> int:
    return max(len(cell) for cell in column)


def _block(labels: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    label_width, widths = _width(labels), [_width(column) for column in columns]
    lines = []
    for row, label in enumerate(labels):
        cells = [column[row].rjust(width) for column, width in zip(columns, widths, strict=True)]
        lines.append(GAP.join([label.ljust(label_width), *cells]).rstrip())
    return "\n".join(line for line in lines if line)
