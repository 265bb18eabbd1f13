"""Plots of the measurements as PNG, one for light and one for dark pages."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wavalign_fast.outputs import write_whole

from .theme import DARK, LIGHT, Theme, drawn_in

Records = Mapping[str, dict[str, Any] | None]
Draw = Callable[[Theme], Any]

COMPARED = ("linear_logprob", "hybrid_loss", "dpo")
MAIN = ("shape", "operation", "device")

DPI = 144
COLOURS = 96
MISSING = "the plots need matplotlib: pip install 'wavalign-fast[bench]'"
TITLES = {
    "overview": "Every rival's time over ours",
    "linear_logprob": "Log-probabilities under a large head, forward and backward",
    "hybrid_loss": "The hybrid step, forward and backward",
    "dpo": "Preference loss, forward and backward",
    "growth": "Growth of time and extra memory",
}


class NoMatplotlibError(RuntimeError):
    """matplotlib is missing, or cannot be imported; the message says which, and what to do."""

    def __init__(self, why: BaseException) -> None:
        reason = " ".join(f"{type(why).__name__}: {why}".split())
        absent = isinstance(why, ModuleNotFoundError)
        super().__init__(MISSING if absent else f"matplotlib cannot be imported: {reason}")


def figures(records: Records) -> dict[str, Draw]:
    """name -> function that draws the figure, for everything that was measured.

    Raises:
        NoMatplotlibError: matplotlib is not installed, or fails when it is imported.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except (Exception, SystemExit) as error:  # for example one built for another numpy
        raise NoMatplotlibError(error) from error
    from .growth_plot import growth_figure
    from .side_plots import overview_figure, sides_figure

    draw: dict[str, Draw] = {
        "overview": partial(overview_figure, compared_cases(records)),
        "growth": partial(growth_figure, records.get("growth") or {}),
    }
    for name in COMPARED:
        draw[name] = partial(sides_figure, main_cases(cases_of(records, name)))
    return {name: draw[name] for name in plot_names(records)}


def plot_names(records: Records) -> list[str]:
    """The plots for which the records have enough figures."""
    names = ["overview"] if len(compared_cases(records)) > 1 else []
    names += [name for name in COMPARED if cases_of(records, name)]
    return names + (["growth"] if len(cases_of(records, "growth")) > 1 else [])


def cases_of(records: Records, name: str) -> list[dict[str, Any]]:
    """The cases of a benchmark; none where it did not run."""
    return list((records.get(name) or {}).get("cases", []))


def slope_rows(records: Records) -> list[tuple[str, str, str, dict[str, float]]]:
    """(axis, side, label of the side, slopes) of every side with a slope in time."""
    cases = cases_of(records, "growth")
    labels = {name: side["label"] for case in cases for name, side in case["sides"].items()}
    slopes = (records.get("growth") or {}).get("slopes", {})
    return [
        (axis, name, labels[name], figures)
        for axis, sides in slopes.items()
        for name, figures in sides.items()
        if "time" in figures
    ]


def compared_cases(records: Records) -> list[dict[str, Any]]:
    """The cases of all benchmarks in which ours stands beside rivals."""
    return [case for name in COMPARED for case in cases_of(records, name)]


def png(draw: Draw, theme: Theme) -> bytes:
    """One figure in one theme."""
    from PIL import Image  # comes with matplotlib

    with drawn_in(theme):
        figure = draw(theme)
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=DPI)
    # A palette makes the file a third of the size; flat colours and their edges lose nothing.
    palette = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True)
    return small.getvalue()


def write_plots(records: Records, directory: Path) -> list[Path]:
    """Writes ``<name>-light.png`` and ``<name>-dark.png`` of every figure there is."""
    written = []
    for name, draw in figures(records).items():
        for theme in (LIGHT, DARK):
            path = directory / f"{name}-{theme.name}.png"
            write_whole(path, png(draw, theme))
            written.append(path)
    return written


def data_uri(draw: Draw, theme: Theme) -> str:
    """The figure as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(draw, theme)).decode()


def main_cases(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One case for each dtype, of the first shape, operation and device in the record."""
    return [case for case in cases if all(_same(case, cases[0], key) for key in MAIN)]


def _same(a: dict[str, Any], b: dict[str, Any], key: str) -> bool:
    return bool(a["shape"]["name"] == b["shape"]["name"] if key == "shape" else a[key] == b[key])
