"""The figures of docs/method.md: λ by the gate itself, and the recorded arms of spoken-sums.

python -m benchmarks.method_figures      writes docs/images/method-*.png, for light and dark pages
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast import MixingGate
from wavalign_fast.outputs import write_whole

from .record import RESULTS, load
from .report.plots import Draw, png
from .report.theme import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = RESULTS.parents[1] / "docs" / "images"
GROUPS = {
    "one good answer of four": lambda best: [best, 1.0, 1.0, 1.0],
    "two of four": lambda best: [best, best, 1.0, 1.0],
    "all four alike": lambda best: [best, best, best, best],
}
"""Rewards of a prompt's answers by the best one; the others have the lowest."""
STEPS = [("all bad", [1.0, 1.0, 1.0, 2.0]), ("some good", [5.0, 5.0, 1.0, 1.0]),
         ("all good", [5.0, 5.0, 5.0, 4.0])]  # fmt: skip
"""What the groups of the second panel get, for ``EACH`` steps each."""
EACH = 30
AXES = {
    "text_accuracy": "text right, of answers sampled at T = 1",
    "speech_matches_text": "speech says the answer's own text",
}
LABELS = {
    "base": ("the first model", (-48, -20)),
    "wavalign": ("wavalign: GRPO on text, anchor on all", (8, -13)),
    "on-policy": ("on-policy: GRPO on text, KL on speech", (-12, 10)),
    "rl-all": ("rl-all: GRPO on all tokens", (-170, 12)),
    "sft-imperfect": ("sft-imperfect: the anchor alone", (8, 5)),
}
"""Arm -> its name in the figure, and where that stands beside its point."""


def weight_of(rewards: list[float]) -> float:
    """λ of a step with one prompt, at the gate's defaults and without an earlier step."""
    return float(MixingGate()(torch.tensor([rewards])))


def weights_of_steps() -> Iterator[tuple[str, float, float]]:
    """(what the group gets, λ, λ without smoothing) of each step of the second panel."""
    gate = MixingGate()
    for name, rewards in STEPS:
        for _ in range(EACH):
            yield name, float(gate(torch.tensor([rewards]))), weight_of(rewards)


def gate_figure(theme: Theme) -> "Figure":
    """λ against the best reward, and over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    bests = [1 + place / 25 for place in range(101)]
    for (name, rewards), colour in zip(
        GROUPS.items(), (theme.ours, theme.best, theme.rival), strict=True
    ):
        left.plot(
            bests, [weight_of(rewards(best)) for best in bests], color=colour, lw=2, label=name
        )
    left.set(title="one prompt: its best reward", xlabel="best reward of the group, 1 to 5",
             ylabel="λ, the weight of GRPO")  # fmt: skip
    left.legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    names, smooth, raw = zip(*weights_of_steps(), strict=True)
    right.plot(range(len(raw)), raw, color=theme.rival, lw=1.5, label="step alone")
    right.plot(range(len(smooth)), smooth, color=theme.ours, lw=2, label="smoothed")
    for place, (name, _) in enumerate(STEPS):
        right.axvline(place * EACH, color=theme.rule, lw=1)
        right.annotate(name, (place * EACH + 1, 0.84), fontsize=9, color=theme.soft)
    assert len(names) == len(STEPS) * EACH
    right.set(title="over steps: what the answers get", xlabel="step", ylim=(-0.02, 0.9))
    right.legend(frameon=False, fontsize=9, labelcolor=theme.ink, loc="center left")
    for axes in (left, right):
        axes.grid(axis="y")
    return figure


def scopes_figure(record: dict[str, Any], theme: Theme) -> "Figure":
    """Every arm of the record by what its training did to text and to speech."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplots()
    base = {name: record["base"][name]["mean"] for name in AXES}
    for arm, found in {"base": record["base"], **record["arms"]}.items():
        (x, dx), (y, dy) = ((found[name]["mean"], found[name]["std"]) for name in AXES)
        colour = {"base": theme.soft, "wavalign": theme.ours}.get(arm, theme.best)
        if arm != "base":
            start = tuple(base.values())
            arrow = {"arrowstyle": "->", "color": theme.rule, "lw": 1.2, "shrinkB": 6}
            axes.annotate("", (x, y), start, arrowprops=arrow)
        axes.errorbar(x, y, yerr=dy, xerr=dx, color=colour, marker="o", ms=7, capsize=3)
        label, offset = LABELS.get(arm, (arm, (8, 5)))
        axes.annotate(label, (x, y), offset, textcoords="offset points", fontsize=9, color=colour)
    axes.set(xlabel=AXES["text_accuracy"], ylabel=AXES["speech_matches_text"],
             xlim=(0.28, 0.92), ylim=(0.0, 1.08))  # fmt: skip
    axes.grid()
    return figure


def figures() -> dict[str, Draw]:
    """name -> function that draws it."""
    record = load("spoken_sums", RESULTS)
    assert record is not None  # it is committed
    return {"method-gate": gate_figure, "method-scopes": partial(scopes_figure, record)}


def main() -> int:
    for name, draw in figures().items():
        for theme in (LIGHT, DARK):
            path: Path = IMAGES / f"{name}-{theme.name}.png"
            write_whole(path, png(draw, theme))
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
