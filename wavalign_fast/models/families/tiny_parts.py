"""What a small checkpoint of each family consists of, besides its weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wavalign_fast.models.families import kimi_audio as kimi_family
from wavalign_fast.models.families import step_audio_2 as step_family
from wavalign_fast.models.families.tiny_tokenizers import (
    QWEN2_ADDED,
    ranks,
    write_qwen2_tokenizer,
    write_tiktoken,
)
from wavalign_fast.models.families.tokens import NUMBERED_CODES
from wavalign_fast.models.families.vita_audio import ADDED, CONTEXT, ENCODER, PLUS, PROJECTOR
from wavalign_fast.models.families.weight_table import Shape
from wavalign_fast.models.prompt_audio.sense_voice import Projection, SenseVoiceEncoder, Sizes
from wavalign_fast.models.prompt_audio.step_audio_2 import StepAudio2Encoder
from wavalign_fast.models.prompt_audio.whisper import CovoAudioEncoder, KimiAudioEncoder

HIDDEN = 64
QWEN2 = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "num_mel_bins": 128,
    "d_model": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "max_source_positions": 1500,
}
GLM_SPECIAL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *(f"<|{role}|>" for role in ("system", "user", "assistant", "observation")),
    *(f"<|{end}_of_{kind}|>" for kind in ("image", "video", "audio") for end in ("begin", "end")),
)


@dataclass(frozen=True, kw_only=True)
class TinyParts:
    """A small checkpoint without its weights.

    Args:
        config: ``config.json``.
        write_files: writes the tokenizer and what else the directory has.
        generation: ``generation_config.json``.
        aside: tensors beside the language model whose shape its table leaves open, or that have
            fixed values.
        folders: models in folders beside it: their configurations, and the shapes of their tensors.
    """

    config: dict[str, Any]
    write_files: Callable[[Path], None]
    generation: dict[str, Any]
    aside: Mapping[str, Shape | Tensor] = field(default_factory=dict)
    folders: Mapping[str, tuple[dict[str, Any], Mapping[str, Shape]]] = field(default_factory=dict)


def vita_audio(codebook_size: int) -> TinyParts:
    """Like Balance: two layers of the body, and two MTP layers."""
    config, generation, write = _vita(codebook_size, continuous=False)
    config |= {"architectures": ["Qwen2MTPForCausalLM"], "model_type": "qwen2_mtp"}
    config |= {"num_hidden_layers": 4, "num_nextn_predict_layers": 2, "mtp_loss_weight": 1.0}
    generation["mtp_inference_mode"] = [1, 10, 4, 10]
    return TinyParts(config=config, generation=generation, write_files=write)


def vita_audio_plus(codebook_size: int) -> TinyParts:
    """Like Plus-Vanilla: two layers, and a small SenseVoice encoder with its projector."""
    config, generation, write = _vita(codebook_size, continuous=True)
    config |= {"architectures": [PLUS], "model_type": "qwen2_mtp_sensevoice"}
    config |= {"num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    sizes = Sizes(inputs=560, width=32, heads=4, inner=48, layers=2, last_layers=1, kernel=11)
    encoder = _shapes(lambda: SenseVoiceEncoder(sizes), ENCODER)
    recogniser = {f"{ENCODER}ctc.ctc_lo.weight": (8, 32), f"{ENCODER}ctc.ctc_lo.bias": (8,)}
    projector = _shapes(lambda: Projection(sizes.width, HIDDEN), PROJECTOR)

    def write_files(directory: Path) -> None:
        write(directory)
        (directory / "config.yaml").write_text(_sense_voice_yaml(sizes), encoding="utf-8")
        (directory / "am.mvn").write_text(_mean_and_variance(sizes.inputs), encoding="utf-8")

    return TinyParts(
        config=config,
        generation=generation,
        write_files=write_files,
        aside=encoder | recogniser | projector,
    )


def glm4_voice(codebook_size: int) -> TinyParts:
    """Two layers of chatglm."""
    names = (*GLM_SPECIAL, *(f"<|reserved_{number}|>" for number in range(4)))
    added = [(name, True) for name in names] + _codes(codebook_size)
    ids = {name: len(ranks()) + number for number, name in enumerate(names)}
    stop = [ids[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    rows = _padded(len(ranks()) + len(added), 64)
    generation = {"eos_token_id": stop, "pad_token_id": stop[0], "do_sample": True}

    def write_files(directory: Path) -> None:
        write_tiktoken(
            directory / "tokenizer.model",
            added,
            tokenizer_class="ChatGLM4Tokenizer",
            eos="<|endoftext|>",
            pad="<|endoftext|>",
        )

    return TinyParts(
        config={
            "architectures": ["ChatGLMForConditionalGeneration"],
            "model_type": "chatglm",
            "num_layers": 2,
            "padded_vocab_size": rows,
            "vocab_size": rows,
            "hidden_size": HIDDEN,
            "ffn_hidden_size": 96,
            "kv_channels": 16,
            "num_attention_heads": 4,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "seq_length": 8192,
            "layernorm_epsilon": 1.5625e-07,
            "rmsnorm": True,
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "rope_ratio": 1,
            "tie_word_embeddings": False,
            "eos_token_id": stop,
            "pad_token_id": stop[0],
        },
        generation=generation | {"temperature": 0.8, "top_p": 0.8},
        write_files=write_files,
        aside={"transformer.rotary_pos_emb.inv_freq": 1 / 10000.0 ** (torch.arange(0, 8, 2) / 8)},
    )


def step_audio_2(codebook_size: int) -> TinyParts:
    """Two layers of Qwen2, and a small encoder with its adapter."""
    names = (*step_family.TURNS, "<tts_pad>", *step_family.SPEECH, *step_family.AUDIO)
    # One code more, which fills speech up.
    codes = [(step_family.CODES.format(number), False) for number in range(codebook_size + 1)]
    added = [(name, True) for name in names] + codes
    first = len(ranks()) + len(QWEN2_ADDED)
    end, rows = first + names.index("<|EOT|>"), _padded(first + len(added), 8)
    encoder = {"n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 24, "n_audio_head": 4}
    encoder |= {"n_audio_layer": 1, "llm_dim": HIDDEN, "kernel_size": 3, "adapter_stride": 2}
    text = QWEN2 | {"model_type": "qwen2", "num_hidden_layers": 2, "vocab_size": rows}
    return TinyParts(
        config={
            "architectures": ["StepAudio2ForCausalLM"],
            "model_type": "step_audio_2",
            "audio_encoder_config": encoder,
            "text_config": text | {"eos_token_id": end, "pad_token_id": len(ranks())},
        },
        generation={"eos_token_id": end, "pad_token_id": len(ranks())},
        write_files=lambda directory: write_qwen2_tokenizer(directory, added),
        aside=_shapes(lambda: StepAudio2Encoder(encoder, inner=32), ""),
    )


def covo_audio(codebook_size: int) -> TinyParts:
    """Two layers of Qwen2, and a small Whisper encoder with its adapter."""
    names = ("<|cAUDIO|>", "<|begofcAUDIO|>", "<|endofcAUDIO|>")
    pad = len(ranks())
    first = pad + len(QWEN2_ADDED) + len(names)
    text = QWEN2 | {"model_type": "qwen2", "num_hidden_layers": 2, "eos_token_id": pad}
    config = {
        "architectures": ["CovoAudioForCausalLM"],
        "model_type": "covo_audio",
        "audio_token_index": first,
        "adapter_downsample": 8,
        "llm_config": text | {"vocab_size": first + codebook_size},
        "encoder_config": WHISPER,
    }
    return TinyParts(
        config=config,
        generation={"eos_token_id": pad, "pad_token_id": pad},
        write_files=lambda directory: write_qwen2_tokenizer(
            directory, [(name, True) for name in names]
        ),
        aside=_shapes(lambda: CovoAudioEncoder(config, inner=32), ""),
    )


def kimi_audio(codebook_size: int) -> TinyParts:
    """Four layers of Qwen2, two more of the audio stream, and a small Whisper in its folder."""
    places = {place: name for name, place in kimi_family.SPECIAL.values()}
    places |= {0: "[BOS]", 1: "[EOS]"}
    names = [places.get(place, f"<|reserved_token_{place}|>") for place in range(40)]
    begin = len(ranks())
    offset = _padded(begin + len(names), 8)
    config = QWEN2 | {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "model_type": "kimi_audio",
        "num_hidden_layers": 4,
        "vocab_size": offset + codebook_size,
        "kimia_token_offset": offset,
        "kimia_mimo_layers": 2,
        "kimia_mimo_transformer_from_layer_index": 2,
        "kimia_mimo_audiodelaytokens": 5,
        "kimia_adaptor_input_dim": 4 * WHISPER["d_model"],
        "bos_token_id": begin,
        "eos_token_id": begin + 1,
        "pad_token_id": offset - 1,
    }
    with torch.device("meta"):
        whisper = KimiAudioEncoder(WHISPER, config).encoder
    tensors = {f"model.encoder.{n}": tuple(w.shape) for n, w in whisper.named_parameters()}
    return TinyParts(
        config=config,
        generation={"eos_token_id": begin + 1, "pad_token_id": offset - 1},
        write_files=lambda directory: write_tiktoken(
            directory / "tiktoken.model",
            [(name, True) for name in names],
            tokenizer_class="TikTokenTokenizer",
            eos="[EOS]",
            pad="[EOS]",
        ),
        folders={kimi_family.WHISPER: (WHISPER, tensors)},
    )


def _vita(
    codebook_size: int, *, continuous: bool
) -> tuple[dict[str, Any], dict[str, Any], Callable[[Path], None]]:
    """Returns the configurations that VITA-Audio's models share, and what writes the tokenizer."""
    special = [(name, True) for name in ADDED[:-1] if continuous or name != CONTEXT]
    added = special + _codes(codebook_size)
    first = len(ranks())
    pad, _, stop = range(first, first + 3)
    rows = _padded(first + len(QWEN2_ADDED) + len(added), 8)
    config = QWEN2 | {"vocab_size": rows, "bos_token_id": pad, "eos_token_id": stop}
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}
    generation = sampling | {"eos_token_id": [stop, pad], "pad_token_id": pad}
    return config, generation, lambda directory: write_qwen2_tokenizer(directory, added)


def _codes(codebook_size: int) -> list[tuple[str, bool]]:
    return [(NUMBERED_CODES.format(number), False) for number in range(codebook_size)]


def _padded(rows: int, multiple: int) -> int:
    """Returns the rows of a table that has some without a token."""
    return (rows // multiple + 1) * multiple


def _shapes(build: Callable[[], nn.Module], prefix: str) -> dict[str, Shape | Tensor]:
    with torch.device("meta"):
        module = build()
    return {prefix + name: tuple(weight.shape) for name, weight in module.named_parameters()}


def _sense_voice_yaml(sizes: Sizes) -> str:
    encoder = {
        "output_size": sizes.width,
        "attention_heads": sizes.heads,
        "linear_units": sizes.inner,
        "num_blocks": sizes.layers,
        "tp_blocks": sizes.last_layers,
        "kernel_size": sizes.kernel,
        "sanm_shfit": 0,
        "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
        "selfattention_layer_type": "sanm",
    }
    frontend = {"fs": 16000, "window": "hamming", "n_mels": 80, "frame_length": 25}
    frontend |= {"frame_shift": 10, "lfr_m": 7, "lfr_n": 6}
    # JSON is YAML.
    return json.dumps(
        {
            "encoder": "SenseVoiceEncoderSmall",
            "encoder_conf": encoder,
            "model": "SenseVoiceSmall",
            "frontend": "WavFrontend",
            "frontend_conf": frontend,
        },
        indent=1,
    )


def _mean_and_variance(count: int) -> str:
    """Returns an ``am.mvn`` that shifts log energies by their usual mean."""
    rows = []
    for name, value in (("AddShift", -8.0), ("Rescale", 0.15)):
        values = " ".join(f"{value + 0.001 * (number % 7):.6f}" for number in range(count))
        rows.append(f"<{name}> {count} {count}\n<LearnRateCoef> 0 [ {values} ]\n")
    return f"<Nnet>\n<Splice> {count} {count}\n[ 0 ]\n{''.join(rows)}</Nnet>\n"


PARTS: Mapping[str, Callable[[int], TinyParts]] = {
    "vita_audio": vita_audio,
    "vita_audio_plus": vita_audio_plus,
    "glm4_voice": glm4_voice,
    "step_audio_2": step_audio_2,
    "covo_audio": covo_audio,
    "kimi_audio": kimi_audio,
}
"""By the name of a kind of checkpoint: makes its parts for a number of codes."""
