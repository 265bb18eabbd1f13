"""Encoders of prompt audio built on Whisper's encoder: Covo-Audio's and Kimi-Audio's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.models.prompt_audio.encoder import (
    SAMPLE_RATE,
    PromptAudioEncoder,
    load_frozen,
    require,
    size,
    with_prefix,
)
from wavalign_fast.models.prompt_audio.log_mel import HOP, log_mel
from wavalign_fast.speech.resample import resample

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

WHISPER_SIZES = (
    "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins",
    "max_source_positions",
)  # fmt: skip
COVO_RATE = 24_000
COVO_HALVINGS = 4
KIMI_SAMPLES = 1280
"""Samples of one of Kimi's embeddings, 12.5 a second."""
KIMI_STACKED = 4
"""Frames of Whisper's encoder in one embedding."""


def whisper_encoder(config: Mapping[str, Any]) -> "WhisperEncoder":
    """Builds Whisper's encoder with random weights from its sizes in ``config``.

    Raises:
        UserError: a size is missing, or another activation or scale is asked for.
    """
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    what = "configuration of Whisper's encoder"
    require(config, {"activation_function": "gelu", "scale_embedding": False}, what=what)
    sizes = {name: size(config, name, what=what) for name in WHISPER_SIZES}
    native = WhisperConfig(**sizes, attn_implementation="sdpa")
    return WhisperEncoder(native).eval()


class _WhisperPieces(PromptAudioEncoder):
    """Runs Whisper's encoder over pieces of its whole window (30 s), the last one padded."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = whisper_encoder(config)
        self.mel_bins = size(config, "num_mel_bins", what="encoder_config")
        self.width = size(config, "d_model", what="encoder_config")
        self.window = 2 * HOP * size(config, "max_source_positions", what="encoder_config")

    def encoded(self, wave: Tensor) -> list[tuple[int, Tensor]]:
        """(samples, frames [1, positions, width]) of each piece; 50 frames a second."""
        result = []
        for piece in wave.split(self.window):
            padded = F.pad(piece, (0, self.window - len(piece)))
            mel = log_mel(padded, mel_bins=self.mel_bins)
            result.append((len(piece), self.encoder(mel[None]).last_hidden_state))
        return result


class _CovoLayer(nn.Module):
    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.linear1 = nn.Linear(width, inner)
        self.linear2 = nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1d(x.mT)).mT
        out: Tensor = self.linear2(F.relu(self.linear1(x)))
        return out


class _CovoAdapter(nn.Module):
    def __init__(self, width: int, inner: int, hidden: int, layers: int) -> None:
        super().__init__()
        outs = [width] * (layers - 1) + [hidden]
        self.downsample_layers = nn.ModuleList([_CovoLayer(width, inner, out) for out in outs])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.downsample_layers:
            x = layer(x)
        return x


class CovoAudioEncoder(_WhisperPieces):
    """Whisper's encoder and an adapter that leaves 6.25 embeddings a second."""

    recipe = "covo_audio 1"

    def __init__(self, config: Mapping[str, Any], *, inner: int) -> None:
        """Builds it with random weights.

        Args:
            config: the checkpoint's; ``encoder_config``, ``llm_config``, ``adapter_downsample``.
            inner: width between the adapter's linear layers.

        Raises:
            UserError: a size is missing, or the adapter does not downsample 8 times.
        """
        super().__init__(config.get("encoder_config") or {})
        require(config, {"adapter_downsample": 8}, what="config.json")
        hidden = size(config.get("llm_config") or {}, "hidden_size", what="llm_config")
        layers = COVO_HALVINGS - 1  # the encoder's own convolution halves once
        self.audio_adapter = _CovoAdapter(self.width, inner, hidden, layers)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> "CovoAudioEncoder":
        """Builds it from a checkpoint's ``encoder.*`` and ``audio_adapter.*`` tensors.

        Raises:
            UserError: a tensor is missing, left over, or has another shape.
        """
        name = "audio_adapter.downsample_layers.0.linear1.weight"
        if name not in tensors:
            raise UserError(f"covo_audio: {name} is missing")
        encoder = cls(config, inner=len(tensors[name]))
        parts = {
            f"{part}.{name}": value
            for part in ("encoder", "audio_adapter")
            for name, value in with_prefix(tensors, f"{part}.").items()
        }
        load_frozen(encoder, parts, what="covo_audio: audio encoder")
        return encoder

    def resampled(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Returns a wave at 16 kHz; another rate goes by way of 24 kHz, as in the family's code.

        The family sends 16 kHz through 24 kHz too, which only filters it; here it stays as it is.
        """
        if sample_rate == SAMPLE_RATE:
            return wave
        at_24k = _whole_frames(resample(wave, sample_rate, COVO_RATE), COVO_RATE // 100)
        return resample(at_24k, COVO_RATE, SAMPLE_RATE)

    def pieces(self, wave: Tensor) -> list[Tensor]:
        """One piece: the clip cut to whole 10 ms, padded to 20 ms."""
        count = len(wave) // HOP
        if not count:
            return []
        for _ in range(COVO_HALVINGS):
            count = -(-count // 2)
        adapted = [self.audio_adapter(x)[0] for _, x in self.encoded(_whole_frames(wave, HOP))]
        return [torch.cat(adapted)[:count]]


def _whole_frames(wave: Tensor, hop: int) -> Tensor:
    """Cuts a wave to whole frames of ``hop`` samples, and pads it with zeros to an even number."""
    frames = len(wave) // hop
    return F.pad(wave[: frames * hop], (0, frames % 2 * hop))


class KimiAudioEncoder(_WhisperPieces):
    """Whisper's frames, four side by side, through the model's ``vq_adaptor``."""

    recipe = "kimi_audio 1"

    def __init__(self, whisper: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Builds it with random weights.

        Args:
            whisper: configuration in the folder ``whisper-large-v3``.
            config: the checkpoint's; hidden_size, kimia_adaptor_input_dim, rms_norm_eps.

        Raises:
            UserError: a size is missing, or Whisper is not as wide as the adaptor wants.
        """
        super().__init__(whisper)
        inputs = size(config, "kimia_adaptor_input_dim", what="config.json")
        if KIMI_STACKED * self.width != inputs:
            raise UserError(
                f"kimi_audio: Whisper's width is {self.width}, want a quarter of "
                f"kimia_adaptor_input_dim, which is {inputs}"
            )
        self.vq_adaptor = KimiAdaptor(
            inputs, size(config, "hidden_size", what="config.json"), config["rms_norm_eps"]
        )

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        whisper: Mapping[str, Tensor],
        whisper_config: Mapping[str, Any],
    ) -> "KimiAudioEncoder":
        """Builds it from ``model.vq_adaptor.*`` and the tensors of Whisper's encoder.

        Raises:
            UserError: a tensor is missing, left over, or has another shape.
        """
        encoder = cls(whisper_config, config)
        parts = {
            **{f"encoder.{name}": value for name, value in whisper.items()},
            **{f"vq_adaptor.{k}": v for k, v in with_prefix(tensors, "model.vq_adaptor.").items()},
        }
        load_frozen(encoder, parts, what="kimi_audio: audio encoder")
        return encoder

    def pieces(self, wave: Tensor) -> list[Tensor]:
        """One piece: an embedding for each begun 1280 samples of every 30 s."""
        stacked = []
        for samples, frames in self.encoded(wave):
            count = -(-samples // KIMI_SAMPLES)
            kept = frames[0, : KIMI_STACKED * count]
            stacked.append(kept.reshape(count, KIMI_STACKED * self.width))
        return [self.vq_adaptor(torch.cat(stacked))]


class KimiAdaptor(nn.Module):
    """Linear, SiLU, linear, LayerNorm: [..., inputs] -> [..., hidden]."""

    def __init__(self, inputs: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        # The family keeps a dropout at index 2; indices are names of the stored weights.
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.SiLU(),
            nn.Identity(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden, eps=epsilon),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out
