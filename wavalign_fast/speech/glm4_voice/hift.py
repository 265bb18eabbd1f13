"""Mel frames to waves: a vocoder driven by harmonics of the pitch, which ends in an inverse STFT.

Source: HiFT-GAN (arXiv 2309.09493) in CosyVoice's form.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.speech.glm4_voice.decoder_config import HOP, MEL_BINS, SAMPLE_RATE, HiftSizes
from wavalign_fast.speech.glm4_voice.ragged import Lengths

LARGEST_MAGNITUDE = 100.0
PITCH_LAYERS = 5
WEIGHT_NORM = {
    "weight_v": "weight_g",
    "parametrizations.weight.original1": "parametrizations.weight.original0",
}
"""Names of direction and length of a normed weight, in the old and the new way of torch."""


class Snake(nn.Module):
    """x + sin²(αx) / α (arXiv 2006.08195); 0 stays 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, T]."""
        alpha = self.alpha[:, None]
        return torch.addcdiv(x, (alpha * x).sin().square(), alpha + 1e-9)


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated, each pair beside its input."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()

        def convs(spread: Iterable[int]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2)
                for d in spread
            )

        self.convs1, self.convs2 = convs(dilations), convs(1 for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor, lengths: Lengths) -> Tensor:
        """Maps [B, C, T]."""
        pairs = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for snake1, conv1, snake2, conv2 in pairs:
            hidden = conv1(lengths.clear(snake1(x)))
            x = x + conv2(lengths.clear(snake2(hidden)))
        return x


class Pitch(nn.Module):
    """The fundamental frequency of mel frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (MEL_BINS, *[channels] * (PITCH_LAYERS - 1)):
            layers += [nn.Conv1d(inputs, channels, 3, padding=1), nn.ELU()]
        self.condnet = nn.ModuleList(layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor, lengths: Lengths) -> Tensor:
        """Returns f0 [B, L] in Hz."""
        x = mel
        for layer in self.condnet:
            x = layer(lengths.clear(x) if isinstance(layer, nn.Conv1d) else x)
        out: Tensor = self.classifier(x.mT)[..., 0].abs()
        return out


class Hift(nn.Module):
    """Parameters have the names of ``hift.pt`` after ``folded``."""

    def __init__(self, sizes: HiftSizes) -> None:
        super().__init__()
        self.sizes = sizes
        bins = sizes.fft // 2 + 1
        widths = [sizes.channels >> i for i in range(len(sizes.rates) + 1)]
        self.f0_predictor = Pitch(sizes.pitch_channels)
        self.m_source = nn.ModuleDict({"l_linear": nn.Linear(sizes.harmonics + 1, 1)})
        self.conv_pre = nn.Conv1d(MEL_BINS, widths[0], 7, padding=3)
        self.ups, self.source_downs = nn.ModuleList(), nn.ModuleList()
        self.source_resblocks, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for i, (rate, kernel) in enumerate(zip(sizes.rates, sizes.kernels, strict=True)):
            inputs, width = widths[i : i + 2]
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(inputs, width, kernel, rate, padding))
            down = math.prod(sizes.rates[i + 1 :])  # from frames of the STFT to this stage
            args = (1, 1, 0) if down == 1 else (2 * down, down, down // 2)
            self.source_downs.append(nn.Conv1d(2 * bins, width, *args))
            shape = (sizes.source_kernels[i], sizes.source_dilations[i])
            self.source_resblocks.append(ResBlock(width, *shape))
            self.resblocks.extend(
                ResBlock(width, *shape)
                for shape in zip(sizes.block_kernels, sizes.block_dilations, strict=True)
            )
        self.conv_post = nn.Conv1d(widths[-1], 2 * bins, 7, padding=3)

    def pitch(self, mel: Tensor, lengths: Lengths) -> Tensor:
        """Returns f0 [B, L] in Hz of mel frames [B, MEL_BINS, L]."""
        out: Tensor = self.f0_predictor(mel, lengths)
        return out

    def excitation(self, f0: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        """Returns harmonics of the pitch with noise, mixed to one channel.

        Args:
            f0: [B, L] in Hz.
            phases: where each harmonic starts [B, harmonics + 1, 1].
            noise: standard normal [B, harmonics + 1, 256 · L].

        Returns:
            [B, 1, 256 · L].
        """
        sizes = self.sizes
        f0 = f0.repeat_interleave(HOP, dim=1)[:, None]
        numbers = torch.arange(1, sizes.harmonics + 2, device=f0.device)[:, None]
        turns = torch.cumsum(f0 * numbers / SAMPLE_RATE, dim=-1) % 1
        sines = sizes.sine_height * torch.sin(2 * math.pi * turns + phases)
        voiced = (f0 > sizes.voiced_from).to(f0.dtype)
        height = voiced * sizes.noise_height + (1 - voiced) * sizes.sine_height / 3
        mixed = self.m_source["l_linear"]((sines * voiced + height * noise).mT)
        return torch.tanh(mixed.mT)

    def wave(self, mel: Tensor, source: Tensor, lengths: Lengths) -> list[Tensor]:
        """Returns a wave [256 · L] for each item of mel [B, MEL_BINS, L] and its excitation."""
        sizes = self.sizes
        frames = lengths.map(lambda count: count * (HOP // sizes.fft_hop) + 1)
        spectrum = frames.clear(self._spectrum(source, lengths, frames))
        x = self.conv_pre(lengths.clear(mel))
        now = lengths
        for i, up in enumerate(self.ups):
            last = i == len(self.ups) - 1
            x = up(now.clear(F.leaky_relu(x, sizes.slope)))
            if last:  # one more frame, as the STFT has
                x = F.pad(x, (1, 0), mode="reflect")
            now = now.map(lambda count, i=i, last=last: count * sizes.rates[i] + last)  # type: ignore[misc]
            x = x + self.source_resblocks[i](self.source_downs[i](spectrum), now)
            blocks = self.resblocks[i * len(sizes.block_kernels) :][: len(sizes.block_kernels)]
            x = torch.stack([block(x, now) for block in blocks]).mean(0)
        x = self.conv_post(now.clear(F.leaky_relu(x)))
        magnitude, phase = x.chunk(2, dim=1)
        magnitude = magnitude.exp().clamp(max=LARGEST_MAGNITUDE)
        waves = self._inverse(torch.polar(magnitude, phase.sin()), frames)
        samples = lengths.map(lambda count: count * HOP)
        return [wave.clamp(-sizes.limit, sizes.limit) for wave in samples.cut(waves)]

    def _window(self, like: Tensor) -> Tensor:
        return torch.hann_window(self.sizes.fft, device=like.device, dtype=like.dtype)

    def _spectrum(self, source: Tensor, lengths: Lengths, frames: Lengths) -> Tensor:
        """Returns real and imaginary parts [B, 2 · bins, frames] of an excitation [B, 1, N]."""
        half = self.sizes.fft // 2
        padded = source.new_zeros(len(source), source.shape[-1] + 2 * half)
        for row, item, count in zip(padded, source, lengths.counts, strict=True):
            end = count * HOP
            row[: end + 2 * half] = F.pad(item[:, :end], (half, half), mode="reflect")[0]
        spectrum = torch.stft(
            padded,
            self.sizes.fft,
            self.sizes.fft_hop,
            window=self._window(source),
            center=False,
            return_complex=True,
        )
        assert spectrum.shape[-1] == frames.longest
        return torch.cat([spectrum.real, spectrum.imag], dim=1)

    def _inverse(self, spectrum: Tensor, frames: Lengths) -> Tensor:
        """Returns [B, (frames - 1) · hop] of [B, bins, frames]: overlapping windows, normalised."""
        size, hop = self.sizes.fft, self.sizes.fft_hop
        window = self._window(spectrum.real)
        parts = torch.fft.irfft(spectrum, n=size, dim=1) * window[:, None]
        weights = window.square()[None, :, None].expand(len(parts), -1, parts.shape[-1])
        whole = _overlapped(frames.clear(parts), hop)
        weight = _overlapped(frames.clear(weights), hop).clamp(min=1e-11)
        return (whole / weight)[:, size // 2 : -(size // 2)]


def _overlapped(parts: Tensor, hop: int) -> Tensor:
    """Sums windows [B, size, F], each ``hop`` behind the one before: [B, (F - 1) · hop + size]."""
    batch, size, count = parts.shape
    shifts = size // hop
    total = parts.new_zeros(batch, count + shifts - 1, hop)
    for shift, part in enumerate(parts.unflatten(1, (shifts, hop)).unbind(1)):
        total[:, shift : shift + count] += part.mT
    return total.flatten(1)


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights without weight norm: g · v / ‖v‖, the norm over all but the first axis."""
    result = {}
    for name, value in weights.items():
        if name.endswith(tuple(WEIGHT_NORM.values())):
            continue
        for direction, height in WEIGHT_NORM.items():
            start = name.removesuffix(direction)
            if start != name and start + height in weights:
                norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
                name, value = f"{start}weight", value * (weights[start + height] / norm)
        result[name] = value
    return result
