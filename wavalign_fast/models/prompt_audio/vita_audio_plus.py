"""The prompt audio of VITA-Audio-Plus: fbank, SenseVoice's encoder, projection."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.models.prompt_audio import fbank as features
from wavalign_fast.models.prompt_audio.encoder import (
    PromptAudioEncoder,
    load_frozen,
    require,
    size,
    with_prefix,
)
from wavalign_fast.models.prompt_audio.sense_voice import Projection, SenseVoiceEncoder, Sizes

INPUTS = features.MELS * features.FRAMES_PER_WINDOW
ENCODER_PREFIX = "model.audio_model.model."
PROJECTION_PREFIX = "model.audio_projection."
UNUSED = "ctc."
"""The head with which SenseVoice recognises speech."""
SIZE_NAMES = (
    "output_size", "attention_heads", "linear_units", "num_blocks", "tp_blocks", "kernel_size",
)  # fmt: skip
"""The sizes behind ``inputs`` in ``Sizes``, in their order."""
ENCODER_RULES = {
    "sanm_shfit": 0,  # FunASR's spelling
    "input_layer": "pe",
    "pos_enc_class": "SinusoidalPositionEncoder",
    "normalize_before": True,
    "selfattention_layer_type": "sanm",
}
FRONTEND_RULES = {
    "fs": features.SAMPLE_RATE,
    "window": "hamming",
    "n_mels": features.MELS,
    "frame_length": 25,
    "frame_shift": 10,
    "lfr_m": features.FRAMES_PER_WINDOW,
    "lfr_n": features.WINDOW_HOP,
}


class VitaAudioPlusEncoder(PromptAudioEncoder):
    """Gives T + 4 embeddings for T windows of 60 ms; the first four ask for nothing special."""

    recipe = "vita_audio_plus 1"
    shift: Tensor
    scale: Tensor

    def __init__(self, sizes: Sizes, hidden: int) -> None:
        """Builds it with random weights, and features that stay as they are.

        Args:
            hidden: width of the language model.
        """
        super().__init__()
        self.encoder = SenseVoiceEncoder(sizes)
        self.projection = Projection(sizes.width, hidden)
        self.register_buffer("shift", torch.zeros(sizes.inputs))
        self.register_buffer("scale", torch.ones(sizes.inputs))

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], directory: Path
    ) -> "VitaAudioPlusEncoder":
        """Builds it from a checkpoint: its tensors, and ``config.yaml`` and ``am.mvn`` beside them.

        Args:
            tensors: those under ``model.audio_model.model.`` and ``model.audio_projection.``.
            config: ``config.json`` of the checkpoint.

        Raises:
            DamagedFileError: a file is missing or cannot be read.
            UserError: ``config.yaml`` asks for another computation, or a tensor is missing, left
                over, or has another shape.
        """
        hidden = size(config, "hidden_size", what="config.json")
        encoder = cls(sense_voice_sizes(directory), hidden)
        model = with_prefix(tensors, ENCODER_PREFIX)
        used = {name: value for name, value in model.items() if not name.startswith(UNUSED)}
        load_frozen(encoder.encoder, used, what="vita_audio_plus: SenseVoice")
        projection = with_prefix(tensors, PROJECTION_PREFIX)
        load_frozen(encoder.projection, projection, what="vita_audio_plus: audio projection")
        statistics = features.read_mean_variance(directory / "am.mvn", size=INPUTS)
        encoder.shift, encoder.scale = statistics
        return encoder.eval()

    def pieces(self, wave: Tensor) -> list[Tensor]:
        """One piece."""
        windows = features.low_frame_rate(features.fbank(wave))
        return self.embed([(windows + self.shift) * self.scale])

    def embed(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings [T_i + 4, hidden] of normalised windows [T_i, 560] of each clip."""
        return [self.projection(encoded) for encoded in self.encoder(clips)]


def sense_voice_sizes(directory: Path) -> Sizes:
    """Reads the sizes of the encoder from SenseVoice's ``config.yaml``.

    Raises:
        DamagedFileError: the file is missing or is not YAML of that shape.
        UserError: it asks for another computation.
    """
    import yaml

    path = directory / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedFileError(
            f"no {path}: VITA-Audio-Plus needs config.yaml and am.mvn of SenseVoiceSmall in its "
            "directory"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DamagedFileError(f"{path} cannot be read: {one_line(error)}") from error
    parts = config if isinstance(config, dict) else {}
    encoder, frontend = parts.get("encoder_conf"), parts.get("frontend_conf")
    if not isinstance(encoder, dict) or not isinstance(frontend, dict):
        raise DamagedFileError(f"{path}: want mappings encoder_conf and frontend_conf")
    require(parts, {"encoder": "SenseVoiceEncoderSmall"}, what=str(path))
    require(encoder, ENCODER_RULES, what=f"{path}: encoder_conf")
    require(frontend, FRONTEND_RULES, what=f"{path}: frontend_conf")
    values = [size(encoder, name, what=f"{path}: encoder_conf") for name in SIZE_NAMES]
    sizes = Sizes(INPUTS, *values)
    if sizes.width % sizes.heads or not sizes.kernel % 2:
        raise UserError(
            f"{path}: output_size {sizes.width}, attention_heads {sizes.heads}, kernel_size "
            f"{sizes.kernel}; want heads that divide the size, and an odd kernel"
        )
    return sizes
