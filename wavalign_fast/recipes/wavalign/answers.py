"""Answers as people would read and hear them, which judge and local rewards get."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wavalign_fast.data.records import Completion
from wavalign_fast.models.families.interface import Answer
from wavalign_fast.recipes.wavalign.speech import Speech
from wavalign_fast.recipes.wavalign.tokens import FamilyTokens


@dataclass(frozen=True)
class SpokenAnswer:
    """An answer, taken apart and decoded."""

    done: Completion
    parts: Answer
    text: str
    wave: Tensor | None
    """float32 [N], ``None`` without speech or a codec that decodes."""
    sample_rate: int

    @property
    def described(self) -> dict[str, Any]:
        """What rewards get of it; docs/judge.md lists the keys."""
        example = self.done.example
        return {
            "id": example.id,
            "prompt": example.prompt,
            "prompt_ids": list(example.prompt_ids),
            "reference": example.reference,
            "text": self.text,
            "ids": list(self.done.ids),
            "speech_ids": self.parts.codes,
            "wave": self.wave,
            "sample_rate": self.sample_rate,
            "ended": self.done.ended,
            "record": dict(example.record),
        }


class Listener:
    """Takes answers apart and decodes their speech."""

    def __init__(self, tokens: FamilyTokens, speech: Speech) -> None:
        self.tokens = tokens
        self.speech = speech

    def __call__(self, completions: Sequence[Completion]) -> list[SpokenAnswer]:
        """Returns the answers; their speech is decoded in one batch."""
        parts = [self.tokens.split(done.ids) for done in completions]
        waves = self.speech.waves([part.codes for part in parts])
        return [
            SpokenAnswer(done, part, self.tokens.words(part), wave, self.speech.sample_rate)
            for done, part, wave in zip(completions, parts, waves, strict=True)
        ]
