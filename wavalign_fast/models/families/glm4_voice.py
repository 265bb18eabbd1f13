"""GLM-4-Voice: chatglm weights on ``GlmForCausalLM``, a tiktoken tokenizer, prompts and answers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.families.dialogue import (
    Row,
    Turn,
    check_ends_with_user,
    check_says_something,
    code_ids,
    mixed,
    split_one_stream,
    text_ids,
    turns,
)
from wavalign_fast.models.families.interface import (
    EVIDENCE,
    Audio,
    FamilyFiles,
    FamilyLayout,
    Message,
    Prompt,
    Sampling,
    Target,
    evidence,
)
from wavalign_fast.models.families.native import causal_lm, field, refuse_tied
from wavalign_fast.models.families.tokens import (
    DIGITS_BY_THREE,
    NUMBERED_CODES,
    check_table,
    numbered_codes,
    special_ids,
    tiktoken_tokenizer,
    token_ids,
)
from wavalign_fast.models.families.weight_table import Piece, Shape, WeightTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "glm4_voice"

RATIO = (13, 26)
STREAMING = "streaming_transcription"
"""Follows the assistant's token where the answer is spoken."""

SPECIAL = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
STOP = ("<|endoftext|>", "<|user|>", "<|observation|>")

FIXED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "original_rope": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
}
"""Fields of chatglm with the one value that Glm has."""

_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.dense.weight",
    "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
    "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
}
_WHOLE = {
    "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
    "model.norm.weight": "transformer.encoder.final_layernorm.weight",
    "lm_head.weight": "transformer.output_layer.weight",
}
_ROTARY = "transformer.rotary_pos_emb.inv_freq"


def detect(config: Mapping[str, Any], tokens: Collection[str]) -> int:
    """Tells the family by its class or type; a converted one, plain Glm, by its codes.

    Chat models of the same class have no codes.
    """
    if NUMBERED_CODES.format(0) not in tokens:
        return 0
    sure = evidence(
        config,
        architectures=("ChatGLMForConditionalGeneration", "ChatGLMModel"),
        model_types=("chatglm",),
        keys=("padded_vocab_size",),
    )
    return sure or (EVIDENCE["tokens"] if config.get("model_type") == "glm" else 0)


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """Builds the tokenizer from ``tokenizer.model``, or loads that of a converted directory."""
    if (directory / "tokenizer.model").is_file():
        return tiktoken_tokenizer(directory / "tokenizer.model", pattern=DIGITS_BY_THREE)
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
        directory, local_files_only=True
    )
    return tokenizer


def layout(config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> FamilyLayout:
    """Derives the ids from the names of tokens.

    Raises:
        UserError: a token is missing or beyond the embedding, or the codes have a gap.
    """
    vocab, rows = tokenizer.get_vocab(), _rows(config)
    first, size = numbered_codes(vocab)
    check_table(vocab, rows)
    begin, end = token_ids(vocab, ("<|begin_of_audio|>", "<|end_of_audio|>"))
    stop = tuple(token_ids(vocab, STOP))
    named = dict(zip(SPECIAL, token_ids(vocab, SPECIAL), strict=True))
    return FamilyLayout(
        stream=ModalityLayout(
            vocab_size=rows, speech=((first, first + size),), boundary=(begin, end), eos=stop
        ),
        first_code=first,
        codebook_size=size,
        stop=stop,
        special=special_ids(tokenizer, vocab, rows),
        named=named | {"begin_of_audio": begin, "end_of_audio": end},
    )


def _rows(config: Mapping[str, Any]) -> int:
    rows: int = config.get("padded_vocab_size") or field(config, "vocab_size")
    return rows


def build(config: Mapping[str, Any], dtype: torch.dtype) -> "PreTrainedModel":
    """Builds Glm.

    Raises:
        UserError: a field is missing, or has a value that Glm lacks.
    """
    from transformers import GlmConfig

    if config.get("model_type") == "glm":
        return causal_lm(GlmConfig.from_dict(dict(config)), dtype)
    refuse_tied(config)
    for name, wanted in FIXED.items():
        if config.get(name, wanted) != wanted:
            raise UserError(f"config.json: {name} is {config[name]}, wanted {wanted}")
    heads = field(config, "num_attention_heads")
    grouped = config.get("multi_query_attention", True)
    ids = {key: config.get(key) for key in ("pad_token_id", "eos_token_id")}
    rope_ratio = config.get("rope_ratio")
    native = GlmConfig(
        vocab_size=_rows(config),
        hidden_size=field(config, "hidden_size"),
        intermediate_size=field(config, "ffn_hidden_size"),
        num_hidden_layers=field(config, "num_layers"),
        num_attention_heads=heads,
        num_key_value_heads=field(config, "multi_query_group_num") if grouped else heads,
        head_dim=field(config, "kv_channels"),
        rms_norm_eps=field(config, "layernorm_epsilon"),
        attention_bias=config.get("add_qkv_bias", False),
        attention_dropout=config.get("attention_dropout", 0.0),
        max_position_embeddings=field(config, "seq_length"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * (1 if rope_ratio is None else rope_ratio),
            "partial_rotary_factor": 0.5,
        },
        tie_word_embeddings=False,
        **ids,
    )
    return causal_lm(native, dtype)


def weights(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> WeightTable:
    """Names chatglm's tensors; one holds the rows of q, k and v."""
    if config.get("model_type") == "glm":
        return WeightTable(pieces={name: Piece(name) for name in shapes}, shapes=shapes)
    return WeightTable(
        pieces={name: _piece(name, shapes) for name in shapes},
        shapes=shapes,
        # A buffer of the published class, which follows from the configuration.
        aside_prefixes=(_ROTARY,),
    )


def _piece(name: str, shapes: Mapping[str, Shape]) -> Piece:
    if name in _WHOLE:
        return Piece(_WHOLE[name])
    _, _, number, rest = name.split(".", 3)
    layer = f"transformer.encoder.layers.{number}."
    if rest in _LAYER:
        return Piece(layer + _LAYER[rest])
    _, projection, kind = rest.split(".")
    before = {"q_proj": (), "k_proj": ("q_proj",), "v_proj": ("q_proj", "k_proj")}[projection]
    first = sum(shapes[f"model.layers.{number}.self_attn.{part}.{kind}"][0] for part in before)
    return Piece(f"{layer}self_attention.query_key_value.{kind}", first)


def prompt(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Prompt:
    """Builds the turns and the beginning of the assistant's.

    An answer of history has no end of its own: the next user's token ends it, and is a label. In
    the style "release" a turn's content is tokenised together with the new line before it.

    Raises:
        UserError: the dialogue does not end with a user, or a message or an audio cannot be used.
    """
    check_ends_with_user(messages)
    named, built = files.layout.named, Row()
    built.add([named["[gMASK]"], named["<sop>"]])
    answered = False
    for turn in turns(messages, audios):
        if turn.role == "assistant":
            _open_answer(files, built)
            built.add(_answer(files, turn.parts, turn.codes), scored=True)
        else:
            built.add([named[f"<|{turn.role}|>"]], scored=answered and turn.role == "user")
            _hear(files, built, turn)
        answered = turn.role == "assistant"
    _open_answer(files, built)
    return built.prompt()


def _hear(files: FamilyFiles, built: Row, turn: Turn) -> None:
    """Adds what a turn of the system or of a user says."""
    named, parts = files.layout.named, turn.parts
    if files.options.prompt_style == "release":
        parts = [f"\n{parts[0]}", *parts[1:]]
    else:
        built.add(text_ids(files, "\n"))
    for number, part in enumerate(parts):
        built.add(text_ids(files, part))
        if number < len(turn.audios):
            heard = f"audio {turn.first + number}"
            codes = code_ids(files.layout, turn.audios[number].codes, heard)
            built.add([named["begin_of_audio"], *codes, named["end_of_audio"]])


def _open_answer(files: FamilyFiles, built: Row) -> None:
    kind = STREAMING if files.options.speech else ""
    built.add([files.layout.named["<|assistant|>"], *text_ids(files, f"{kind}\n")])


def _answer(files: FamilyFiles, texts: Sequence[str], codes: Sequence[int] | None) -> list[int]:
    return mixed(files, texts, codes, files.options.ratio or RATIO)


def target(files: FamilyFiles, text: str | None, codes: Sequence[int] | None) -> Target:
    """Builds 13 ids of text and 26 codes by turns, and the user's token that ends the answer.

    Raises:
        UserError: there is neither text nor speech, or a code is not in the codebook.
    """
    check_says_something(text, codes)
    ids = [*_answer(files, [text or ""], codes), files.layout.named["<|user|>"]]
    return Target(ids=ids, labels=list(ids))


split = split_one_stream


def sampling(files: FamilyFiles) -> Sampling:
    """Returns the settings of the published demo."""
    return Sampling(temperature=0.2, top_p=0.8, max_new_tokens=2000)


def codec(files: FamilyFiles) -> str:
    """Names the codec: the family's own."""
    return "glm4_voice"
