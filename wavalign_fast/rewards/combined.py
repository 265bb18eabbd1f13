"""Combines rewards by weights on one scale."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wavalign_fast.errors import UserError, shown

logger = logging.getLogger(__name__)

Answers = Sequence[Mapping[str, Any]]
Rewards = list[float | None]


class Pending(Protocol):
    """Rewards that are being made."""

    def result(self) -> Rewards:
        """Waits for them: one for each answer, ``None`` for a missing one."""
        ...

    def metrics(self) -> dict[str, float]:
        """Returns what there is to tell about them, once they are there."""
        ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the rewards that are combined."""

    name: str
    """What metrics and errors call it."""
    start: Callable[[Answers], Pending]
    """Starts on the answers; ``at_once`` makes this of a plain function."""
    low: float = 0.0
    """The lowest reward that it gives."""
    high: float = 1.0
    weight: float = 1.0
    when_missing: str = "missing"
    """What a missing reward does: ``missing``: the whole reward is missing; ``leave_out``: the
    others alone count, by their weights."""
    veto: bool = False
    """Its lowest reward makes the whole one the lowest, and the other parts are not asked."""


class _Made:
    """Rewards that were made at once."""

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def result(self) -> Rewards:
        return self._rewards

    def metrics(self) -> dict[str, float]:
        return {}


def at_once(function: Callable[[Answers], Rewards]) -> Callable[[Answers], Pending]:
    """Turns a function of answers into the ``start`` of a part."""
    return lambda answers: _Made(function(answers))


class CombinedReward:
    """``low + (high − low) · Σ w (r − r_low) / (r_high − r_low) / Σ w`` over the parts.

    Args:
        scale: the lowest and the highest combined reward, those of ``loss.gate.scale``.

    Raises:
        UserError: no part, two of one name, no weight above 0, or a range that is none.
    """

    def __init__(self, parts: Sequence[Part], *, scale: tuple[float, float]) -> None:
        self.parts = tuple(parts)
        self.low, self.high = scale
        names = [part.name for part in parts]
        if not parts:
            raise UserError("no rewards given, wanted at least one")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"name: {shown(twice)} given twice, wanted another name for each")
        for name, low, high in [("scale", *scale), *((p.name, p.low, p.high) for p in parts)]:
            if not low < high:
                raise UserError(
                    f"{name}: range [{low:g}, {high:g}] given, wanted [lowest, highest]"
                )
        if any(part.weight < 0 for part in parts) or not any(part.weight for part in parts):
            weights = [part.weight for part in parts]
            raise UserError(f"weight: {weights} given, wanted none below 0 and one above")

    @property
    def description(self) -> str:
        """What a reward means, for the report."""
        total = sum(part.weight for part in self.parts)
        shares = " + ".join(f"{part.weight / total:.3g} {part.name}" for part in self.parts)
        return f"{self.low:g} to {self.high:g}: {shares}"

    def start(self, answers: Answers) -> "CombinedPending":
        """Starts the parts: first those with a veto, then the others on what is left."""
        vetoes = [(part, part.start(answers)) for part in self.parts if part.veto]
        columns = {part.name: self._checked(part, made.result()) for part, made in vetoes}
        vetoed = [
            any(columns[part.name][place] == part.low for part, _ in vetoes)
            for place in range(len(answers))
        ]
        rest = [answer for answer, lost in zip(answers, vetoed, strict=True) if not lost]
        others = [(part, part.start(rest)) for part in self.parts if not part.veto]
        return CombinedPending(self, columns, vetoed, others)

    def __call__(self, answers: Answers) -> Rewards:
        """Returns one reward for each answer, ``None`` for a missing one."""
        return self.start(answers).result()

    def combined(self, values: Mapping[str, float | None]) -> float | None:
        """Returns the reward of one answer from those of the parts, ``None`` if it is missing."""
        total, share = 0.0, 0.0
        for part in self.parts:
            value = values[part.name]
            if value is None:
                if part.when_missing == "missing":
                    return None
                continue
            total += part.weight
            share += part.weight * (value - part.low) / (part.high - part.low)
        if total == 0.0:
            return None
        return self.low + (self.high - self.low) * share / total

    def _checked(self, part: Part, rewards: Rewards) -> Rewards:
        for reward in rewards:
            if reward is not None and not part.low <= reward <= part.high:
                raise UserError(
                    f"{part.name}: reward {shown(reward)} given, wanted {part.low:g} to "
                    f"{part.high:g}, its range"
                )
        return rewards


class CombinedPending:
    """Combined rewards that are being made."""

    def __init__(
        self,
        combined: CombinedReward,
        columns: dict[str, Rewards],
        vetoed: Sequence[bool],
        others: Sequence[tuple[Part, Pending]],
    ) -> None:
        self._combined = combined
        self._columns = columns
        self._vetoed = vetoed
        self._others = others
        self._metrics: dict[str, float] = {}

    def result(self) -> Rewards:
        """Waits for the parts and returns one reward for each answer.

        Raises:
            UserError: a part fails, or gives a reward outside its range.
        """
        left = [place for place, lost in enumerate(self._vetoed) if not lost]
        for part, pending in self._others:
            made = dict(zip(left, self._combined._checked(part, pending.result()), strict=True))
            self._columns[part.name] = [made.get(place) for place in range(len(self._vetoed))]
            self._metrics |= pending.metrics()
        return [
            self._combined.low
            if lost
            else self._combined.combined({name: of[place] for name, of in self._columns.items()})
            for place, lost in enumerate(self._vetoed)
        ]

    def metrics(self) -> dict[str, float]:
        """Returns sums over the answers and counts, so that those of several ranks add up.

        For each part ``rewards/NAME_sum``, ``rewards/NAME_count`` and ``rewards/NAME_missing``, and
        the parts' own metrics.
        """
        found = dict(self._metrics)
        for name, column in self._columns.items():
            known = [reward for reward in column if reward is not None]
            asked = len(column) if self._is_veto(name) else self._vetoed.count(False)
            found[f"rewards/{name}_sum"] = sum(known)
            found[f"rewards/{name}_count"] = float(len(known))
            found[f"rewards/{name}_missing"] = float(asked - len(known))
        found["rewards/vetoed"] = float(sum(self._vetoed))
        return found

    def _is_veto(self, name: str) -> bool:
        return any(part.veto for part in self._combined.parts if part.name == name)
