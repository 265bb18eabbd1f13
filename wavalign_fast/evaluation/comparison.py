"""Compares two evaluations prompt by prompt: what they have in common cancels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, shown
from wavalign_fast.evaluation.outcome import Result, as_numbers, by_category
from wavalign_fast.evaluation.presets import EQ, IQ
from wavalign_fast.evaluation.results_file import read_results
from wavalign_fast.evaluation.stages import FROM_MODEL, STAGES
from wavalign_fast.evaluation.statistics import Sample, paired, statistic
from wavalign_fast.evaluation.table import read_report
from wavalign_fast.train.atomic_files import write_json

COMPARISON_FILE = "comparison.json"

Pair = tuple[Result, Result]


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Returns differences second − first, with 95 % intervals, over the prompts of both.

    A prompt counts where both answers have a score.

    Raises:
        UserError: the evaluations have no prompt in common, or one id stands for two prompts.
    """
    pairs, alone = _pairs(first, second)
    groups = {name: [pair for pair in pairs if pair[0].category == name]
              for name in by_category([pair[0] for pair in pairs])}  # fmt: skip
    return {
        "first": str(first),
        "second": str(second),
        "settings": _other_settings(first, second),
        "only_in_first": alone[0],
        "only_in_second": alone[1],
        "categories": {name: _category(group) for name, group in groups.items()},
        "iq": _joined(groups, IQ, 100.0),
        "eq": _joined(groups, EQ, 1.0),
    }


def write_comparison(directory: Path, found: Mapping[str, Any]) -> None:
    """Writes ``comparison.json``."""
    write_json(directory / COMPARISON_FILE, dict(found))


def pairs_of(first: Path, second: Path) -> list[Pair]:
    """Returns the results of the prompts that are in both evaluations, in the first one's order."""
    return _pairs(first, second)[0]


def _pairs(first: Path, second: Path) -> tuple[list[Pair], tuple[int, int]]:
    ours, theirs = ({one.id: one for one in read_results(path)} for path in (first, second))
    pairs = [(one, theirs[name]) for name, one in ours.items() if name in theirs]
    if not pairs:
        raise UserError(f"{first} and {second} have no prompt in common, wanted the same prompts")
    for one, other in pairs:
        if (one.asked, one.task, one.references) != (other.asked, other.task, other.references):
            raise UserError(
                f"{one.id} asks or wants something else in {second} than in {first}; wanted the "
                "same prompts"
            )
    return pairs, (len(ours) - len(pairs), len(theirs) - len(pairs))


def _other_settings(first: Path, second: Path) -> list[str]:
    """Says in which settings the evaluations differ, besides the model."""
    one, other = (read_report(path).get("settings", {}) for path in (first, second))
    said = []
    for stage in STAGES:
        ours, theirs = one.get(stage, {}), other.get(stage, {})
        for name in {**ours, **theirs}:
            if name not in FROM_MODEL and ours.get(name) != theirs.get(name):
                said.append(
                    f"{stage}: {name} {shown(ours.get(name))} and {shown(theirs.get(name))}"
                )
    return said


def _category(pairs: Sequence[Pair]) -> dict[str, Any]:
    samples = _samples(pairs)
    scores = [(one.score, other.score) for one, other in pairs
              if one.score is not None and other.score is not None]  # fmt: skip
    return {
        "task": pairs[0][0].task,
        "n": len(samples),
        "unscored": len(pairs) - len(samples),
        **as_numbers(paired([samples])),
        "first": _mean([one for one, _ in samples]),
        "second": _mean([other for _, other in samples]),
        "better": sum(other > one for one, other in scores),
        "worse": sum(other < one for one, other in scores),
    }


def _samples(pairs: Sequence[Pair]) -> list[tuple[Sample, Sample]]:
    found = [(one.sample, other.sample) for one, other in pairs]
    return [(one, other) for one, other in found if one is not None and other is not None]


def _mean(samples: Sequence[Sample]) -> float | None:
    return statistic(samples) if samples else None


def _joined(
    groups: Mapping[str, Sequence[Pair]], names: Sequence[str], factor: float
) -> dict[str, Any] | None:
    samples = [_samples(groups.get(name, ())) for name in names]
    found = paired(samples)
    return None if found is None else as_numbers(found, factor)
