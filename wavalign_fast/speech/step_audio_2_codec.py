"""Step-Audio 2's codec by its own package, which needs a CUDA GPU."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.file_digest import file_digest
from wavalign_fast.speech.foreign import CodecFacts, ForeignCodec
from wavalign_fast.speech.random_state import forked_random_state
from wavalign_fast.speech.resample import resample
from wavalign_fast.speech.wave_files import read_wave

TOKENIZER_RATE = 16_000
TOKENIZER = "speech_tokenizer_v2_25hz.onnx"
PADDING = 6561
"""A code that the language model puts into speech; it has no sound."""
INSTALL = "pip install 'wavalign-fast[step-audio]'"


class StepAudio2Codec(ForeignCodec):
    """CosyVoice 2's tokenizer and Step-Audio 2's decoder, from the package ``stepaudio2``.

    The package is imported and its models are loaded at the first call.

    Args:
        directory: the checkpoint's ``token2wav``.
        prompt_wav: WAV file of the voice that decoded waves have.
        steps: of the flow from noise to mel.
        half: whether the flow computes in float16.
        channel: which channel to encode.
        seed: of random numbers at every call.

    Raises:
        UserError: the directory or the voice is missing.
    """

    facts = CodecFacts(codebook_size=PADDING + 1, codes_per_second=25.0, sample_rate=24_000)

    def __init__(
        self,
        *,
        directory: str | Path,
        prompt_wav: str | Path,
        steps: int = 10,
        half: bool = False,
        channel: ChannelRule = "mean",
        seed: int = 0,
    ) -> None:
        self._directory, self._prompt = Path(directory), Path(prompt_wav)
        for file in (self._directory / TOKENIZER, self._prompt):
            if not file.is_file():
                raise UserError(f"step_audio_2: no such file: {file}")
        identity = json.dumps(["step_audio_2", file_digest(self._directory / TOKENIZER).hex()])
        super().__init__("step_audio_2", identity=identity, channel=channel)
        self._steps, self._half, self._seed = steps, half, seed
        self._loaded: Any = None

    def _encoded(self, wave: Tensor, sample_rate: int) -> Any:
        mono = resample(wave, sample_rate, TOKENIZER_RATE)
        return self._forked("encode failed", self._tokenized, mono)

    def _decoded(self, codes: list[Tensor]) -> Any:
        spoken = [row[row != PADDING].tolist() for row in codes]
        return [
            self._forked("decode failed", self._spoken, row) if row else torch.zeros(0)
            for row in spoken
        ]

    def _forked(self, what: str, function: Any, argument: Any) -> Any:
        # Loading draws numbers too. It gets a state of its own, so that all calls are alike.
        with forked_random_state(self._seed):
            if self._loaded is None:
                self._loaded = self._run("cannot be loaded (it needs a CUDA GPU)", self._load)
        with forked_random_state(self._seed):
            return self._run(what, function, argument)

    def _load(self) -> Any:
        try:
            from stepaudio2 import Token2wav
        except ModuleNotFoundError as error:
            raise CodecError(f"{self.name}: {error.name} is missing: {INSTALL}") from error
        return Token2wav(str(self._directory), float16=self._half, n_timesteps=self._steps)

    def _tokenized(self, wave: Tensor) -> Any:
        import s3tokenizer

        tokenizer = self._loaded.audio_tokenizer
        device = next(tokenizer.parameters()).device
        mels, lengths = s3tokenizer.padding([s3tokenizer.log_mel_spectrogram(wave)])
        codes, counts = tokenizer.quantize(mels.to(device), lengths.to(device))
        return codes[0, : int(counts[0])].cpu()

    def _spoken(self, codes: list[int]) -> Tensor:
        content = self._loaded(codes, str(self._prompt))
        wave, rate = read_wave(content)
        if rate != self.facts.sample_rate:
            raise CodecError(f"{self.name}: decoded to {rate} Hz, wanted {self.facts.sample_rate}")
        return wave[0]
