"""The network of the flow: a UNet over mel frames that says how noise has to move.

Source: Matcha-TTS's decoder (arXiv 2309.03199) in CosyVoice's form.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.speech.glm4_voice.decoder_config import MEL_BINS, UNetSizes
from wavalign_fast.speech.glm4_voice.ragged import Lengths

GROUPS = 8
INPUTS = 4 * MEL_BINS
"""Channels of the input: the frames, what the encoder says, the speaker and the prompt's frames."""


class Block(nn.Module):
    """Convolution over three frames, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        conv = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.block = nn.Sequential(conv, nn.GroupNorm(GROUPS, outputs))

    def forward(self, x: Tensor, lengths: Lengths) -> Tensor:
        """Maps [B, inputs, T]."""
        conv, norm = self.block
        assert isinstance(norm, nn.GroupNorm)
        return F.mish(lengths.group_norm(norm, conv(lengths.clear(x))))


class Residual(nn.Module):
    """Two blocks with the time added between them, beside a pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_width, outputs))
        self.block1 = Block(inputs, outputs)
        self.block2 = Block(outputs, outputs)
        self.res_conv = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, lengths: Lengths) -> Tensor:
        """Maps [B, inputs, T]; ``time`` is [time_width]."""
        hidden = self.block1(x, lengths) + self.mlp(time)[:, None]
        out: Tensor = self.block2(hidden, lengths) + self.res_conv(x)
        return out


class Attention(nn.Module):
    """Attention of every frame to every frame."""

    def __init__(self, width: int, sizes: UNetSizes) -> None:
        super().__init__()
        inner = sizes.heads * sizes.head_width
        self.heads = sizes.heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Maps [B, T, width]; keys where ``mask`` [B, 1, T] is False are not seen."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.to_q, self.to_k, self.to_v)
        )
        keys = None if mask is None else mask[:, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        out: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return out


class Widened(nn.Module):
    """A linear layer and GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width] to [B, T, 4 · width]."""
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Widened and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The family has a dropout at index 1; indices are names of weights.
        self.net = nn.Sequential(Widened(width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width]."""
        out: Tensor = self.net(x)
        return out


class Transformer(nn.Module):
    """Attention and a feed-forward, each on a normalised input."""

    def __init__(self, width: int, sizes: UNetSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, sizes)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Maps [B, T, width]; see ``Attention``."""
        x = x + self.attn1(self.norm1(x), mask)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Stage(nn.ModuleList):
    """A residual block, transformers and, where there is one, a convolution that changes T."""

    def __init__(
        self, inputs: int, outputs: int, sizes: UNetSizes, time_width: int, last: nn.Module | None
    ) -> None:
        transformers = (Transformer(outputs, sizes) for _ in range(sizes.transformers))
        parts: list[nn.Module] = [Residual(inputs, outputs, time_width)]
        parts.append(nn.ModuleList(transformers))
        super().__init__(parts if last is None else [*parts, last])

    def mixed(self, x: Tensor, time: Tensor, lengths: Lengths) -> Tensor:
        """Maps [B, inputs, T] to [B, outputs, T] by all but the last convolution."""
        frames: Tensor = self[0](x, time, lengths).mT
        for layer in cast(nn.ModuleList, self[1]):
            frames = layer(frames, lengths.mask)
        return frames.mT

    def changed(self, x: Tensor, lengths: Lengths) -> Tensor:
        """Maps by the last convolution."""
        out: Tensor = self[2](lengths.clear(x))
        return out


class Resampling(nn.Module):
    """Halves or doubles the number of frames."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, T]."""
        out: Tensor = self.conv(x)
        return out


class UNet(nn.Module):
    """Velocity of mel frames at a time between noise (0) and speech (1)."""

    def __init__(self, sizes: UNetSizes) -> None:
        super().__init__()
        channels = sizes.channels
        width = 4 * channels[0]
        self.time_mlp = nn.ModuleDict(
            {"linear_1": nn.Linear(INPUTS, width), "linear_2": nn.Linear(width, width)}
        )
        self.down_blocks, self.mid_blocks, self.up_blocks = (nn.ModuleList() for _ in range(3))
        for i, (inputs, outputs) in enumerate(zip((INPUTS, *channels), channels, strict=False)):
            last = i == len(channels) - 1
            conv = nn.Conv1d(outputs, outputs, 3, stride=1 if last else 2, padding=1)
            change = conv if last else Resampling(conv)
            self.down_blocks.append(Stage(inputs, outputs, sizes, width, change))
        for _ in range(sizes.middle_blocks):
            self.mid_blocks.append(Stage(channels[-1], channels[-1], sizes, width, None))
        ways = [*channels[::-1], channels[0]]
        for i, (inputs, outputs) in enumerate(pairwise(ways)):
            if i == len(channels) - 1:
                change = nn.Conv1d(outputs, outputs, 3, padding=1)
            else:
                change = Resampling(nn.ConvTranspose1d(outputs, outputs, 4, stride=2, padding=1))
            self.up_blocks.append(Stage(2 * inputs, outputs, sizes, width, change))
        self.final_block = Block(channels[0], channels[0])
        self.final_proj = nn.Conv1d(channels[0], MEL_BINS, 1)

    def time(self, t: Tensor) -> Tensor:
        """Returns the embedding of a time in [0, 1]."""
        half = INPUTS // 2
        steps = torch.arange(half, device=t.device, dtype=t.dtype)
        angles = 1000 * t * torch.exp(steps * (-math.log(10_000.0) / (half - 1)))
        embedded = self.time_mlp["linear_1"](torch.cat([angles.sin(), angles.cos()]))
        out: Tensor = self.time_mlp["linear_2"](F.silu(embedded))
        return out

    def forward(self, x: Tensor, time: Tensor, lengths: Lengths) -> Tensor:
        """Maps frames and conditions [B, INPUTS, T] to velocities [B, MEL_BINS, T]."""
        down, middle, up = (
            cast(Sequence[Stage], stages)
            for stages in (self.down_blocks, self.mid_blocks, self.up_blocks)
        )
        kept = []
        for stage in down:
            x = stage.mixed(x, time, lengths)
            kept.append((x, lengths))
            x = stage.changed(x, lengths)
            if stage is not down[-1]:
                lengths = lengths.map(lambda count: -(-count // 2))
        for stage in middle:
            x = stage.mixed(x, time, lengths)
        for stage in up:
            skipped, lengths = kept.pop()
            x = torch.cat([x[..., : skipped.shape[-1]], skipped], dim=1)
            x = stage.changed(stage.mixed(x, time, lengths), lengths)
        out: Tensor = self.final_proj(self.final_block(x, lengths))
        return out
