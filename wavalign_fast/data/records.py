"""The records that data, rollout, rewards and the training loop hand to each other."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt to answer, with the reference a reward compares against."""

    id: str
    prompt: str
    """What a person reads, e.g. ``"eighty seven plus six"``."""
    prompt_ids: tuple[int, ...]
    reference: str
    """The right answer as text."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt with a spoken answer for the anchor; every token of ``answer_ids`` is a label."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One rollout: the sampled ids, the end-of-sequence id included where it was sampled."""

    example: Example
    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, kw_only=True)
class SpokenSample:
    """One evaluated answer, for people: what the model wrote, what the judge heard, its sound."""

    prompt: str
    reference: str
    text: str
    heard: str | None
    """``None`` where nobody judged it."""
    waveform: "object"
    """float32 numpy array [samples] in [-1, 1]."""
    sample_rate: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one held-out evaluation and a few answers to listen to."""

    metrics: dict[str, float]
    samples: list[SpokenSample] = field(default_factory=list)
