"""GLM-4-Voice's tokenizer and decoder as a codec."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, naming
from wavalign_fast.speech.channels import ChannelRule, to_mono
from wavalign_fast.speech.codec import CodecError, check_codes, checked_input, checked_wave
from wavalign_fast.speech.file_digest import file_digest
from wavalign_fast.speech.glm4_voice.decoder import SpeechDecoder
from wavalign_fast.speech.glm4_voice.tokenizer import CODES_PER_SECOND, RATE, SpeechTokenizer
from wavalign_fast.speech.resample import resample

TOKENIZER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


class Glm4VoiceCodec:
    """Codes of GLM-4-Voice, VITA-Audio and Kimi-Audio (whose decoder is another).

    Args:
        tokenizer: the directory ``glm-4-voice-tokenizer``, ``None`` for a codec that only decodes.
        decoder: the directory ``glm-4-voice-decoder``, ``None`` for one that only encodes.
        channel: which channel to encode.
        device: where both compute, in float32.
        steps: Euler steps of the decoder.
        seed: of the decoder's noise.
        batch_size: most items that are decoded at once.

    Raises:
        UserError: as ``SpeechTokenizer`` and ``SpeechDecoder``; neither is given; they do not fit.
    """

    name = "glm4_voice"
    vita_caches = True
    """VITA-Audio keeps codes of this codec in files of its own (``CodeCache``)."""

    def __init__(
        self,
        *,
        tokenizer: str | Path | None = None,
        decoder: str | Path | None = None,
        channel: ChannelRule = "mean",
        device: str = "cpu",
        steps: int = 10,
        seed: int = 42,
        batch_size: int = 16,
    ) -> None:
        if tokenizer is None and decoder is None:
            raise UserError("glm4_voice: neither tokenizer nor decoder given, wanted a directory")
        self.channel = channel
        self._directory = None if tokenizer is None else Path(tokenizer)
        self._encoder = self._decoder = None
        with naming(self.name):
            if tokenizer is not None:
                self._encoder = SpeechTokenizer(Path(tokenizer), device=device)
            if decoder is not None:
                self._decoder = SpeechDecoder(
                    Path(decoder), device=device, steps=steps, seed=seed, batch_size=batch_size
                )
        sizes = [part.codebook_size for part in (self._encoder, self._decoder) if part is not None]
        rates = [CODES_PER_SECOND] * (self._encoder is not None)
        rates += [self._decoder.codes_per_second] if self._decoder is not None else []
        if len({*sizes}) > 1 or len({*rates}) > 1:
            raise UserError(
                f"glm4_voice: the tokenizer has {sizes[0]} codes at {rates[0]:g}/s, the decoder "
                f"{sizes[-1]} at {rates[-1]:g}/s, wanted the same"
            )
        self.codebook_size, self.codes_per_second = sizes[0], rates[0]
        self.sample_rate = SpeechDecoder.sample_rate

    @cached_property
    def identity(self) -> str:
        """A hash of the tokenizer's files."""
        digest = hashlib.sha256(self.name.encode())
        for name in TOKENIZER_FILES if self._directory is not None else ():
            file = self._directory / name  # type: ignore[operator]
            if file.is_file():
                digest.update(file_digest(file))
        return digest.hexdigest()

    def encode(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Returns int64 codes, 12.5 a second; see ``SpeechCodec``."""
        if self._encoder is None:
            raise CodecError(f"{self.name}: cannot encode: no tokenizer given")
        mono = to_mono(checked_input(self.name, wave), self.channel)
        return self._encoder.encode(resample(mono, sample_rate, RATE))

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Returns waves of 22 050 Hz; see ``SpeechCodec``."""
        if self._decoder is None:
            raise CodecError(f"{self.name}: cannot decode: no decoder given")
        check_codes(self.name, codes, self.codebook_size)
        spoken = [index for index, row in enumerate(codes) if len(row)]
        decoded = self._decoder.decode([codes[index].long() for index in spoken])
        waves = [torch.zeros(0) for _ in codes]
        for index, wave in zip(spoken, decoded, strict=True):
            waves[index] = checked_wave(self.name, wave)
        return waves
