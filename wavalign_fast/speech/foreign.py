"""The rules of a codec around encoders and decoders that others wrote."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, described, shown
from wavalign_fast.speech.channels import ChannelRule, to_mono
from wavalign_fast.speech.codec import CodecError, check_codes, checked_input, checked_wave


@dataclass(frozen=True, kw_only=True)
class CodecFacts:
    """What is known of a codec without asking it."""

    codebook_size: int
    codes_per_second: float
    sample_rate: int
    """Of decoded waves, in Hz."""

    def check(self, name: str) -> None:
        """Refuses impossible values."""
        for key, value in vars(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or value <= 0 or (key != "codes_per_second" and value != int(value)):
                raise UserError(f"{name}: {key} is {shown(value)}, wanted a number above 0")


class ForeignCodec(ABC):
    """A ``SpeechCodec`` whose subclass converts; this class checks what goes in and comes out.

    Args:
        name: what errors call it.
        identity: of the codes, for the keys of a cache.
        channel: which channel to encode.
        batch_size: most sequences that are decoded in one call. Above 1 only where a batch gives
            what its sequences give alone.
    """

    name: str
    identity: str
    channel: ChannelRule

    def __init__(
        self, name: str, *, identity: str, channel: ChannelRule = "mean", batch_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise UserError(f"{name}: batch_size is {batch_size}, wanted at least 1")
        self.name, self.identity, self.channel = name, identity, channel
        self._batch_size = batch_size

    @property
    @abstractmethod
    def facts(self) -> CodecFacts:
        """Of the codec; may ask it."""

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.facts.codebook_size

    @property
    def codes_per_second(self) -> float:
        """Of a wave."""
        return self.facts.codes_per_second

    @property
    def sample_rate(self) -> int:
        """Of decoded waves, in Hz."""
        return self.facts.sample_rate

    def encode(self, wave: Tensor, sample_rate: int) -> Tensor:
        """See ``SpeechCodec``."""
        mono = to_mono(checked_input(self.name, wave), self.channel)
        if not len(mono):
            return torch.zeros(0, dtype=torch.int64)
        codes = self._tensor(self._encoded(mono.contiguous(), sample_rate), "codes").cpu()
        codes = codes[0] if codes.ndim == 2 and len(codes) == 1 else codes
        check_codes(f"{self.name} encoded", [codes], self.codebook_size)
        return codes.long()

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """See ``SpeechCodec``."""
        check_codes(self.name, codes, self.codebook_size)
        waves = [torch.zeros(0) for _ in codes]
        spoken = [index for index, row in enumerate(codes) if len(row)]
        for start in range(0, len(spoken), self._batch_size):
            batch = spoken[start : start + self._batch_size]
            given = self._decoded([codes[index].detach().cpu().long() for index in batch])
            if not isinstance(given, list | tuple) or len(given) != len(batch):
                seen = f"{len(given)} waves" if isinstance(given, list | tuple) else shown(given)
                raise CodecError(f"{self.name}: decoded to {seen}, wanted {len(batch)} waves")
            for index, wave in zip(batch, given, strict=True):
                tensor = self._tensor(wave, "a wave")
                if not tensor.is_floating_point():
                    raise CodecError(
                        f"{self.name}: decoded to {tensor.dtype}, wanted floats in [-1, 1]"
                    )
                waves[index] = checked_wave(self.name, tensor)
        return waves

    @abstractmethod
    def _encoded(self, wave: Tensor, sample_rate: int) -> Any:
        """Returns the codes of float32 [N], N > 0, as a tensor, an array or a list."""

    @abstractmethod
    def _decoded(self, codes: list[Tensor]) -> Any:
        """Returns the waves of int64 [T] each, T > 0, as a list of tensors, arrays or lists."""

    def _tensor(self, value: Any, what: str) -> Tensor:
        try:
            return torch.as_tensor(value).detach()
        except Exception as error:  # the types that others return are without end
            kind = type(value).__name__
            raise CodecError(f"{self.name}: {shown(value)} ({kind}) given for {what}") from error

    def _run(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Calls foreign code; whatever it raises becomes an error that names the codec."""
        try:
            return function(*args)
        except CodecError:
            raise
        except (Exception, SystemExit) as error:
            raise CodecError(f"{self.name}: {what}: {described(error)}") from error
