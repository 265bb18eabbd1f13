"""Turns a raw record into a ``Dialogue``: the RL, SFT and DPO schema, and the legacy one.

A record with ``messages`` has the first schema, any other the legacy one. The rules are those of
WavAlign's released dataset class, except where ``ReadOptions`` says otherwise.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wavalign_fast.data.dialogues.records import (
    AUDIO_TAG,
    ROLES,
    Dialogue,
    Message,
    Place,
    Scores,
    count_tags,
)
from wavalign_fast.data.jsonl import HALF_PAIR
from wavalign_fast.errors import UserError, shown

TEXTS = (
    "sft_target_text",
    "sft_target_audio",
    "rejected_text",
    "rejected_audio",
    "task_type",
    "question_text",
    "question_text_raw",
    "history_text",
)
LEGACY_PROMPT = ("question_text", "question_audio", "history", "history_text")
LEGACY_TEXTS = ("question_audio", "answer_text", "answer_audio_path", "history")
SCORES = ("chosen_score", "rejected_score", "score_gap")
LARGE = 1e300
MARKER = re.compile(r"\[(USER|ASSISTANT)\]")
SPEAKERS = {"USER": "User", "ASSISTANT": "Assistant"}


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How records become dialogues."""

    task_types: tuple[str, ...] | None = ("s2s",)
    """Dialogues of other task types are left out; ``None`` keeps all."""
    system_text: str | None = None
    """Put in front of a dialogue that does not begin with a system turn."""
    audio_base_path: Path | None = None
    """Folder that relative paths start from; default: the folder of the file."""
    validate_audio: bool = False
    """Leave paths out where there is no file. Their tags remain: see ``unmatched``."""
    force_s2s: bool = False
    """Give the question of every legacy record an audio tag, also without an audio."""
    unmatched: Literal["drop", "keep"] = "drop"
    """What becomes of a dialogue in which the numbers of audio tags and audios differ, or a path is
    empty. The release keeps it: its tags then belong to the wrong audios."""
    max_samples: int | None = None
    """Read a random subset of this size, in the order of the files."""
    seed: int = 42
    """Of the random subset."""

    def __post_init__(self) -> None:
        if self.unmatched not in ("drop", "keep"):
            raise UserError(f"unmatched: {shown(self.unmatched)} given, wanted drop or keep")
        if self.max_samples is not None and self.max_samples < 1:
            raise UserError(f"max_samples: {self.max_samples} given, wanted at least 1")


def structure_errors(record: Mapping[str, Any]) -> list[str]:
    """Returns what makes a record unusable whatever the options are."""
    errors = [
        f"{name} is {shown(record[name])}, wanted text"
        for name in (*TEXTS, *LEGACY_TEXTS)
        if not is_text(record.get(name))
    ]
    original = record.get("original_sample")
    if isinstance(original, Mapping):
        errors += [
            f"original_sample.{name} is {shown(original[name])}, wanted text"
            for name in TEXTS
            if not is_text(original.get(name))
        ]
    audios = record.get("audios")
    if audios is not None and not isinstance(audios, list):
        errors.append(f"audios is {shown(audios)}, wanted a list")
    for number, audio in enumerate(audios if isinstance(audios, list) else ()):
        if not is_text(audio):
            errors.append(f"audios[{number}] is {shown(audio)}, wanted a path as text")
    if not is_legacy(record):
        return errors + list(_message_errors(record["messages"]))
    if not any(record.get(key) for key in LEGACY_PROMPT):
        errors.append("no messages, and no question_text, question_audio or history either")
    return errors


def is_legacy(record: Mapping[str, Any]) -> bool:
    """Whether a record has the legacy schema."""
    return record.get("messages") is None


def is_text(value: Any) -> bool:
    """Whether it is ``None`` or text that can be encoded."""
    return value is None or (isinstance(value, str) and not HALF_PAIR.search(value))


def _message_errors(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list):
        yield f"messages is {shown(messages)}, wanted a list"
        return
    if not messages:
        yield "messages is empty, wanted a turn of the user"
        return
    users = 0
    for number, turn in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(turn, Mapping):
            yield f"{name} is {shown(turn)}, wanted an object with role and content"
            continue
        role, content = turn.get("role"), turn.get("content")
        users += role == "user"
        if role not in ROLES:
            yield f"{name}.role is {shown(role)}, wanted one of {', '.join(ROLES)}"
        if content is None:
            yield f"{name} has no content, wanted text"
        elif not is_text(content):
            yield f"{name}.content is {shown(content)}, wanted text"
    if not users:
        yield "no turn of the user"


def make_dialogue(
    record: Mapping[str, Any], place: Place, folder: Path, options: ReadOptions
) -> Dialogue:
    """Returns the dialogue of a record without ``structure_errors``; filters nothing.

    Args:
        folder: that relative paths start from, unless ``audio_base_path`` is given.
    """
    base = options.audio_base_path or folder
    if is_legacy(record):
        messages, given = _legacy_prompt(record, options)
    else:
        messages, given = _prompt(record, options)
    audios = tuple(path for audio in given if (path := _file(audio, base, options)))
    target_text = _stripped(_first(record, "answer_text", "sft_target_text"))
    target_audio = _file(_first(record, "answer_audio_path", "sft_target_audio"), base, options)
    question = None if is_legacy(record) else record.get("question_text")
    return Dialogue(
        place=place,
        id=record.get("id"),
        messages=messages,
        audios=audios,
        target_text=target_text,
        target_audio=target_audio,
        # The release strips the chosen text alone, which the loss could learn to tell them by.
        rejected_text=_stripped(_rejected(record, "rejected_text")),
        rejected_audio=_file(_rejected(record, "rejected_audio"), base, options),
        task_type=record.get("task_type")
        or _inferred_task(
            hears=bool(audios) or count_tags(messages) > 0,
            writes=target_text is not None,
            speaks=target_audio is not None,
        ),
        question_text=question or _words(messages),
        question_text_raw=record.get("question_text_raw"),
        history_text=_history(record) if is_legacy(record) else record.get("history_text"),
        scores=Scores(*(number_of(record.get(name)) for name in SCORES)),
        record=record,
    )


def _prompt(
    record: Mapping[str, Any], options: ReadOptions
) -> tuple[tuple[Message, ...], list[str | None]]:
    """Returns the turns up to the last one that is not the assistant's, and the paths."""
    turns = [Message(turn["role"], turn["content"]) for turn in record["messages"]]
    audios = list(record.get("audios") or ())
    kept = list(turns)
    while kept and kept[-1].role == "assistant":
        kept.pop()
    if options.unmatched == "drop" and count_tags(tuple(turns)) == len(audios):
        audios = audios[: count_tags(tuple(kept))]  # the others belong to the turns left out
    return _with_system(kept, options), audios


def _legacy_prompt(
    record: Mapping[str, Any], options: ReadOptions
) -> tuple[tuple[Message, ...], list[str | None]]:
    """Returns one turn of the user: earlier turns, question and audio, joined by blank lines."""
    audio = record.get("question_audio")
    parts = [_history(record), (record.get("question_text") or "").strip()]
    parts.append(AUDIO_TAG if audio or options.force_s2s else "")
    turn = Message("user", "\n\n".join(filter(None, parts)))
    return _with_system([turn], options), [audio] if audio else []


def _with_system(turns: Sequence[Message], options: ReadOptions) -> tuple[Message, ...]:
    if options.system_text is not None and turns and turns[0].role != "system":
        turns = [Message("system", options.system_text), *turns]
    return tuple(turns)


def _history(record: Mapping[str, Any]) -> str:
    """Returns the earlier turns, one a line, with the names of the speakers for the markers."""
    text = (record.get("history") or record.get("history_text") or "").strip()
    before, *marked = MARKER.split(text)
    lines = [before.strip()]
    for speaker, words in zip(marked[::2], marked[1::2], strict=True):
        if words.strip():
            lines.append(f"{SPEAKERS[speaker]}: {words.strip()}")
    return "\n".join(filter(None, lines))


def _words(messages: Sequence[Message]) -> str:
    """Returns what the user writes, without audio tags."""
    turns = [
        turn.content.replace(AUDIO_TAG, "").strip() for turn in messages if turn.role == "user"
    ]
    return "\n\n".join(filter(None, turns))


def _inferred_task(*, hears: bool, writes: bool, speaks: bool) -> str:
    if hears and writes:
        return "s2s" if speaks else "asr"
    if speaks and not hears:
        return "tts"
    return "text" if writes else "unknown"


def _file(path: str | None, base: Path, options: ReadOptions) -> Path | None:
    if not path or not path.strip():
        return None
    found = base / path  # an absolute path stays as it is
    return None if options.validate_audio and not os.path.exists(found) else found


def _first(record: Mapping[str, Any], legacy: str, name: str) -> str | None:
    return (record.get(legacy) if is_legacy(record) else None) or record.get(name)


def _rejected(record: Mapping[str, Any], name: str) -> str | None:
    original = record.get("original_sample")
    return record.get(name) or (original.get(name) if isinstance(original, Mapping) else None)


def _stripped(text: str | None) -> str | None:
    return (text or "").strip() or None


def number_of(value: Any) -> float | None:
    """Returns a number that a float can hold, and ``None`` for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < LARGE else None
