"""What every encoder of prompt audio shares: frozen, without dropout, one clip at a time."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError, did_you_mean, shorten
from wavalign_fast.speech.resample import resample

SAMPLE_RATE = 16_000


class PromptAudioEncoder(nn.Module):
    """Turns a clip into embeddings of the language model.

    A subclass sets ``recipe`` and provides ``pieces``. The result depends on the clip and the
    weights alone: no dither, no dropout, no gradient, no autocast, and no other clip beside it.
    """

    recipe: str
    """Name and version of the computation; a change of it makes cached results void."""

    def pieces(self, wave: Tensor) -> list[Tensor]:
        """Embeddings [n_i, hidden] of the pieces of a clip, float32 [N] at 16 kHz."""
        raise NotImplementedError

    def resampled(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Returns a wave [N] at 16 kHz, made as the family makes it."""
        return resample(wave, sample_rate, SAMPLE_RATE)

    def encode(self, wave: Tensor) -> list[Tensor]:
        """Computes the embeddings of a clip, on the device and in the dtype of the weights.

        Args:
            wave: float32 [N] at 16 kHz in [-1, 1].

        Returns:
            [n_i, hidden] for each piece into which the family cuts a clip, in their order.

        Raises:
            UserError: the clip is no vector, not finite, or too short for one embedding.
        """
        if wave.ndim != 1 or not wave.is_floating_point():
            raise UserError(
                f"prompt audio: {wave.dtype} {tuple(wave.shape)}, want a float vector of samples"
            )
        if not bool(wave.isfinite().all()):
            raise UserError("prompt audio: a sample is not finite, want samples in [-1, 1]")
        device = next(self.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pieces = self.pieces(wave.to(device=device, dtype=torch.float32))
        if not pieces or not all(len(piece) for piece in pieces):
            raise UserError(
                f"prompt audio: {len(wave)} samples at {SAMPLE_RATE} Hz are too short for one "
                "embedding"
            )
        return pieces

    def train(self, mode: bool = True) -> "PromptAudioEncoder":
        """Stays in eval mode: features of a prompt must not change during a run."""
        return super().train(False)

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the recipe and of every weight and buffer."""
        digest = hashlib.sha256(self.recipe.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
        return digest.hexdigest()


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def load_frozen(module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copies tensors into a module's parameters in float32, and freezes them.

    Raises:
        UserError: a tensor is missing, is left over, or has another shape.
    """
    wanted = dict(module.named_parameters())
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise UserError(
            f"{what}: missing {shorten(str(missing), 200)}, left over {shorten(str(extra), 200)}, "
            "want neither"
        )
    for name, parameter in wanted.items():
        value = tensors[name]
        if value.shape != parameter.shape:
            raise UserError(
                f"{what}: {name} is {tuple(value.shape)}, want {tuple(parameter.shape)}"
            )
        parameter.data = value.detach().to(torch.float32, copy=True)
        parameter.requires_grad_(False)
    module.eval()


def size(config: Mapping[str, Any], key: str, *, what: str) -> int:
    """Returns a positive whole number of a configuration.

    Raises:
        UserError: it is missing or is not one.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        hint = did_you_mean(key, config) if value is None else ""
        raise UserError(f"{what}: {key} is {value!r}, want a whole number of 1 or more{hint}")
    return value


def require(config: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str) -> None:
    """Refuses a configuration that asks for another computation than ours.

    A key that is absent has the wanted value.

    Raises:
        UserError: a key has another value.
    """
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise UserError(f"{what}: {key} is {config[key]!r}, want {value!r}; no other is known")
