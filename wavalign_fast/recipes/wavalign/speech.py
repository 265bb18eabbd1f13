"""The codec of a run: codes of clips from the cache, waves of answers."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.code_cache import CodeCache
from wavalign_fast.speech.codec import CodecError, SpeechCodec
from wavalign_fast.speech.codecs import open_codec_of_channel

logger = logging.getLogger(__name__)

MOST_FAILURES = 5
"""Failed calls of the codec in a row after which the run stops: no more answer has sound."""


class NoCodecError(UserError):
    """Sound has to be encoded, and no codec is named."""


class Speech:
    """Encodes clips once, and decodes answers.

    Args:
        codec: ``None`` for a run that neither encodes nor decodes.
        cache: directory that keeps codes.
    """

    def __init__(self, codec: SpeechCodec | None, cache: Path) -> None:
        self.codec = codec
        self._failures = 0
        self._cache = CodeCache(cache / "codes")

    @property
    def sample_rate(self) -> int:
        """Of decoded waves, in Hz; 0 without a codec."""
        return 0 if self.codec is None else self.codec.sample_rate

    def check_codebook(self, wanted: int) -> None:
        """Raises ``UserError`` unless the codec has as many codes as the model."""
        if self.codec is not None and self.codec.codebook_size != wanted:
            raise UserError(
                f"{self.codec.name} has {self.codec.codebook_size} codes, wanted {wanted}, the "
                "model's"
            )

    def codes(self, path: Path) -> list[int]:
        """Returns the codes of a WAV file.

        Raises:
            NoCodecError: there is no codec.
            UserError: it fails, or the file cannot be read.
        """
        if self.codec is None:
            raise NoCodecError(f"{path} has to be encoded, and task.codec names no codec")
        return [int(code) for code in self._cache.codes(path, self.codec).codes]

    def waves(self, codes: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """Decodes answers; ``None`` for one without speech, or whose codec fails.

        A failing codec is logged; its answers have no sound, and a judge counts them as missing.

        Raises:
            CodecError: it has failed ``MOST_FAILURES`` times in a row.
        """
        spoken = [index for index, row in enumerate(codes) if row]
        waves: list[Tensor | None] = [None] * len(codes)
        if self.codec is None or not spoken:
            return waves
        try:
            decoded = self.codec.decode([torch.tensor(codes[index]) for index in spoken])
        except CodecError as error:
            self._failures += 1
            if self._failures == MOST_FAILURES:
                raise CodecError(f"{error}; {MOST_FAILURES} calls in a row failed") from error
            # An error, not a warning: each rank decodes its own, and all but one hide warnings.
            logger.error("%s; %d answers have no sound", error, len(spoken))
            return waves
        self._failures = 0
        for index, wave in zip(spoken, decoded, strict=True):
            waves[index] = wave
        return waves


def codec_of(
    options: Mapping[str, Any] | None, family_codec: str, channel: ChannelRule = "mean"
) -> SpeechCodec | None:
    """Makes the codec of ``task.codec``, ``None`` if there are no options.

    Args:
        family_codec: the kind that the family names, taken where the options name none.
        channel: that is encoded, where the options name none.
    """
    if options is None:
        return None
    return open_codec_of_channel({"kind": family_codec, **options}, channel)
