"""Faults that are in no source: changes to the PTX that the compilers emit."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A change to the PTX of one kernel."""

    name: str
    kernel: str
    """Part of the names of the kernels that are changed."""
    pattern: str
    """Regular expression of the text that is replaced."""
    replacement: str
    nth: int = 0
    """Which of the matches."""

    def apply(self, ptx: str) -> str:
        """The changed text, or the same text if it does not hold the kernel or the place.

        A module may hold several kernels: each is the text from its entry to the next one.
        """
        pieces = re.split(r"(?=\.visible \.entry )", ptx)
        return "".join(self._changed(piece) for piece in pieces)

    def _changed(self, piece: str) -> str:
        entry = re.match(r"\.visible \.entry ([\w$]+)", piece)
        if entry is None or self.kernel not in entry.group(1):
            return piece
        places = list(re.finditer(self.pattern, piece))
        if len(places) <= max(self.nth, 0):
            return piece
        place = places[self.nth]
        return piece[: place.start()] + place.expand(self.replacement) + piece[place.end() :]


MUTATIONS = {
    m.name: m
    for m in (
        Mutation(
            name="copy-wait-weakened",
            kernel="score_spans",
            pattern=r"cp\.async\.wait_group(\s+)2;",
            replacement=r"cp.async.wait_group\g<1>3;",
        ),
        Mutation(
            name="product-wait-dropped",
            kernel="score_spans",
            pattern=r"wgmma\.wait_group\.sync\.aligned 0;",
            replacement="",
        ),
        Mutation(
            name="product-wait-weakened",
            kernel="score_spans",
            pattern=r"wgmma\.wait_group\.sync\.aligned 1;",
            replacement="wgmma.wait_group.sync.aligned 2;",
        ),
        Mutation(
            name="barrier-after-copies-removed",
            kernel="score_spans",
            pattern=r"(cp\.async\.wait_group\s+2;\s+)bar\.sync\s+0;",
            replacement=r"\g<1>",
        ),
        Mutation(
            name="barrier-before-refill-removed",
            kernel="score_spans",
            pattern=r"bar\.sync\s+0;(?=(?:(?!bar\.sync)[\s\S])*?cp\.async\.cg)",
            replacement="",
            nth=-1,
        ),
        Mutation(
            name="copy-mask-dropped",
            kernel="score_spans",
            pattern=r"(cp\.async\.cg\.shared\.global[^;]*0x10), %r\d+;",
            replacement=r"\g<1>;",
            nth=-1,
        ),
        Mutation(
            name="reduction-barrier-removed",
            kernel="hybrid_rows",
            pattern=r"bar\.sync\s+0;",
            replacement="",
        ),
        Mutation(
            name="vector-off-by-four-bytes",
            kernel="row_stats",
            pattern=r"(ld\.global\.v4\.\w+\s*\{[^}]*\}, \[\s*%rd\d+)(?:\s*\+\s*\d+\s*)?\]",
            replacement=r"\g<1>+4]",
        ),
        Mutation(
            name="store-predicate-dropped",
            kernel="row_gradient",
            pattern=r"@%p\d+ (st\.global)",
            replacement=r"\g<1>",
            nth=-1,
        ),
        Mutation(
            name="shuffle-distance-wrong",
            kernel="row_stats",
            pattern=r"(shfl\.sync\.(?:bfly|down)\.b32\s+[^;]*?), 16, 31, -1;",
            replacement=r"\g<1>, 8, 31, -1;",
        ),
        Mutation(
            name="initial-value-removed",
            kernel="row_stats",
            pattern=r"mov\.u32 %r\d+, %?\w+;(?=\s*@%p\d+ ld\.global)",
            replacement="",
        ),
    )
}

PLANTED: str | None = None
"""The mutation that every kernel of this rung runs with; planted faults set it."""


def planted(ptx: str) -> str:
    return ptx if PLANTED is None else MUTATIONS[PLANTED].apply(ptx)
