"""Records that data, rollout, rewards and trainer exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt, with the reference answer that a reward compares against."""

    id: str
    prompt: str
    """The prompt as text, e.g. ``"eighty seven plus six"``."""
    prompt_ids: tuple[int, ...]
    reference: str
    """The right answer as text."""
    answer_ids: tuple[int, ...] = ()
    """Ids of a demonstrated answer, with the end-of-sequence id; empty if there is none."""
    rejected_ids: tuple[int, ...] = ()
    """Ids of a worse answer than ``answer_ids``, for DPO; empty if there is none."""
    history: tuple[int, ...] = ()
    """Positions of ``prompt_ids`` that the anchor learns too, such as those of earlier answers."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object that the example was read from, for rewards that need more of it."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A prompt with a spoken answer for the anchor; every id of ``answer_ids`` is a label."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    history: tuple[int, ...] = ()
    """Positions of ``prompt_ids`` that are labels too, such as those of earlier answers; not 0,
    which nothing predicts."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt with a better and a worse answer; every id of an answer may carry loss."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    example_id: str | None = None
    """``Example.id`` of the training example with this prompt, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One rollout: the sampled ids, including the end-of-sequence id if it was sampled."""

    example: Example
    ids: tuple[int, ...]
    ended: bool
    logps: "Tensor | None" = field(default=None, compare=False, repr=False)
    """float32 [len(ids)], log-probs that the ids were sampled with; ``None`` if unknown."""


@dataclass(frozen=True, kw_only=True)
class SpokenSample:
    """One evaluated answer for people: the written text, what the judge heard, and the sound.

    A task that cannot turn speech ids into sound gives no waveform.
    """

    prompt: str
    reference: str
    text: str
    heard: str | None = None
    """``None`` if nobody listened to it."""
    waveform: object = None
    """float32 numpy array [samples] in [-1, 1], or ``None``."""
    sample_rate: int = 0
    reward: float | None = None
    """On the scale of the reward function; ``None`` without one, or if it is missing."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of one held-out evaluation, and a few answers to listen to."""

    metrics: dict[str, float]
    samples: list[SpokenSample] = field(default_factory=list)
