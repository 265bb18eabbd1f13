"""Scores an answer: locally where a rule decides, else by what the judge said of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from wavalign_fast.data.words import contains, words
from wavalign_fast.evaluation.answering import NOT_ASKED, Response
from wavalign_fast.evaluation.choices import NO, YES, read_letter, read_yes_or_no
from wavalign_fast.evaluation.instructions import followed
from wavalign_fast.evaluation.judging import Judged, scale_of
from wavalign_fast.evaluation.prompts import SPEECH_TASKS, Prompt
from wavalign_fast.evaluation.refusals import refuses
from wavalign_fast.evaluation.statistics import Sample, plain

SCORED, FAILED, MISSING = "scored", "failed", "missing"
NO_REGISTRY = "no registry of instructions (--ifeval-registry)"


class Score(NamedTuple):
    """What an answer counts."""

    status: str
    """``scored``; ``failed``: it has the lowest score; ``missing``: the mean leaves it out."""
    sample: Sample | None
    value: float | None
    """The score on the task's scale, for people; of ``ifeval`` the share of strict instructions."""
    cause: str | None = None
    read: str | None = None
    """The letter or the word that was read from the answer."""
    unparsable: bool = False
    empty: bool = False


class Rules(NamedTuple):
    """What decides besides the records."""

    registry: Mapping[str, Any] | None = None
    """Of ``ifeval``."""
    judged_qa: bool = False
    """Whether the judge decides on ``qa``, and not the words of the reference."""


def needs_judge(prompt: Prompt, rules: Rules) -> bool:
    """Whether no rule scores the answers to a prompt."""
    by_rule = ("mcq", "bool", "ifeval", "refusal") if rules.judged_qa else (
        "qa", "mcq", "bool", "ifeval", "refusal"
    )  # fmt: skip
    return prompt.task not in by_rule


def is_empty(prompt: Prompt, response: Response, *, has_sound: bool) -> bool:
    """Whether an answer has nothing that can be scored: no text, or no speech where that counts."""
    if prompt.task in SPEECH_TASKS:
        return not response.codes and not has_sound
    return not response.text.strip()


def score(
    prompt: Prompt, response: Response, judgement: Judged | None, rules: Rules, *, has_sound: bool
) -> Score:
    """Scores one answer.

    An empty answer fails, and so does one that was not asked: the lowest score of the scale. An
    answer that cannot be read is wrong. Without a judgement, where one is needed, it is missing.

    Args:
        judgement: the judge's, or ``None`` if none was asked.
        has_sound: whether there is a sound file of the answer.
    """
    if prompt.task == "ifeval" and rules.registry is None:
        return Score(MISSING, None, None, NO_REGISTRY)
    if response.stop == NOT_ASKED:
        return _failed(prompt, response.cause or NOT_ASKED)
    if is_empty(prompt, response, has_sound=has_sound):
        what = "no speech" if prompt.task in SPEECH_TASKS else "empty"
        return _failed(prompt, what)._replace(empty=True)
    if needs_judge(prompt, rules):
        if judgement is None or judgement.score is None:
            cause = judgement.cause if judgement else "no judge (--judge)"
            return Score(MISSING, None, None, cause)
        return Score(SCORED, plain(judgement.score), judgement.score)
    return _by_rule(prompt, response.text, rules)


def _failed(prompt: Prompt, cause: str) -> Score:
    low, _ = scale_of(prompt.task)
    count = len(prompt.instructions)
    sample = _ifeval((False,) * count, (False,) * count) if count else plain(low)
    return Score(FAILED, sample, low, cause)


def _by_rule(prompt: Prompt, text: str, rules: Rules) -> Score:
    if prompt.task == "ifeval":
        assert rules.registry is not None  # scored as missing before
        holds = followed(text, [(name, dict(given)) for name, given in prompt.instructions],
                         rules.registry, prompt=prompt.question)  # fmt: skip
        share = sum(holds.strict) / len(holds.strict)
        return Score(SCORED, _ifeval(*holds), share)
    if prompt.task == "refusal":
        return _share(refuses(text))
    if prompt.task == "qa":
        said = words(text)
        right = next((one for one in prompt.references if contains(said, words(one))), None)
        return _share(right is not None, read=right)
    read, wanted = _chosen(prompt, text)
    return _share(read is not None and read in wanted, read=read)._replace(unparsable=read is None)


def _chosen(prompt: Prompt, text: str) -> tuple[str | None, set[str]]:
    """Returns what the answer chooses, and what it should: letters, or yes or no."""
    wanted = {reference.strip().strip("().").upper() for reference in prompt.references}
    if prompt.task == "mcq":
        return read_letter(text, prompt.choices), wanted
    if wanted <= {"A", "B"}:
        return read_letter(text, prompt.choices, count=2), wanted
    names = {"YES": YES, "TRUE": YES, "NO": NO, "FALSE": NO}
    return read_yes_or_no(text), {names.get(one, one) for one in wanted}


def _share(right: bool, *, read: str | None = None) -> Score:
    return Score(SCORED, plain(float(right)), float(right), read=read)


def _ifeval(strict: tuple[bool, ...], loose: tuple[bool, ...]) -> Sample:
    """The four accuracies: by prompt and by instruction, strict and loose."""
    count = float(len(strict))
    return Sample(
        (float(all(strict) and bool(strict)), float(sum(strict)),
         float(all(loose) and bool(loose)), float(sum(loose))),
        (1.0, count, 1.0, count),
    )  # fmt: skip
