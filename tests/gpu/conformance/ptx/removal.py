"""Removes each barrier and weakens each wait of some kernels, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tools.ptx_emulator import Conditions, EmulatorError

from .mutations import Mutation
from .scenes import SCENES, Rewrite

_BARRIER = r"(?m)^\s*(?:@!?%p\d+ )?bar\.sync\s+0;"
_WAIT = r"((?:cp\.async|wgmma)\.wait_group(?:\.sync\.aligned)?\s+)(\d+);"

CONDITIONS = (Conditions(), Conditions(late_copies=False))


def changes(ptx: str, kernel: str) -> Iterator[Mutation]:
    for pattern in (_BARRIER, _WAIT):
        for nth, place in enumerate(re.finditer(pattern, ptx)):
            weaker = f"{place.group(1)}{int(place.group(2)) + 1};" if pattern == _WAIT else ""
            line = ptx.count("\n", 0, place.start()) + 1
            yield Mutation(
                name=f"line {line}: {place.group().strip()}",
                kernel=kernel,
                pattern=pattern,
                replacement=weaker.replace("\\", ""),
                nth=nth,
            )


def removals(report: Callable[[str], None] = print) -> int:
    """Prints every change that no condition finds, and how many of all are found."""
    for name, scene in SCENES.items():
        texts: list[str] = []

        def remember(ptx: str, texts: list[str] = texts) -> str:
            texts.append(ptx)
            return ptx

        scene.run(Conditions(), remember)
        kernel_text = next(t for t in texts if scene.kernel in t)
        found = missed = 0
        for change in changes(kernel_text, scene.kernel):
            if any(_fails(scene.run, conditions, change.apply) for conditions in CONDITIONS):
                found += 1
            else:
                missed += 1
                report(f"{name}: not found: {change.name}")
        report(f"{name}: {found} of {found + missed} found")
    return 0


def _fails(
    run: Callable[[Conditions, Rewrite], None], conditions: Conditions, rewrite: Rewrite
) -> bool:
    try:
        run(conditions, rewrite)
    except (EmulatorError, AssertionError):
        return True
    return False
