"""Shapes of real steps, each with its source."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class HybridShape:
    """One hybrid step: B·G rollout rows and the demonstrations, right-padded to one length."""

    name: str
    source: str
    hidden: int
    vocab: int
    speech_start: int
    boundary: tuple[int, int]
    rollouts: int
    anchors: int
    length: int
    text_tokens: int
    """Scored text tokens of each rollout."""
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


PAPER = HybridShape(
    name="VITA-Audio-Plus",
    source="arXiv 2604.14932 (Qwen2.5-7B body) with the ids of the VITA-Audio tokenizer; rows of "
    "112 tokens, of which the text scope and one demonstration leave a quarter alive",
    hidden=3584,
    vocab=168072,
    speech_start=151686,
    boundary=(151674, 151675),
    rollouts=8,
    anchors=1,
    length=112,
    text_tokens=21,
    speech_tokens=50,
    anchor_tokens=84,
)

QUICK = replace(
    PAPER,
    name="quick",
    source="none: a small head for continuous integration",
    hidden=256,
    vocab=8200,
    speech_start=6000,
    boundary=(5990, 5991),
)
