"""Log-mel features of Kaldi and FunASR's low frame rate windows, without dither.

Follows Kaldi's ``compute-fbank-feats`` with the settings of FunASR's ``WavFrontend``. FunASR adds
random noise (dither 1.0) unless told otherwise; here the same wave always has the same features.
"""

import functools
import re
from pathlib import Path

import torch
from torch import Tensor

from wavalign_fast.errors import DamagedFileError, UserError

SAMPLE_RATE = 16_000
FRAME = 400
"""Samples of a frame, 25 ms."""
HOP = 160
FFT = 512
MELS = 80
LOW_HZ, HIGH_HZ = 20.0, 8000.0
PRE_EMPHASIS = 0.97
FLOOR = 1.1920929e-07
"""Least energy before the logarithm, float32's epsilon as in Kaldi."""
FRAMES_PER_WINDOW, WINDOW_HOP = 7, 6


def fbank(wave: Tensor) -> Tensor:
    """Computes log-mel energies, float32 [1 + (N - 400) // 160, 80].

    Args:
        wave: float32 [N] at 16 kHz in [-1, 1]; N is at least 400, the samples of one frame.

    Raises:
        UserError: the wave is shorter, or is not a vector.
    """
    if wave.ndim != 1 or len(wave) < FRAME:
        raise UserError(
            f"prompt audio: shape {tuple(wave.shape)}, want [N] with at least {FRAME} samples "
            "(25 ms at 16 kHz)"
        )
    frames = (wave.float() * 32768).unfold(0, FRAME, HOP)  # snip edges: whole frames only
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    turns = torch.arange(FRAME, dtype=torch.float64) * (2 * torch.pi / (FRAME - 1))
    window = (0.54 - 0.46 * turns.cos()).float().to(wave.device)
    windowed = (frames - PRE_EMPHASIS * before) * window
    # Kaldi is float32 up to here. In its transform a quiet band beside a loud one loses digits, by
    # an amount that depends on the library: up to 1e-4 after normalisation.
    spectrum = torch.fft.rfft(windowed.to(torch.float64), n=FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    filters = _mel_filters().to(wave.device)
    return (power[:, : FFT // 2] @ filters).clamp(min=FLOOR).log().float()


@functools.cache
def _mel_filters() -> Tensor:
    """Triangles over mel frequencies, float64 [256, 80]; the bin of 8000 Hz has no weight."""
    low, high = (_mel(torch.tensor(hz, dtype=torch.float64)) for hz in (LOW_HZ, HIGH_HZ))
    points = low + (high - low) / (MELS + 1) * torch.arange(MELS + 2)
    bins = _mel(torch.arange(FFT // 2, dtype=torch.float64) * (SAMPLE_RATE / FFT))[:, None]
    left, centre, right = points[:-2], points[1:-1], points[2:]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(hz: Tensor) -> Tensor:
    return 1127 * torch.log1p(hz / 700)


def low_frame_rate(features: Tensor) -> Tensor:
    """Joins frames [T, D] into windows of 7, every 6 frames: [ceil(T / 6), 7·D].

    Three copies of the first frame stand in front; copies of the last one fill the last window.
    """
    count = -(-len(features) // WINDOW_HOP)
    first = features[:1].expand((FRAMES_PER_WINDOW - 1) // 2, -1)
    wanted = (count - 1) * WINDOW_HOP + FRAMES_PER_WINDOW
    missing = max(0, wanted - len(first) - len(features))
    padded = torch.cat([first, features, features[-1:].expand(missing, -1)])
    windows = padded.unfold(0, FRAMES_PER_WINDOW, WINDOW_HOP)[:count]  # [count, D, 7]
    return windows.transpose(1, 2).flatten(1)


def read_mean_variance(path: Path, *, size: int) -> tuple[Tensor, Tensor]:
    """Reads (shift, scale), float32 [size] each, from FunASR's ``am.mvn``.

    Normalised features are ``(features + shift) * scale``.

    Raises:
        DamagedFileError: the file is missing, or does not hold ``size`` numbers for each.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
    return _vector(path, text, "AddShift", size), _vector(path, text, "Rescale", size)


def _vector(path: Path, text: str, tag: str, size: int) -> Tensor:
    """Returns the numbers in brackets on the ``<LearnRateCoef>`` line after ``<tag>``."""
    found = re.search(rf"<{tag}>[^<\[]*<LearnRateCoef>[^\[]*\[([^\]]*)\]", text)
    words = found[1].split() if found else []
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != size:
        raise DamagedFileError(f"{path}: {len(values)} numbers after <{tag}>, want {size}")
    return torch.tensor(values, dtype=torch.float32)
