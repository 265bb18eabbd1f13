"""The second stage: decodes the speech codes of answers to WAV files."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from wavalign_fast.errors import one_line
from wavalign_fast.evaluation.answering import Response
from wavalign_fast.evaluation.stages import StageFile
from wavalign_fast.speech.wave_files import write_wave

logger = logging.getLogger(__name__)

FOLDER = "wavs"


class Decoder(Protocol):
    """The half of a speech codec that speaks."""

    @property
    def sample_rate(self) -> int:
        """Samples a second of what it decodes."""

    def decode(self, codes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns a wave, float32 in [-1, 1], for each int64 [T]."""


def spoken(
    codec: Decoder,
    responses: Sequence[Response],
    directory: Path,
    file: StageFile,
    *,
    at_once: int,
) -> Iterator[int]:
    """Decodes the answers that have codes and no WAV file yet; yields how many are done.

    A line is added once its WAV file is whole. An answer that cannot be decoded gets a line with
    the cause, and the others are decoded; a later call tries it again.
    """
    known = file.read()
    wanted = [
        response
        for response in responses
        if response.codes and not _is_there(known.get((response.id, response.asked)), directory)
    ]
    for start in range(0, len(wanted), at_once):
        part = wanted[start : start + at_once]
        file.append(_decoded(codec, part, directory))
        yield len(part)


def _is_there(record: dict[str, Any] | None, directory: Path) -> bool:
    return bool(record and record.get("wav") and (directory / record["wav"]).is_file())


def _decoded(
    codec: Decoder, responses: Sequence[Response], directory: Path
) -> list[dict[str, Any]]:
    try:
        waves = codec.decode([torch.tensor(response.codes) for response in responses])
    except Exception as error:  # a codec may be the user's, or a service
        if len(responses) > 1:  # find the answer that it fails on
            return [line for one in responses for line in _decoded(codec, [one], directory)]
        (response,) = responses
        logger.warning("%s: no speech: %s", response.id, one_line(error))
        return [{**_named(response), "wav": None, "cause": one_line(error)}]
    lines = []
    for response, wave in zip(responses, waves, strict=True):
        name = f"{FOLDER}/{_file_name(response)}"
        write_wave(directory / name, wave.detach().cpu(), codec.sample_rate)
        seconds = round(wave.numel() / codec.sample_rate, 3)
        lines.append(
            {**_named(response), "wav": name, "rate": codec.sample_rate, "seconds": seconds}
        )
    return lines


def _named(response: Response) -> dict[str, str]:
    return {"id": response.id, "asked": response.asked}


def _file_name(response: Response) -> str:
    """Returns a name that any file system takes, and that differs where the prompts do."""
    return f"{re.sub('[^A-Za-z0-9-]+', '_', response.id)[:60]}-{response.asked[:8]}.wav"
