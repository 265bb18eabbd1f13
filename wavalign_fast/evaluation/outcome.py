"""Joins the stages into one result per prompt, and sums them up by category."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wavalign_fast.data.words import words
from wavalign_fast.errors import UserError
from wavalign_fast.evaluation.answering import CUT, NOT_ASKED, Response
from wavalign_fast.evaluation.presets import EQ, IQ
from wavalign_fast.evaluation.prompts import Prompt
from wavalign_fast.evaluation.scoring import FAILED, MISSING, Score
from wavalign_fast.evaluation.statistics import Estimate, Sample, combined, estimate, plain


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that is known of one answer: a line of ``results.jsonl``."""

    id: str
    category: str
    task: str
    language: str | None
    asked: str
    question: str
    references: list[str]
    text: str
    wav: str | None
    heard: str | None
    """What the speech recogniser understood; ``None`` if it was not asked."""
    agreement: float | None
    """Of that with the text: 1 is the same words, 0 that none is right."""
    status: str
    score: float | None
    numerators: list[float] | None
    denominators: list[float] | None
    cause: str | None
    read: str | None
    unparsable: bool
    empty: bool
    unended: bool
    asked_at_all: bool
    ids: int | None
    """Length of the answer in ids; ``None`` if it came without."""
    codes: int
    words: int

    @property
    def sample(self) -> Sample | None:
        """What it adds to its category."""
        if self.numerators is None or self.denominators is None:
            return None
        return Sample(tuple(self.numerators), tuple(self.denominators))

    def as_record(self) -> dict[str, Any]:
        """Returns the line as a dict."""
        return asdict(self)

    @classmethod
    def read_from(cls, record: Mapping[str, Any], where: str) -> "Result":
        """Returns the result of a line."""
        fields = cls.__dataclass_fields__
        if missing := [name for name in fields if name not in record]:
            raise UserError(f"{where}: key {missing[0]} is missing, wanted a line of results.jsonl")
        return cls(**{name: record[name] for name in fields})


def result(
    prompt: Prompt,
    response: Response,
    scored: Score,
    *,
    wav: str | None,
    heard: str | None = None,
    agreement: float | None = None,
) -> Result:
    """Returns the result of one answer."""
    return Result(
        id=prompt.id,
        category=prompt.category,
        task=prompt.task,
        language=prompt.language,
        asked=prompt.asked,
        question=prompt.question,
        references=list(prompt.references),
        text=response.text,
        wav=wav,
        heard=heard,
        agreement=agreement,
        status=scored.status,
        score=scored.value,
        numerators=None if scored.sample is None else list(scored.sample.numerators),
        denominators=None if scored.sample is None else list(scored.sample.denominators),
        cause=scored.cause,
        read=scored.read,
        unparsable=scored.unparsable,
        empty=scored.empty,
        unended=response.stop == CUT,
        asked_at_all=response.stop != NOT_ASKED,
        ids=len(response.ids) if response.ids or response.sampling else None,
        codes=len(response.codes),
        words=len(words(response.text)),
    )


def by_category(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Groups results, in the order in which their categories come."""
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(one.category, []).append(one)
    return groups


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Returns the content of ``report.json`` that is made from the results."""
    groups = by_category(results)
    return {
        "categories": {name: _category(group) for name, group in groups.items()},
        "iq": joined(groups, IQ),
        "eq": joined(groups, EQ),
    }


def joined(groups: Mapping[str, Sequence[Result]], names: Sequence[str]) -> dict[str, Any] | None:
    """Returns the mean of several categories, or what it lacks; ``None`` if none of them is there.

    Shares are given in per cent.
    """
    if not any(name in groups for name in names):
        return None
    samples = {name: samples_of(groups.get(name, ())) for name in names}
    lacks = [name for name in names if not samples[name]]
    if lacks:
        return {"value": None, "low": None, "high": None, "lacks": lacks}
    found = combined([samples[name] for name in names])
    return {**as_numbers(found, 100.0 if names == IQ else 1.0), "lacks": []}


def samples_of(results: Iterable[Result]) -> list[Sample]:
    """Returns the samples of the results that have one."""
    return [sample for one in results if (sample := one.sample) is not None]


def as_numbers(found: Estimate | None, factor: float = 1.0) -> dict[str, float | None]:
    """Returns value and interval of an estimate for JSON."""
    if found is None:
        return {"value": None, "low": None, "high": None}
    return {name: factor * value for name, value in found._asdict().items()}


def _category(results: Sequence[Result]) -> dict[str, Any]:
    lengths = [one.ids for one in results if one.ids is not None]
    spoken = [plain(one.agreement) for one in results if one.agreement is not None]
    causes = Counter(one.cause for one in results if one.status in (FAILED, MISSING))
    return {
        "task": results[0].task,
        "n": len(results),
        **as_numbers(estimate(samples_of(results))),
        "failed": sum(one.status == FAILED for one in results),
        "missing": sum(one.status == MISSING for one in results),
        "empty": sum(one.empty for one in results),
        "unparsable": sum(one.unparsable for one in results),
        "unended": sum(one.unended for one in results),
        "not_asked": sum(not one.asked_at_all for one in results),
        "causes": {str(cause): count for cause, count in causes.most_common()},
        "length": statistics.fmean(lengths) if lengths else None,
        "words": statistics.fmean([one.words for one in results]),
        "codes": statistics.fmean([one.codes for one in results]),
        "agreement": {**as_numbers(estimate(spoken)), "n": len(spoken)},
        "languages": _languages(results),
    }


def _languages(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Returns number and score by language; empty unless there are several."""
    names = sorted({one.language or "?" for one in results})
    groups = {name: [one for one in results if (one.language or "?") == name] for name in names}
    if len(groups) < 2:
        return {}
    return {
        name: {"n": len(group), **as_numbers(estimate(samples_of(group)))}
        for name, group in groups.items()
    }
