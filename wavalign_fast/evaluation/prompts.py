"""The prompts of an evaluation: what is asked, and how its answer is scored."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wavalign_fast.speech.file_digest import file_digest as whole_digest

Task = Literal["open", "qa", "mcq", "bool", "ifeval", "refusal", "style", "spoken"]
TASKS: tuple[str, ...] = get_args(Task)
SPEECH_TASKS = frozenset(("style", "spoken"))
"""Tasks whose score is for the speech of the answer. The others score its text."""
RATED = frozenset(("open", "style", "spoken"))
"""Tasks with scores from 1 to 5. The others have shares from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One record."""

    id: str
    task: str
    category: str
    messages: tuple[tuple[str, str], ...]
    """Role and text of each turn; the last one is the user's."""
    audios: tuple[Path, ...] = ()
    """WAV files that belong to the ``<|audio|>`` marks of the messages, in order."""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    language: str | None = None
    rubric: str | None = None
    instructions: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    """Name and arguments of what an ``ifeval`` answer must follow."""
    answer: str | None = None
    """An answer that came with the record; it may be empty."""
    answer_audio: Path | None = None
    """The sound of that answer."""
    answer_score: float | None = None
    """A judgement of that answer that came with it."""
    source: dict[str, Any]
    """The record as it was read."""
    where: str
    """File and line."""

    @property
    def question(self) -> str:
        """The last turn of the user, as text."""
        return self.messages[-1][1]

    @functools.cached_property
    def asked(self) -> str:
        """Digest of what the model is asked. An answer belongs to it, not to the id alone."""
        audio = [file_digest(path) for path in self.audios]
        return digest([self.messages, audio])

    @functools.cached_property
    def scored_by(self) -> str:
        """Digest of what a judge is told of the prompt."""
        return digest([self.task, self.messages, self.references, self.rubric])


def digest(value: Any) -> str:
    """Returns a short digest of a JSON value."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Returns a short digest of a file's bytes."""
    return whole_digest(path).hex()[:16]
