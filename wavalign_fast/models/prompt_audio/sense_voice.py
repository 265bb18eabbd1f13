"""The encoder of SenseVoiceSmall and VITA-Audio-Plus's projection onto the language model.

Rebuilt from their description; module names are those of the stored weights. Layers follow SAN-M
(Gao et al. 2020): attention plus a depthwise convolution over the values, its memory.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.errors import UserError

QUERIES = [0, 1, 2, 15]
"""Rows of the table put before the frames: any language, any event, any emotion, no inverse text
normalisation."""
TABLE_ROWS = 16
NORM_EPSILON = 1e-5


class Sizes(NamedTuple):
    """Sizes of the encoder."""

    inputs: int
    """Of an input frame, 560 for windows of 7 frames of 80 mels."""
    width: int
    heads: int
    inner: int
    """Between the two linear layers of a feed-forward."""
    layers: int
    """Before ``after_norm``, the first one included."""
    last_layers: int
    """After it."""
    kernel: int
    """Of the convolution over the values, odd."""


class _Attention(nn.Module):
    """Attention with memory, [B, T, C_in] -> [B, T, C]."""

    def __init__(self, inputs: int, sizes: Sizes) -> None:
        super().__init__()
        width, kernel = sizes.width, sizes.kernel
        self.heads = sizes.heads
        self.linear_q_k_v = nn.Linear(inputs, 3 * width)
        self.linear_out = nn.Linear(width, width)
        self.fsmn_block = nn.Conv1d(
            width, width, kernel, padding=kernel // 2, groups=width, bias=False
        )

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        query, key, value = self.linear_q_k_v(x).chunk(3, dim=-1)
        kept = value * real[..., None]
        memory = (self.fsmn_block(kept.mT).mT + kept) * real[..., None]
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        mask = real[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2)) + memory
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, inner)
        self.w_2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.relu(self.w_1(x)))
        return out


class _Layer(nn.Module):
    def __init__(self, inputs: int, sizes: Sizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(inputs, eps=NORM_EPSILON)
        self.self_attn = _Attention(inputs, sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=NORM_EPSILON)
        self.feed_forward = _FeedForward(sizes.width, sizes.inner)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        attended: Tensor = self.self_attn(self.norm1(x), real)
        if attended.shape == x.shape:  # the first layer changes the width: nothing to add to
            attended = attended + x
        out: Tensor = attended + self.feed_forward(self.norm2(attended))
        return out


class _Stack(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = self.width = sizes.width
        later = [_Layer(width, sizes) for _ in range(sizes.layers - 1)]
        self.encoders0 = nn.ModuleList([_Layer(sizes.inputs, sizes)])
        self.encoders = nn.ModuleList(later)
        self.after_norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.tp_encoders = nn.ModuleList([_Layer(width, sizes) for _ in range(sizes.last_layers)])
        self.tp_norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        x = x * math.sqrt(self.width)
        x = x + _sinusoids(x.shape[1], x.shape[2]).to(x)
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, real)
        x = self.after_norm(x)
        for layer in self.tp_encoders:
            x = layer(x, real)
        out: Tensor = self.tp_norm(x)
        return out


class SenseVoiceEncoder(nn.Module):
    """SenseVoiceSmall without its recognition head."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(TABLE_ROWS, sizes.inputs)
        self.encoder = _Stack(sizes)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Encodes clips in one padded batch; a clip's result does not depend on the others.

        Args:
            features: normalised windows of each clip, float [T_i, inputs].

        Returns:
            [T_i + 4, width] each: the four queries come first.

        Raises:
            UserError: there is no clip, or one has no window.
        """
        if not features or not all(len(clip) for clip in features):
            raise UserError(
                f"prompt audio: {[len(clip) for clip in features]} windows, want one or more a clip"
            )
        queries = self.embed.weight[QUERIES]
        rows = [torch.cat([queries, clip.to(queries)]) for clip in features]
        lengths = torch.tensor([len(row) for row in rows], device=queries.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        real = torch.arange(padded.shape[1], device=queries.device) < lengths[:, None]
        encoded = self.encoder(padded, real)
        return [clip[:length] for clip, length in zip(encoded, lengths.tolist(), strict=True)]


class Projection(nn.Module):
    """LayerNorm, linear, exact GELU, linear: [..., width] -> [..., hidden]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.pre_proj_layernorm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.GELU(),
            nn.Linear(hidden, hidden, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.pre_proj_layernorm(x))
        return out


def _sinusoids(length: int, width: int) -> Tensor:
    """Sines, then cosines, of positions 1 .. length, float32 [length, width]."""
    step = -math.log(10_000) / (width / 2 - 1)
    frequencies = torch.exp(torch.arange(width // 2, dtype=torch.float32) * step)
    angles = torch.arange(1, length + 1, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
