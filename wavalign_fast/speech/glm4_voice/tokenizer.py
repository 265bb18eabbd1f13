"""GLM-4-Voice's speech tokenizer: a Whisper encoder that ends in a codebook.

Source: ``WhisperVQEncoder`` of THUDM/GLM-4-Voice, rebuilt from its published formulas.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavalign_fast.errors import UserError, did_you_mean, naming, shown
from wavalign_fast.models.json_files import read_config, read_json
from wavalign_fast.speech.glm4_voice.weight_files import load_strictly, read_safetensors

RATE = 16_000
HOP = 160
FRAMES_PER_CODE = 8
"""Mel frames of 10 ms: the second convolution halves them, the pool takes four of what is left."""
POOL = 4
PIECE_S = 30
SAMPLES_PER_CODE = HOP * FRAMES_PER_CODE
CODES_PER_SECOND = RATE / SAMPLES_PER_CODE

# What the code below computes; a checkpoint that says something else is refused.
IMPLEMENTED = {
    "pooling_kernel_size": POOL,
    "pooling_type": "avg",
    "encoder_causal_convolution": True,
    "encoder_causal_attention": False,
    "quantize_causal_encoder": False,
    "activation_function": "gelu",
    "scale_embedding": False,
}

SIZES = (
    "d_model",
    "num_mel_bins",
    "max_source_positions",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "quantize_position",
    "pooling_position",
    "quantize_vocab_size",
    "quantize_causal_block_size",
)


class EncoderLayer(nn.Module):
    """A layer of Whisper's encoder; frames see their own block of time and all before it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width),
                "k_proj": nn.Linear(width, width, bias=False),
                "v_proj": nn.Linear(width, width),
                "out_proj": nn.Linear(width, width),
            }
        )
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, block: int, valid: int) -> Tensor:
        """Maps frames [T, width]; those from ``valid`` on are seen by none."""
        x = x + self._attention(self.self_attn_layer_norm(x), block, valid)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return out

    def _attention(self, x: Tensor, block: int, valid: int) -> Tensor:
        project = self.self_attn
        q, k, v = (
            project[name](x).view(len(x), self.heads, -1).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        # Block by block over the keys it sees: no mask, and half of the products.
        seen = []
        for start in range(0, len(x), block):
            end = min(start + block, valid)
            rows = q[:, start : start + block]
            seen.append(
                F.scaled_dot_product_attention(rows[None], k[None, :, :end], v[None, :, :end])
            )
        joined = torch.cat(seen, dim=2)[0].transpose(0, 1).reshape(x.shape)
        out: Tensor = project["out_proj"](joined)
        return out


class WhisperVQ(nn.Module):
    """Mel features to codes; parameters have the names of the checkpoint."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bins = config["d_model"], config["num_mel_bins"]
        self.block = config["quantize_causal_block_size"]
        self.conv1 = nn.Conv1d(bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(config["max_source_positions"], width)
        self.layers = nn.ModuleList(
            EncoderLayer(width, config["encoder_attention_heads"], config["encoder_ffn_dim"])
            for _ in range(config["quantize_position"])
        )
        self.codebook = nn.Embedding(config["quantize_vocab_size"], width)

    def hidden(self, features: Tensor, frames: int) -> Tensor:
        """Returns the input of the codebook.

        Args:
            features: log-mel [bins, F], F a multiple of 8.
            frames: how many of them are of the wave, not of its padding.

        Returns:
            [F / 8, width].
        """
        x = F.gelu(self.conv1(F.pad(features[None], (2, 0))))
        x = F.gelu(self.conv2(F.pad(x, (2, 0))))[0].T  # [F / 2, width]
        x = x + self.embed_positions.weight[: len(x)]
        for layer in self.layers:
            x = layer(x, self.block, -(-frames // 2))
        return x.view(-1, POOL, x.shape[-1]).mean(1)

    def codes(self, hidden: Tensor) -> Tensor:
        """Returns the nearest rows of the codebook, int64 [T]."""
        rows = self.codebook.weight
        # |h - c|² without |h|², which all rows of the codebook share
        return torch.addmm(rows.square().sum(1), hidden, rows.T, alpha=-2).argmin(1)


class SpeechTokenizer:
    """Encodes waves of 16 kHz; reads a ``glm-4-voice-tokenizer`` directory.

    Args:
        directory: has ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``.
        device: where it computes, in float32.

    Raises:
        UserError: a file is missing or damaged, the config asks for what is not implemented, or
            weights are missing, left over or of another shape.
    """

    def __init__(self, directory: Path, *, device: str | torch.device = "cpu") -> None:
        from transformers import WhisperFeatureExtractor

        with naming(str(directory)):
            config = read_config(directory)
            _check(config)
            self.features = WhisperFeatureExtractor(**_features(directory, config))
            with torch.device("meta"):  # weights of its own would draw random numbers
                self.model = WhisperVQ(config)
            load_strictly(self.model, _weights(directory, config["quantize_position"]))
        self.model.requires_grad_(False).eval().to(device)
        self.codebook_size: int = config["quantize_vocab_size"]

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Tensor:
        """Returns int64 [ceil(N / 1280)] codes of float32 [N] at 16 kHz, each 30 s alone."""
        if not len(wave):
            return torch.zeros(0, dtype=torch.int64)
        pieces = wave.split(PIECE_S * RATE)
        return torch.cat([self.model.codes(self.hidden(piece)) for piece in pieces]).cpu()

    @torch.no_grad()
    def hidden(self, piece: Tensor) -> Tensor:
        """Returns the input of the codebook [T, width] for a wave of at most 30 s."""
        found = self.features(
            piece.float().cpu().numpy(),
            sampling_rate=RATE,
            padding="longest",
            pad_to_multiple_of=SAMPLES_PER_CODE,
            return_tensors="pt",
        )
        features = found["input_features"][0].to(self.model.conv1.weight.device)
        return self.model.hidden(features, -(-len(piece) // HOP))


def _check(config: Mapping[str, Any]) -> None:
    """Refuses a config that asks for what is not implemented, or lacks a size."""
    for key, wanted in IMPLEMENTED.items():
        if key in config and config[key] != wanted:
            raise UserError(f"{key} is {shown(config[key])}, implemented is {shown(wanted)}")
    for key in SIZES:
        if not isinstance(config.get(key), int) or config[key] < 1:
            hint = did_you_mean(key, set(config) - {key})
            raise UserError(f"{key} is {shown(config.get(key))}, wanted a number from 1{hint}")
    if config["pooling_position"] != config["quantize_position"]:
        seen = f"{config['pooling_position']} and {config['quantize_position']}"
        raise UserError(f"pooling_position and quantize_position are {seen}, implemented is equal")
    positions = PIECE_S * RATE // (2 * HOP)
    if config["max_source_positions"] < positions:
        seen = config["max_source_positions"]
        raise UserError(f"max_source_positions is {seen}, wanted {positions} for {PIECE_S} s")


def _features(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the feature extractor."""
    given = read_json(directory / "preprocessor_config.json")
    wanted = {"feature_size": config["num_mel_bins"], "sampling_rate": RATE, "hop_length": HOP}
    for key, value in wanted.items():
        if given.setdefault(key, value) != value:
            raise UserError(
                f"preprocessor_config.json: {key} is {shown(given[key])}, wanted {value}"
            )
    keys = (*wanted, "n_fft", "chunk_length", "padding_value")
    return {key: given[key] for key in keys if key in given}


def _weights(directory: Path, layers: int) -> dict[str, Tensor]:
    """Reads the weights that serve; those of the decoder and of training are left out."""
    tensors = read_safetensors(directory / "model.safetensors")
    if "model.encoder.conv1.weight" in tensors:  # a whole Whisper, of which the encoder serves
        start = "model.encoder."
        tensors = {
            name.removeprefix(start): value
            for name, value in tensors.items()
            if name.startswith(start)
        }
    unused = ("ema_", "embed_positions2.", "layer_norm.")
    return {
        name: value
        for name, value in tensors.items()
        if not name.startswith(unused)
        and not (name.startswith("layers.") and int(name.split(".")[1]) >= layers)
    }
