"""Shapes of real heads and real steps, each with its source."""

import json
from dataclasses import dataclass, replace
from importlib.resources import files

from wavalign_fast.recipes.spoken_sums import vocabulary


@dataclass(frozen=True, kw_only=True)
class Head:
    """A language-model head over text and speech ids."""

    name: str
    """As given on the command line."""
    title: str
    source: str
    hidden: int
    vocab: int
    speech: tuple[int, int]
    """Half-open range of the speech ids."""
    boundary: tuple[int, ...] = ()
    """Ids that begin and end audio."""

    def __post_init__(self) -> None:
        if not 0 < self.speech[0] < self.speech[1] <= self.vocab:
            raise ValueError(f"{self.name}: speech {self.speech} is not inside [1, {self.vocab}]")


@dataclass(frozen=True, kw_only=True)
class LogprobShape(Head):
    """Rows whose log-probs are computed in one call."""

    rows: int

    @property
    def live(self) -> int:
        """Rows that meet the head: all of them."""
        return self.rows


@dataclass(frozen=True, kw_only=True)
class HybridShape(Head):
    """One hybrid step: B·G rollout rows and the demonstrations, right-padded to one length."""

    rollouts: int
    prompts: int = 1
    anchors: int
    length: int
    text_tokens: int
    """Text tokens of each rollout; those in scope carry loss."""
    speech_tokens: int
    anchor_tokens: int
    """Labelled tokens of each demonstration."""

    @property
    def positions(self) -> int:
        return (self.rollouts + self.anchors) * self.length

    @property
    def live(self) -> int:
        """Positions that carry loss when the policy's scope is text and the anchor's is all."""
        return self.rollouts * self.text_tokens + self.anchors * self.anchor_tokens


def _tiny_head() -> Head:
    base = files("wavalign_fast.recipes.spoken_sums").joinpath("assets/base/config.json")
    return Head(
        name="tiny",
        title="spoken-sums",
        source="the model that ships with this package (recipes/spoken_sums/assets/base)",
        hidden=json.loads(base.read_text(encoding="utf-8"))["hidden_size"],
        vocab=vocabulary.VOCAB_SIZE,
        speech=(vocabulary.SPEECH_START, vocabulary.SPEECH_END),
        boundary=(vocabulary.BEGIN_AUDIO, vocabulary.END_AUDIO),
    )


TINY = _tiny_head()
VITA_AUDIO = Head(
    name="vita-audio",
    title="VITA-Audio-Plus",
    source="the paper's model (arXiv 2604.14932): Qwen2.5-7B body, ids of the VITA-Audio "
    "tokenizer, two pad rows",
    hidden=3584,
    vocab=168072,
    speech=(151686, 168070),
    boundary=(151674, 151675),
)
GLM4_VOICE = Head(
    name="glm4-voice",
    title="GLM-4-Voice",
    source="config.json and tokenizer of glm-4-voice-9b: GLM-4-9B body, 16384 speech codes from "
    "<|audio_0|>, the rest pad rows; no boundary ids",
    hidden=4096,
    vocab=168960,
    speech=(152353, 168737),
)
STEP_AUDIO_2 = Head(
    name="step-audio-2",
    title="Step-Audio 2 mini",
    source="config.json and tokenizer of Step-Audio-2-mini: Qwen2-7B shape, 6562 speech codes, "
    "462 pad rows",
    hidden=3584,
    vocab=158720,
    speech=(151696, 158258),
)
COVO_AUDIO = Head(
    name="covo-audio",
    title="Covo-Audio-Chat",
    source="config.json and tokenizer of Covo-Audio-Chat: Qwen2.5-7B body, 16384 speech codes to "
    "the end of an odd vocabulary",
    hidden=3584,
    vocab=168055,
    speech=(151671, 168055),
)
KIMI_AUDIO = Head(
    name="kimi-audio",
    title="Kimi-Audio-7B, one head",
    source="config.json of Kimi-Audio-7B, one of its two full heads",
    hidden=3584,
    vocab=168448,
    speech=(152064, 168448),
)
HEADS = (TINY, VITA_AUDIO, GLM4_VOICE, STEP_AUDIO_2, COVO_AUDIO, KIMI_AUDIO)

KERNEL = LogprobShape(
    name="kernel",
    title="H 512, V 32768",
    source="no model: the shape at which this project's notes compare every rival on a CPU",
    hidden=512,
    vocab=32768,
    speech=(30000, 32768),
    rows=1024,
)
QUICK_KERNEL = replace(
    KERNEL,
    name="quick",
    title="quick",
    source="none: a small, odd head for continuous integration",
    hidden=128,
    vocab=4099,
    speech=(3000, 4099),
    rows=192,
)


AXES = ("rows", "vocab", "hidden")


@dataclass(frozen=True, kw_only=True)
class GrowthShape(LogprobShape):
    """A point on one axis: ``rows``, ``vocab`` or ``hidden`` varies, the others stay."""

    axis: str


def growth(axis: str, *, quick: bool) -> list[GrowthShape]:
    """The points of an axis from small to large, each twice the one before."""
    ranges = {"rows": (256, 8192), "vocab": (8192, 262144), "hidden": (128, 4096)}
    fixed = {"rows": 512, "vocab": 16384, "hidden": 256}
    if quick:
        ranges = {"rows": (64, 256), "vocab": (1024, 4096), "hidden": (64, 256)}
        fixed = {"rows": 64, "vocab": 2048, "hidden": 64}
    low, high = ranges[axis]
    values = [low * 2**k for k in range((high // low).bit_length())]
    return [
        GrowthShape(
            name=f"{axis}-{value}",
            title=f"{axis} {value}",
            source="no model: an axis of growth",
            axis=axis,
            **(size := fixed | {axis: value}),
            speech=(size["vocab"] // 2, size["vocab"]),
        )
        for value in values
    ]


def _logprob_shape(head: Head, rows: int) -> LogprobShape:
    return LogprobShape(**vars(head), rows=rows)


LOGPROB = {
    shape.name: shape
    for shape in (
        KERNEL,
        QUICK_KERNEL,
        _logprob_shape(TINY, 1024),
        # Full heads with few rows: every rival must fit into 24 GiB beside two copies of the head.
        *(_logprob_shape(head, 256) for head in HEADS if head is not TINY),
    )
}

SKIPPING = {
    shape.name: shape
    for shape in (_logprob_shape(TINY, 1024), QUICK_KERNEL, _logprob_shape(VITA_AUDIO, 504))
}
"""504 rows: 36 times 4 text and 10 speech tokens."""


def _step(head: Head, text: int, speech: int, rows: str) -> HybridShape:
    """One prompt, eight rollouts and one demonstration, 112 tokens each."""
    return HybridShape(
        **vars(head) | {"source": f"{head.source}; {rows}"},
        rollouts=8,
        anchors=1,
        length=112,
        text_tokens=text,
        speech_tokens=speech,
        anchor_tokens=84,
    )


PAPER = _step(
    VITA_AUDIO,
    21,
    50,
    "rows of 112 tokens, of which the text scope and one demonstration leave a quarter alive",
)
QUICK = replace(
    PAPER,
    name="quick",
    title="quick",
    source="none: a small head for continuous integration",
    hidden=128,
    vocab=4104,
    speech=(3000, 4104),
    boundary=(2990, 2991),
)
HYBRID = {
    shape.name: shape
    for shape in (
        PAPER,
        _step(GLM4_VOICE, 24, 48, "rows as in the paper's step, 13 text to 26 speech tokens"),
        _step(STEP_AUDIO_2, 21, 50, "rows as in the paper's step"),
        _step(COVO_AUDIO, 18, 54, "rows as in the paper's step, 5 text to 15 speech tokens"),
        _step(KIMI_AUDIO, 21, 50, "rows as in the paper's step"),
        HybridShape(
            **vars(TINY),
            rollouts=64,
            prompts=8,
            anchors=32,
            length=40,
            text_tokens=6,
            speech_tokens=24,
            anchor_tokens=30,
        ),
        QUICK,
    )
}


@dataclass(frozen=True, kw_only=True)
class PairShape(Head):
    """Preference pairs: all tokens of every sequence carry loss."""

    pairs: int
    length: int

    @property
    def live(self) -> int:
        return 2 * self.pairs * self.length


DPO = {
    shape.name: shape
    for shape in (
        PairShape(
            name="pairs",
            title="4 pairs of 128 tokens",
            source="no model: a head of moderate size",
            hidden=1024,
            vocab=32768,
            speech=(30000, 32768),
            pairs=4,
            length=128,
        ),
        PairShape(
            name="quick",
            title="quick",
            source="none: a small, odd head for continuous integration",
            hidden=128,
            vocab=4099,
            speech=(3000, 4099),
            pairs=2,
            length=48,
        ),
    )
}
