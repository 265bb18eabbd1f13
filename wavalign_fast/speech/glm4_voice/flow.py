"""Codes to mel frames by conditional flow matching.

Source: CosyVoice's ``MaskedDiffWithXvec`` as in THUDM/GLM-4-Voice, offline path without a prompt.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.speech.glm4_voice.code_encoder import CodeEncoder
from wavalign_fast.speech.glm4_voice.decoder_config import MEL_BINS, FlowSizes
from wavalign_fast.speech.glm4_voice.ragged import Lengths
from wavalign_fast.speech.glm4_voice.unet import UNet


class LengthRegulator(nn.Module):
    """Smooths frames that were stretched to their final number."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts += [nn.Conv1d(MEL_BINS, MEL_BINS, 3, padding=1), nn.GroupNorm(1, MEL_BINS)]
            parts.append(nn.Mish())
        self.model = nn.ModuleList([*parts, nn.Conv1d(MEL_BINS, MEL_BINS, 1)])

    def forward(self, x: Tensor, lengths: Lengths) -> Tensor:
        """Maps [B, MEL_BINS, T]."""
        for part in self.model:
            if isinstance(part, nn.GroupNorm):
                x = lengths.group_norm(part, x)
            else:
                x = part(lengths.clear(x))
        return x


class Matching(nn.Module):
    """Holds the network under its name in ``flow.pt``."""

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        self.estimator = UNet(sizes.unet)


class Flow(nn.Module):
    """Parameters have the names of ``flow.pt``."""

    def __init__(self, sizes: FlowSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.input_embedding = nn.Embedding(sizes.codebook_size, sizes.width)
        self.spk_embed_affine_layer = nn.Linear(sizes.speaker_width, MEL_BINS)
        self.encoder = CodeEncoder(sizes)
        self.encoder_proj = nn.Linear(sizes.encoder_width, MEL_BINS)
        self.length_regulator = LengthRegulator(sizes.regulator_layers)
        self.decoder = Matching(sizes)

    def conditions(self, codes: Sequence[Tensor]) -> tuple[Tensor, Lengths]:
        """Returns what the codes say of each mel frame: mu [B, MEL_BINS, L], and the lengths L."""
        device = self.encoder_proj.weight.device
        rows = nn.utils.rnn.pad_sequence([row.to(device) for row in codes], batch_first=True)
        counts = [len(row) for row in codes]
        encoded = self.encoder(self.input_embedding(rows), torch.tensor(counts, device=device))
        frames = self.encoder_proj(encoded).mT
        lengths = Lengths([self.sizes.frames(count) for count in counts], device)
        stretched = frames.new_zeros(len(codes), MEL_BINS, lengths.longest)
        for row, item, count, length in zip(stretched, frames, counts, lengths.counts, strict=True):
            row[:, :length] = F.interpolate(item[None, :, :count], size=length, mode="nearest")[0]
        return self.length_regulator(stretched, lengths), lengths

    def speaker(self) -> Tensor:
        """Returns the conditions of no particular speaker [MEL_BINS].

        The family's code projects a voice of zeros, which leaves the bias.
        """
        return self.spk_embed_affine_layer.bias

    def mel(self, mu: Tensor, noise: Tensor, lengths: Lengths, *, steps: int) -> Tensor:
        """Moves noise to mel frames [B, MEL_BINS, L] in Euler steps over a cosine of the time.

        Each velocity is (1 + g)·v(x, conditions) - g·v(x, none), with the guidance g.
        """
        unet, guidance = self.decoder.estimator, self.sizes.guidance
        times = 1 - torch.cos(torch.linspace(0, 1, steps + 1, device=mu.device) * (0.5 * math.pi))
        speaker = self.speaker()[None, :, None].expand_as(mu)
        given = torch.cat([mu, speaker, torch.zeros_like(mu)], dim=1)  # no frames of a prompt
        x = noise
        if guidance:  # both velocities in one batch
            given = torch.cat([given, torch.zeros_like(given)])
            lengths = Lengths(lengths.counts * 2, lengths.device)
        for t, upto in pairwise(times):
            both = torch.cat([x, x]) if guidance else x
            velocity = unet(torch.cat([both, given], dim=1), unet.time(t), lengths)
            if guidance:
                guided, free = velocity.chunk(2)
                velocity = (1 + guidance) * guided - guidance * free
            x = x + (upto - t) * velocity
        return x
