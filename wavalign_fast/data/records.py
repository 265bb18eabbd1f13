"""Records that data, rollout, rewards and trainer exchange."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt, with the reference answer that a reward compares against."""

    id: str
    prompt: str
    """The prompt as text, e.g. ``"eighty seven plus six"``."""
    prompt_ids: tuple[int, ...]
    reference: str
    """The right answer as text."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt with a spoken answer for the anchor; every id of ``answer_ids`` is a label."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One rollout: the sampled ids, including the end-of-sequence id if it was sampled."""

    example: Example
    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, kw_only=True)
class SpokenSample:
    """One evaluated answer for people: the written text, what the judge heard, and the sound."""

    prompt: str
    reference: str
    text: str
    heard: str | None
    """``None`` if nobody judged it."""
    waveform: "object"
    """float32 numpy array [samples] in [-1, 1]."""
    sample_rate: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of one held-out evaluation, and a few answers to listen to."""

    metrics: dict[str, float]
    samples: list[SpokenSample] = field(default_factory=list)
