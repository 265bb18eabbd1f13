"""The audio files of dialogues."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from wavalign_fast.data.dialogues.records import Dialogue


def audio_files(dialogues: Iterable[Dialogue], *, answers_only: bool = False) -> list[Path]:
    """Returns the files of all turns and answers, each once, in their order.

    Args:
        answers_only: leave out what the user says.
    """
    found = dict.fromkeys(
        path for dialogue in dialogues for path in _files_of(dialogue, answers_only)
    )
    return list(found)


def _files_of(dialogue: Dialogue, answers_only: bool) -> Iterator[Path]:
    roles = [message.role for message in dialogue.messages for _ in range(message.tags)]
    for role, path in zip(roles, dialogue.audios, strict=True):
        if role == "assistant" or not answers_only:
            yield path
    yield from (path for path in (dialogue.target_audio, dialogue.rejected_audio) if path)
