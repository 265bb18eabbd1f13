"""The encoder of the flow: attention with relative positions over blocks of codes.

Sources: Transformer-XL's relative attention (arXiv 1901.02860) as in ESPnet; CosyVoice's conformer
without convolution and second feed-forward.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.speech.glm4_voice.decoder_config import FlowSizes


class RelativeAttention(nn.Module):
    """Attention whose scores depend on content and on the distance of query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, width // heads))

    def forward(self, x: Tensor, distances: Tensor, allowed: Tensor) -> Tensor:
        """Maps x [B, T, width]; ``distances`` [2T - 1, width], ``allowed`` [B, 1, T, T]."""
        count = x.shape[1]
        q, k, v = (
            linear(x).unflatten(-1, self.pos_bias_u.shape)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        p = self.linear_pos(distances).unflatten(-1, self.pos_bias_u.shape)
        by_distance = torch.einsum("bihd,chd->bhic", q + self.pos_bias_v, p)
        # Column c is the distance T - 1 - c, so key j of query i is in column T - 1 - i + j.
        places = torch.arange(count, device=x.device)
        columns = count - 1 - places[:, None] + places
        scores = by_distance.gather(-1, columns.expand(*by_distance.shape[:2], -1, -1))
        bias = (scores / math.sqrt(q.shape[-1])).masked_fill(~allowed, -torch.inf)
        queries, keys, values = (y.transpose(1, 2) for y in (q + self.pos_bias_u, k, v))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        out: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """Attention, then a feed-forward with SiLU, each on a normalised input."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = nn.ModuleDict(
            {"w_1": nn.Linear(width, inner), "w_2": nn.Linear(inner, width)}
        )
        self.norm_mha = nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)

    def forward(self, x: Tensor, distances: Tensor, allowed: Tensor) -> Tensor:
        """Maps [B, T, width]."""
        x = x + self.self_attn(self.norm_mha(x), distances, allowed)
        feed = self.feed_forward
        out: Tensor = x + feed["w_2"](F.silu(feed["w_1"](self.norm_ff(x))))
        return out


class CodeEncoder(nn.Module):
    """Embedded codes to frames of the encoder."""

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        width, encoder = sizes.encoder_width, sizes.encoder
        self.width, self.block = width, encoder.block
        embed = nn.Sequential(nn.Linear(sizes.width, width), nn.LayerNorm(width))
        self.embed = nn.ModuleDict({"out": embed})
        self.encoders = nn.ModuleList(
            EncoderLayer(width, encoder.heads, encoder.inner) for _ in range(encoder.layers)
        )
        self.after_norm = nn.LayerNorm(width)

    def forward(self, embedded: Tensor, counts: Tensor) -> Tensor:
        """Maps [B, T, sizes.width] to [B, T, width]; ``counts`` [B] are the true lengths."""
        x = self.embed["out"](embedded) * math.sqrt(self.width)
        places = torch.arange(x.shape[1], device=x.device)
        seen = places[:, None] >= places
        seen |= places[:, None] // self.block == places // self.block
        allowed = (seen & (places < counts[:, None, None]))[:, None]  # [B, 1, T, T]
        distances = self._distances(x)
        for layer in self.encoders:
            x = layer(x, distances, allowed)
        out: Tensor = self.after_norm(x)
        return out

    def _distances(self, x: Tensor) -> Tensor:
        """Returns sin and cos, by turns, of the distances T - 1 ... -(T - 1)."""
        most = x.shape[1] - 1
        offsets = torch.arange(most, -most - 1, -1, device=x.device, dtype=x.dtype)
        even = torch.arange(0, self.width, 2, device=x.device, dtype=x.dtype)
        angles = offsets[:, None] * torch.exp(even * (-math.log(10_000.0) / self.width))
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
