"""The third stage: a speech recogniser listens to the answers, to compare sound with text."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from wavalign_fast.data.words import word_errors, words
from wavalign_fast.errors import described
from wavalign_fast.evaluation.prompts import file_digest
from wavalign_fast.evaluation.stages import StageFile
from wavalign_fast.rewards.spoken_words import Recogniser
from wavalign_fast.speech.channels import to_mono
from wavalign_fast.speech.wave_files import read_wave

logger = logging.getLogger(__name__)


def heard(recogniser: Recogniser, sounds: Mapping[str, Path], file: StageFile) -> Iterator[int]:
    """Recognises the files that were not heard yet, by id; yields 1 for each that is done.

    A failure is noted with its cause, and tried again by a later call.
    """
    known = file.read()
    for name, path in sounds.items():
        sound = file_digest(path)
        if known.get((name, sound), {}).get("text") is None:
            file.append([{"id": name, "sound": sound, **_recognised(recogniser, path)}])
            yield 1


def _recognised(recogniser: Recogniser, path: Path) -> dict[str, str | None]:
    try:
        wave, rate = read_wave(path)
        text = recogniser(to_mono(wave), rate)
        if not isinstance(text, str):
            raise TypeError(f"{type(text).__name__} returned, wanted text")
    except Exception as error:  # the recogniser is the user's
        logger.warning("%s: not heard: %s", path.name, described(error))
        return {"text": None, "cause": described(error)}
    return {"text": text}


def agreement(text: str, heard_text: str) -> float:
    """Returns 1 − the word error rate of what was heard, not below 0.

    An answer without words agrees if nothing is heard.
    """
    wanted, given = words(text), words(heard_text)
    if not wanted:
        return float(not given)
    return max(0.0, 1.0 - word_errors(wanted, given) / len(wanted))
