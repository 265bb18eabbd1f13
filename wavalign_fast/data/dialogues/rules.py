"""What is wrong with one record, and how grave it is."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from wavalign_fast.data.dialogues.read import unmatched_audio
from wavalign_fast.data.dialogues.records import AUDIO_TAG, TASK_TYPES, Dialogue
from wavalign_fast.data.dialogues.schemas import is_legacy
from wavalign_fast.errors import shown

Severity = Literal["error", "dropped", "warning"]
SEVERITIES: tuple[Severity, ...] = ("error", "dropped", "warning")
"""The gravest first. An error makes training fail or learn the wrong thing; a dropped record is
left out as the options want it; a warning is odd but can be meant."""

SPECIAL = re.compile(r"<\|[^<>|\s]{1,64}\|>|<audio_\w{1,16}>|<tts_\w{1,16}>|\[gMASK\]|<[se]op>")
"""Special tokens of the families in text: a tokenizer would read them as control."""


class Fault(NamedTuple):
    """One thing that is wrong with a record."""

    severity: Severity
    kind: str
    """One of few, to count by."""
    message: str
    """What was seen and what was wanted."""


def faults(dialogue: Dialogue, task_types: tuple[str, ...] | None) -> Iterator[Fault]:
    """Yields what is wrong with a dialogue, apart from its audio files.

    Args:
        task_types: those that a run keeps; ``None`` for all.
    """
    if problem := unmatched_audio(dialogue):
        yield Fault("error", "audio tags and audios do not match", problem)
    yield from _turns(dialogue)
    yield from _answers(dialogue)
    yield from _task(dialogue, task_types)


def _turns(dialogue: Dialogue) -> Iterator[Fault]:
    for number, turn in enumerate(dialogue.messages):
        name = f"messages[{number}]"
        if turn.role == "system" and number:
            yield Fault("warning", "system turn after the first", f"{name} is a system turn")
        if turn.role == "user" and not turn.content.strip():
            yield Fault("warning", "empty turn", f"{name} has neither words nor an audio tag")
        if turn.role == "assistant" and turn.tags > 1:
            message = f"{name} is an answer with {turn.tags} audio tags, wanted at most 1"
            yield Fault("error", "several audios in an answer", message)
        for token in _special(turn.content):
            message = f"{name} holds the special token {shown(token)}"
            yield Fault("warning", "special token in a prompt", message)


def _answers(dialogue: Dialogue) -> Iterator[Fault]:
    for name, text in (("target", dialogue.target_text), ("rejected", dialogue.rejected_text)):
        if tags := (text or "").count(AUDIO_TAG):
            message = f"{name} text holds {tags} audio tags, wanted none: the audio is given apart"
            yield Fault("error", "audio tag in an answer", message)
        for token in _special(text or ""):
            message = f"{name} text holds the special token {shown(token)}"
            yield Fault("error", "special token in an answer", message)
    unread = "" if is_legacy(dialogue.record) else _answer_left_out(dialogue.record["messages"])
    if unread and unread != dialogue.target_text:
        message = f"messages end with an answer, {shown(unread)}, which is not the target"
        yield Fault("warning", "answer in the messages is not read", message)
    has_target = dialogue.target_text is not None or dialogue.target_audio is not None
    if not dialogue.is_pair:
        if not has_target and (dialogue.rejected_text or dialogue.rejected_audio):
            message = "a rejected answer without a target, wanted both for DPO"
            yield Fault("warning", "rejected answer alone", message)
        return
    chosen = dialogue.target_text, dialogue.target_audio
    if chosen == (dialogue.rejected_text, dialogue.rejected_audio):
        yield Fault("warning", "equal pair", "chosen and rejected are the same")


def _task(dialogue: Dialogue, task_types: tuple[str, ...] | None) -> Iterator[Fault]:
    task = dialogue.task_type
    if task not in TASK_TYPES:
        message = f"task type is {shown(task)}, wanted one of {', '.join(TASK_TYPES)}"
        yield Fault("warning", "unknown task type", message)
    heard = dialogue.audios or dialogue.tags
    if task == "s2s" and not heard and dialogue.target_audio is None:
        message = "task type is s2s, but there is no audio at all"
        yield Fault("warning", "speech task without speech", message)
    if task_types is not None and task not in task_types:
        message = f"task type is {shown(task)}, kept are {', '.join(task_types)}"
        yield Fault("dropped", "other task type", message)


def _special(text: str) -> list[str]:
    return sorted({token for token in SPECIAL.findall(text) if token != AUDIO_TAG})


def _answer_left_out(messages: list[Mapping[str, Any]]) -> str:
    """Returns the words of the assistant's turns at the end, which no prompt has."""
    words: list[str] = []
    for turn in reversed(messages):
        if turn["role"] != "assistant":
            break
        words.insert(0, turn["content"].replace(AUDIO_TAG, "").strip())
    return "\n".join(filter(None, words))
