"""Colours of the plots: one set for light pages, one for dark ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Blue (ours) and orange (the best rival) differ in every kind of colour vision."""

    name: str
    paper: str
    ink: str
    soft: str
    rule: str
    ours: str
    second: str
    """Another side of ours."""
    best: str
    rival: str


LIGHT = Theme(
    name="light", paper="#ffffff", ink="#1d1c1a", soft="#66625b", rule="#e4e1da",
    ours="#0a6aa8", second="#08795a", best="#c2480b", rival="#a39e94",
)  # fmt: skip
DARK = Theme(
    name="dark", paper="#0d1117", ink="#e9e7e2", soft="#a29e96", rule="#30363d",
    ours="#62b3ee", second="#3fc49a", best="#f58a4b", rival="#7d7a74",
)  # fmt: skip
# The same, on the background of our own page.
PAGE_LIGHT, PAGE_DARK = replace(LIGHT, paper="#fbfaf7"), replace(DARK, paper="#151618")


@contextmanager
def drawn_in(theme: Theme) -> Iterator[None]:
    """matplotlib set to the theme."""
    import matplotlib

    matplotlib.use("Agg")
    settings = {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.rule,
        "axes.labelcolor": theme.soft,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.rule,
        "grid.linewidth": 0.8,
        "text.color": theme.ink,
        "xtick.color": theme.soft,
        "ytick.color": theme.ink,
        "xtick.labelsize": 9,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(settings):
        yield
