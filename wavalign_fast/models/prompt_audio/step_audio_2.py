"""The audio encoder and adapter of Step-Audio 2: Whisper's layers over waves of any length.

Rebuilt from their description; module names are those of the stored weights.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.models.prompt_audio.encoder import (
    SAMPLE_RATE,
    PromptAudioEncoder,
    load_frozen,
    size,
    with_prefix,
)
from wavalign_fast.models.prompt_audio.log_mel import HOP, log_mel

SILENCE = 479
"""Zeros after each piece, which make up the last two frames."""
FRAMES_OF_SILENCE = 2
PIECE = 25 * SAMPLE_RATE
OUT_OF_MASK = -1e10


def embedding_count(frames: int, *, stride: int = 2) -> int:
    """Returns how many embeddings a spectrogram of ``frames`` frames gives, 12.5 a second."""
    pooled = (frames - FRAMES_OF_SILENCE + 1) // 2 // 2
    return (pooled - 1) // stride + 1


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        inner = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x), bias)
        out: Tensor = x + self.mlp(self.mlp_ln(x))
        return out


class _Encoder(nn.Module):
    """Encodes one log-mel spectrogram; no position looks at its last two frames."""

    def __init__(
        self, *, mel_bins: int, positions: int, width: int, heads: int, layers: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mel_bins, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(positions, width)
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(layers)])
        self.after_norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        """[mel_bins, T] -> [1, ceil(T / 2) // 2, width]."""
        frames = mel.shape[1]
        x = F.gelu(self.conv1(mel[None]))
        x = F.gelu(self.conv2(x)).mT
        table = self.positional_embedding.weight
        if x.shape[1] > len(table):
            raise UserError(
                f"prompt audio: {frames} frames, want at most {2 * len(table)}, the encoder's table"
            )
        x = x + table[: x.shape[1]]
        seen = torch.arange(frames, device=x.device) < frames - FRAMES_OF_SILENCE
        halved = seen[(frames + 1) % 2 :: 2]
        bias = torch.where(halved, 0.0, OUT_OF_MASK).to(x.dtype).expand(1, 1, 1, -1)
        for block in self.blocks:
            x = block(x, bias)
        out: Tensor = self.after_norm(F.avg_pool1d(x.mT, 2).mT)
        return out


class _Adapter(nn.Module):
    """Halves the frames and maps them to the language model: [1, T, width] -> [1, T', hidden]."""

    def __init__(self, *, width: int, inner: int, hidden: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, stride, padding=1)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv(x.mT)).mT
        out: Tensor = self.linear2(F.relu(self.linear1(x)))
        return out


class StepAudio2Encoder(PromptAudioEncoder):
    """Encodes pieces of 25 s, each alone.

    The family pads the clips of a row to the longest, which changes the shorter ones.
    """

    recipe = "step_audio_2 1"

    def __init__(self, config: Mapping[str, Any], *, inner: int) -> None:
        """Builds it with random weights.

        Args:
            config: ``audio_encoder_config`` of the checkpoint.
            inner: width between the adapter's linear layers.

        Raises:
            UserError: a size is missing or no size.
        """
        super().__init__()
        what = "audio_encoder_config"
        names = ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
        mels, positions, width, heads, layers = (size(config, name, what=what) for name in names)
        self.mel_bins, self.stride = mels, size(config, "adapter_stride", what=what)
        self.encoder = _Encoder(
            mel_bins=mels, positions=positions, width=width, heads=heads, layers=layers
        )
        self.adapter = _Adapter(
            width=width,
            inner=inner,
            hidden=size(config, "llm_dim", what=what),
            kernel=size(config, "kernel_size", what=what),
            stride=self.stride,
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> "StepAudio2Encoder":
        """Builds it from a checkpoint's ``encoder.*`` and ``adapter.*`` tensors.

        Raises:
            UserError: a tensor is missing, left over, or has another shape.
        """
        first = tensors.get("adapter.linear1.weight")
        if first is None:
            raise UserError("step_audio_2: adapter.linear1.weight is missing")
        encoder = cls(config, inner=len(first))
        parts = {
            f"{part}.{name}": value
            for part in ("encoder", "adapter")
            for name, value in with_prefix(tensors, f"{part}.").items()
        }
        load_frozen(encoder, parts, what="step_audio_2: audio encoder")
        return encoder

    def pieces(self, wave: Tensor) -> list[Tensor]:
        """Embeddings of each piece; a last piece too short for one embedding is left out."""
        embeddings = []
        for piece in wave.split(PIECE):
            count = embedding_count((len(piece) + SILENCE) // HOP, stride=self.stride)
            if count > 0:
                mel = log_mel(piece, mel_bins=self.mel_bins, silence=SILENCE)
                embeddings.append(self.adapter(self.encoder(mel))[0, :count])
        return embeddings
