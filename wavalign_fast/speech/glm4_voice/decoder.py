"""GLM-4-Voice's speech decoder: codes to waves of 22 050 Hz."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, naming
from wavalign_fast.speech.glm4_voice.decoder_config import (
    HOP,
    MEL_BINS,
    SAMPLE_RATE,
    read_decoder_config,
)
from wavalign_fast.speech.glm4_voice.flow import Flow
from wavalign_fast.speech.glm4_voice.hift import Hift, folded
from wavalign_fast.speech.glm4_voice.weight_files import load_strictly, read_pickle


class SpeechDecoder:
    """Decodes batches; reads a ``glm-4-voice-decoder`` directory.

    Noise comes from a generator for each item, on the CPU: it depends on neither the batch nor the
    device, and leaves the global random state alone. The family's code seeds the global generator
    with 42 at each call, and never leaves training mode.

    Args:
        directory: has ``config.yaml``, ``flow.pt`` and ``hift.pt``.
        device: where it computes, in float32.
        steps: Euler steps from noise to mel; the family takes 10.
        seed: of the noise; the family takes 42.
        batch_size: most items computed at once.

    Raises:
        UserError: a file is missing or damaged, the config asks for what is not implemented, or
            weights are missing, left over or of another shape.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        directory: Path,
        *,
        device: str | torch.device = "cpu",
        steps: int = 10,
        seed: int = 42,
        batch_size: int = 16,
    ) -> None:
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}, wanted at least 1")
        flow_sizes, hift_sizes = read_decoder_config(directory / "config.yaml")
        with torch.device("meta"):  # weights of its own would draw random numbers
            self.flow, self.hift = Flow(flow_sizes), Hift(hift_sizes)
        for model, file in ((self.flow, "flow.pt"), (self.hift, "hift.pt")):
            weights = folded(read_pickle(directory / file))
            with naming(str(directory / file)):
                load_strictly(model, weights)
            model.requires_grad_(False).eval().to(device)
        self.steps, self.seed, self.batch_size = steps, seed, batch_size
        self.codebook_size = flow_sizes.codebook_size
        self.codes_per_second = flow_sizes.codes_per_second

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Returns float32 waves [256 · L] on the device.

        L = floor(T / codes_per_second · 22050 / 256) is the number of mel frames.

        Args:
            codes: int64 [T] each, T at least 1, within the codebook.
        """
        # Items of like length share a batch, so that little of it is padding.
        order = sorted(range(len(codes)), key=lambda index: len(codes[index]))
        waves: dict[int, Tensor] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            decoded = self._batch([codes[index] for index in batch])
            waves.update(zip(batch, decoded, strict=True))
        return [waves[index] for index in range(len(codes))]

    @torch.no_grad()
    def _batch(self, codes: Sequence[Tensor]) -> list[Tensor]:
        mu, lengths = self.flow.conditions(codes)
        drawn = [self._noise(count) for count in lengths.counts]
        start, phases, noise = (_stacked(parts).to(mu.device) for parts in zip(*drawn, strict=True))
        mel = self.flow.mel(mu, start, lengths, steps=self.steps)
        source = self.hift.excitation(self.hift.pitch(mel, lengths), phases, noise)
        return self.hift.wave(mel, source, lengths)

    def _noise(self, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws what one item needs, in the order of the family's code."""
        generator = torch.Generator().manual_seed(self.seed)
        harmonics = self.hift.sizes.harmonics + 1
        start = torch.randn(1, MEL_BINS, frames, generator=generator)
        phases = torch.rand(1, harmonics, 1, generator=generator) * (2 * math.pi) - math.pi
        phases[:, 0] = 0
        noise = torch.randn(1, harmonics, HOP * frames, generator=generator)
        return start[0], phases[0], noise[0]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Stacks [C, T_i] to [B, C, T] with 0 behind the shorter ones."""
    rows = torch.nn.utils.rnn.pad_sequence([part.mT for part in parts], batch_first=True)
    return rows.mT
