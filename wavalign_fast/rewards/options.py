"""The rewards of a run, ``task.rewards`` in a config: a list of parts, each of some kind.

They are known without importing torch; ``rewards.build`` makes the rewards of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from wavalign_fast.config.group import AsTuple, AtLeastOne, Count, Group, Weight
from wavalign_fast.config.layers import read_group
from wavalign_fast.errors import UserError, did_you_mean, shown
from wavalign_fast.rewards.judge.options import JudgeOptions

Finite = Annotated[float, Field(allow_inf_nan=False)]
Range = Annotated[tuple[Finite, Finite], AsTuple]
Amount = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]


class PartOptions(Group):
    """What every part of the rewards has."""

    kind: str
    """One of ``KINDS``."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")] | None = None
    """What metrics call it; by default its kind."""
    weight: Weight = 1.0
    """Its share is its weight over the sum of all."""
    when_missing: Literal["missing", "leave_out"] = "missing"
    """Without its reward the whole reward is missing, or the other parts count alone."""


class WithVeto(PartOptions):
    """A part that may decide alone."""

    veto: bool = False
    """A reward of 0 makes the whole reward the lowest, and the other parts are not asked."""


class JudgePart(PartOptions):
    """The judge of ``task.judge``, from 1 to 5."""

    kind: Literal["judge"] = "judge"


class ExactPart(WithVeto):
    """1 if the words of the text are those of the reference, else 0."""

    kind: Literal["exact"] = "exact"
    reference: str = "reference"
    """Key of the reference, in the answer or in its record."""
    part: bool = False
    """The reference's words somewhere in the text are enough."""


class NumericPart(WithVeto):
    """1 if a number of the text is that of the reference, else 0."""

    kind: Literal["numeric"] = "numeric"
    reference: str = "reference"
    """Key of the reference, in the answer or in its record; its last number counts."""
    which: Literal["last", "first"] = "last"
    """Which number of the text."""
    tolerance: Amount = 1e-6
    """Largest relative difference."""


class RegexPart(WithVeto):
    """1 if a regular expression is found in the text, else 0."""

    kind: Literal["regex"] = "regex"
    pattern: str
    """In Python's syntax."""
    reference: str | None = None
    """Key of a reference that the first group, or the whole match, must equal."""
    found: bool = True
    """false: it must not be found."""


class LengthPart(WithVeto):
    """1 for a length between two bounds, falling to 0 beyond."""

    kind: Literal["length"] = "length"
    unit: Literal["words", "characters", "ids", "speech_ids", "seconds"] = "words"
    """What is counted."""
    least: Amount = 0.0
    """The lower bound."""
    most: Amount = 1e9
    """The upper bound."""
    slope: Amount = 0.0
    """How far beyond a bound the reward reaches 0."""


class EndedPart(WithVeto):
    """1 for an answer that ended by itself, 0 for one that was cut off."""

    kind: Literal["ended"] = "ended"


class WerPart(PartOptions):
    """1 − word error rate of the speech against the answer's own text, not below 0."""

    kind: Literal["wer"] = "wer"
    recogniser: str
    """FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION. It gets a wave, float32 [N], and its rate in Hz,
    and returns text."""


class ClassifierPart(PartOptions):
    """A sequence-classification model over question and text."""

    kind: Literal["classifier"] = "classifier"
    path: Annotated[
        Path, BeforeValidator(lambda path: Path(path) if isinstance(path, str) else path)
    ]
    """Model directory."""
    label: Count = 0
    """Which output counts."""
    output: Literal["logit", "sigmoid", "probability"] = "logit"
    """The output as it is, its sigmoid, or its softmax."""
    range: Range = (0.0, 1.0)
    """Lowest and highest output; a logit beyond them counts as the bound."""
    chat: bool = False
    """Put question and text through the tokenizer's chat template."""
    batch_size: AtLeastOne = 16
    """Answers at once."""
    device: str = "auto"
    """auto: a GPU if there is one."""


class FunctionPart(PartOptions):
    """A function of yours, in a process of its own; docs/own_model.md describes it."""

    kind: Literal["function"] = "function"
    function: str
    """FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION."""
    arguments: dict[str, Any] = Field(default={})
    """Further arguments, by name."""
    range: Range
    """Its lowest and highest reward."""
    timeout_s: Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)] = 300.0
    """Seconds that one call may take."""


KINDS: dict[str, type[PartOptions]] = {
    kind.model_fields["kind"].default: kind
    for kind in (
        JudgePart,
        ExactPart,
        NumericPart,
        RegexPart,
        LengthPart,
        EndedPart,
        WerPart,
        ClassifierPart,
        FunctionPart,
    )
}


def read_parts(
    given: Sequence[Any] | None, judge: JudgeOptions, *, key: str = "task.rewards"
) -> list[PartOptions]:
    """Checks the parts of a config. Without any, a judge that is given is the only one.

    Args:
        key: what errors call the list.

    Raises:
        UserError: a part is none, or the judge is a part and ``judge`` has no address.
    """
    parts = [_read(value, f"{key}[{place}]") for place, value in enumerate(given or ())]
    if not parts and judge.url is not None:
        parts = [JudgePart()]
    asks = any(isinstance(part, JudgePart) for part in parts)
    if asks and judge.url is None:
        raise UserError(f"{key}: a part of kind judge, and task.judge.url is missing")
    if not asks and judge.url is not None:
        raise UserError(f"{key}: no part of kind judge, and task.judge.url is given; wanted one")
    return parts


def _read(value: Any, name: str) -> PartOptions:
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: {shown(value)} given, wanted a group of keys with kind")
    kind = value.get("kind")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        hint = did_you_mean(str(kind), KINDS)
        raise UserError(f"{name}.kind: {shown(kind)} given, wanted one of {known}{hint}")
    return read_group(name, KINDS[kind], value)
