"""What a speech codec is, and the checks that all of them share."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, shown
from wavalign_fast.speech.channels import ChannelRule


class CodecError(UserError):
    """A codec cannot do what it is asked, or failed; the message starts with its name."""


class SpeechCodec(Protocol):
    """Turns waves into codes and codes into waves.

    The global random state stays as it is, and the same input gives the same output.
    """

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def identity(self) -> str:
        """Differs between codecs that give other codes; part of the keys of a ``CodeCache``."""

    @property
    def channel(self) -> ChannelRule:
        """Which channel of a wave it encodes."""

    @property
    def codebook_size(self) -> int:
        """Number of codes."""

    @property
    def codes_per_second(self) -> float:
        """Of a wave."""

    @property
    def sample_rate(self) -> int:
        """Of decoded waves, in Hz."""

    def encode(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Returns the codes of a wave.

        Args:
            wave: float32 [N] or [channels, N] in [-1, 1].
            sample_rate: its rate in Hz.

        Returns:
            int64 [T] on the CPU, in [0, ``codebook_size``); none for a wave without samples.

        Raises:
            CodecError: the codec only decodes, or failed.
        """

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Returns the waves of several sequences of codes; each is what it would be alone.

        Args:
            codes: int64 [T] each.

        Returns:
            float32 [N] each, on the CPU, in [-1, 1]; no samples where there are no codes.

        Raises:
            CodecError: a code is outside the codebook, the codec only encodes, or it failed.
        """


def check_codes(name: str, codes: Sequence[Tensor], codebook_size: int) -> None:
    """Refuses what is no sequence of codes.

    Raises:
        CodecError: a code is outside [0, ``codebook_size``), or a sequence is not [T] of whole
            numbers.
    """
    for index, sequence in enumerate(codes):
        whole = not (sequence.is_floating_point() or sequence.is_complex())
        if sequence.ndim != 1 or not whole or sequence.dtype == torch.bool:
            seen = f"{sequence.dtype} {tuple(sequence.shape)}"
            raise CodecError(f"{name}: sequence {index} is {seen}, wanted whole numbers [T]")
        wrong = (sequence < 0) | (sequence >= codebook_size)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise CodecError(
                f"{name}: code {int(sequence[place])} at place {place} of sequence {index}, "
                f"wanted 0 to {codebook_size - 1}"
            )


def checked_input(name: str, wave: Tensor) -> Tensor:
    """Returns a wave to encode as float32.

    Raises:
        CodecError: it is not [N] or [channels, N] of finite floats.
    """
    if wave.ndim not in (1, 2) or not wave.is_floating_point():
        seen = f"{wave.dtype} {tuple(wave.shape)}"
        raise CodecError(f"{name}: a wave is {seen}, wanted floats [N] or [channels, N]")
    if not wave.isfinite().all():
        first = wave[~wave.isfinite()][0].item()
        raise CodecError(f"{name}: a sample to encode is {first}, wanted a finite number")
    return wave.detach().to("cpu", torch.float32)


def checked_wave(name: str, wave: Tensor) -> Tensor:
    """Returns a decoded wave as float32 [N] on the CPU, clipped to [-1, 1].

    Raises:
        CodecError: it has another shape, or a sample is NaN or infinite.
    """
    wave = wave.detach().to("cpu", torch.float32)
    if wave.ndim == 2 and wave.shape[0] == 1:
        wave = wave[0]
    if wave.ndim != 1:
        raise CodecError(f"{name}: a wave of shape {tuple(wave.shape)}, wanted [N]")
    if not wave.isfinite().all():
        first = wave[~wave.isfinite()][0].item()
        raise CodecError(f"{name}: a decoded sample is {shown(first)}, wanted a finite number")
    return wave.clamp(-1.0, 1.0)
