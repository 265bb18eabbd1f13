"""VITA-Audio: Balance and Boost with their MTP layers, and Plus with its SenseVoice encoder.

The native model is the body, ``Qwen2ForCausalLM``. The MTP layers (``vita_mtp.py``) and the encoder
with its projector (``prompt_audio``) stay aside.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.families.dialogue import (
    Row,
    check_dialogue,
    check_ends_with_user,
    check_says_something,
    code_ids,
    mixed,
    split_one_stream,
    text_ids,
    turns,
    vectors_of,
)
from wavalign_fast.models.families.encoders import stored_tensors
from wavalign_fast.models.families.interface import (
    AUDIO_TAG,
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
from wavalign_fast.models.families.native import field, qwen2_model
from wavalign_fast.models.families.tokens import (
    NUMBERED_CODES,
    check_order,
    check_table,
    numbered_codes,
    qwen2_tokenizer,
    special_ids,
    token_ids,
)
from wavalign_fast.models.families.weight_table import Shape, WeightTable, same_names
from wavalign_fast.models.prompt_audio.vita_audio_plus import VitaAudioPlusEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "vita_audio"

PLUS = "Qwen2MTPSenseVoiceForCausalLM"
CONTEXT = "<|context_of_audio|>"
ENCODER = "model.audio_model.model."
PROJECTOR = "model.audio_projection."
RATIO = (1, 10, 4, 10)
"""Of Boost and Plus; Balance names its own by ``mtp_inference_mode``."""

_PAIRS = ("image", "video", "patch")
ADDED = (
    *(f"<|{place}_of_{kind}|>" for kind in _PAIRS for place in ("begin", "end", "context")),
    *("<|begin_of_audio|>", "<|end_of_audio|>", CONTEXT),
    *(f"<|{place}_of_{kind}|>" for kind in ("quad", "ref", "box") for place in ("begin", "end")),
    *("<|image|>", "<|video|>", "<|audio|>", NUMBERED_CODES.format(0)),
)
"""Tokens that follow Qwen2.5's own, in their order; ``CONTEXT`` is in Plus only."""


def detect(config: Mapping[str, Any], tokens: Collection[str]) -> int:
    """Tells the family by its classes; a converted one, plain Qwen2, by its codes."""
    sure = evidence(
        config,
        architectures=("Qwen2MTPForCausalLM", PLUS),
        model_types=("qwen2_mtp", "qwen2_mtp_sensevoice"),
        # Other model types have MTP layers too.
        keys=("num_nextn_predict_layers",) if config.get("model_type") in (None, "qwen2") else (),
    )
    converted = config.get("model_type") == "qwen2" and NUMBERED_CODES.format(0) in tokens
    return sure or (EVIDENCE["tokens"] if converted else 0)


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """Loads Qwen2's tokenizer."""
    return qwen2_tokenizer(directory)


def layout(config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> FamilyLayout:
    """Derives the ids from the names of tokens; Plus is told by its context token.

    Raises:
        UserError: a token is missing, out of order or beyond the embedding.
    """
    vocab, rows = tokenizer.get_vocab(), field(config, "vocab_size")
    if is_plus(config):
        token_ids(vocab, [CONTEXT])
    check_order(vocab, [name for name in ADDED if name != CONTEXT or CONTEXT in vocab])
    first, size = numbered_codes(vocab)
    check_table(vocab, rows)
    begin, end = token_ids(vocab, ("<|begin_of_audio|>", "<|end_of_audio|>"))
    start, stop, pad = token_ids(vocab, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    named = {"begin_of_audio": begin, "end_of_audio": end, "im_start": start, "im_end": stop}
    return FamilyLayout(
        stream=ModalityLayout(
            vocab_size=rows,
            speech=((first, first + size),),
            boundary=(begin, end),
            eos=(stop, pad),
        ),
        first_code=first,
        codebook_size=size,
        stop=(stop, pad),
        special=special_ids(tokenizer, vocab, rows),
        named=named | ({"context_of_audio": vocab[CONTEXT]} if CONTEXT in vocab else {}),
    )


def is_plus(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint hears users by a continuous encoder."""
    named = config.get("architectures") or [None]
    return named[0] == PLUS or config.get("model_type") == "qwen2_mtp_sensevoice"


def mtp_layers(config: Mapping[str, Any]) -> int:
    """Returns the number of MTP layers, which the configuration counts among its layers."""
    return config.get("num_nextn_predict_layers") or 0


def body_layers(config: Mapping[str, Any]) -> int:
    """Returns the number of layers of the body."""
    layers: int = field(config, "num_hidden_layers") - mtp_layers(config)
    if layers < 1:
        raise UserError(
            f"config.json: num_hidden_layers {config['num_hidden_layers']} with "
            f"{mtp_layers(config)} MTP layers among them, wanted more"
        )
    return layers


def build(config: Mapping[str, Any], dtype: torch.dtype) -> "PreTrainedModel":
    """Builds the body."""
    return qwen2_model(config, layers=body_layers(config), dtype=dtype)


def weights(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> WeightTable:
    """The body has its native names. MTP layers, encoder and projector stay aside."""
    body, hidden = body_layers(config), field(config, "hidden_size")
    one_layer = {
        name.removeprefix("model.layers.0."): shape
        for name, shape in shapes.items()
        if name.startswith("model.layers.0.")
    }
    aside: dict[str, Shape | None] = {}
    for k in range(mtp_layers(config)):
        aside |= {f"model.layers.{body + k}.{name}": shape for name, shape in one_layer.items()}
        aside[f"mtp_projs.{k}.weight"] = (hidden, 2 * hidden)
        aside[f"mtp_embed_norms.{k}.weight"] = (hidden,)
        aside[f"mtp_hidden_norms.{k}.weight"] = (hidden,)
    if is_plus(config):
        aside[f"{PROJECTOR}mlp.2.weight"] = (hidden, hidden)
        aside |= dict.fromkeys(
            f"{PROJECTOR}{name}"
            for name in ("mlp.0.weight", "pre_proj_layernorm.weight", "pre_proj_layernorm.bias")
        )
        aside[f"{ENCODER}embed.weight"] = None
    return WeightTable(
        pieces=same_names(shapes),
        shapes=shapes,
        aside=aside,
        aside_prefixes=(ENCODER,) if is_plus(config) else (),
    )


def audio_encoder(files: FamilyFiles) -> VitaAudioPlusEncoder | None:
    """Loads the encoder of prompt audio, which only Plus has."""
    if not is_plus(files.config):
        return None
    tensors = stored_tensors(files.directory, (ENCODER, PROJECTOR))
    return VitaAudioPlusEncoder.of(tensors, files.config, files.directory)


def prompt(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Prompt:
    """Builds the turns and the beginning of the assistant's.

    In the style "row" every piece is tokenised on its own and answers of history are interleaved.
    In the style "release" text is tokenised across pieces, and answers of history are not
    interleaved.

    Raises:
        UserError: the dialogue does not end with a user, or a message or an audio cannot be used.
    """
    check_ends_with_user(messages)
    if files.options.prompt_style == "release":
        return _release_prompt(files, messages, audios)
    built = _turns(files, messages, audios)
    _open_turn(files, built, "assistant")
    return built.prompt()


def row(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Prompt:
    """Builds a whole dialogue; the labels are all its answers.

    Raises:
        UserError: a message or an audio cannot be used.
    """
    return _turns(files, messages, audios).prompt()


def target(files: FamilyFiles, text: str | None, codes: Sequence[int] | None) -> Target:
    """Builds ``text``, a new line and the speech, interleaved; the end of the turn is scored too.

    Raises:
        UserError: there is neither text nor speech, or a code is not in the codebook.
    """
    check_says_something(text, codes)
    content = f"{text}\n" if text and codes is not None else text or ""
    ids = _answer(files, [content], codes)
    return Target(ids=ids, labels=list(ids))


split = split_one_stream


def sampling(files: FamilyFiles) -> Sampling:
    """Returns the settings of ``generation_config.json``; those that it lacks are Qwen2.5's."""
    given = files.generation
    return Sampling(
        temperature=given.get("temperature", 0.7),
        top_k=given.get("top_k", 20),
        top_p=given.get("top_p", 0.8),
        repetition_penalty=given.get("repetition_penalty", 1.05),
    )


def codec(files: FamilyFiles) -> str:
    """Names GLM-4-Voice's codec, which made the codes."""
    return "glm4_voice"


def ratio(files: FamilyFiles) -> tuple[int, ...]:
    """Returns the sizes of text and speech chunks: the user's, the checkpoint's, or ``RATIO``."""
    if files.options.ratio is not None:
        return files.options.ratio
    mode = files.generation.get("mtp_inference_mode") or ()
    # A mode with MTP steps is the pattern of the answers; [8192, 0] only turns MTP off.
    return tuple(mode) if mode and min(mode[1::2]) > 2 else RATIO


def _turns(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Row:
    built = Row()
    for turn in turns(messages, audios):
        _open_turn(files, built, turn.role)
        if turn.role == "assistant":
            built.add(_answer(files, turn.parts, turn.codes), scored=True)
            continue
        for number, part in enumerate(turn.parts):
            built.add(text_ids(files, part))
            if number < len(turn.audios):
                _hear(files, built, turn.audios[number], turn.first + number, coded=False)
        built.add([files.layout.named["im_end"], *_new_line(files)])
    return built


def _open_turn(files: FamilyFiles, built: Row, role: str) -> None:
    start = [files.layout.named["im_start"], *text_ids(files, role), *_new_line(files)]
    built.add(start)


def _new_line(files: FamilyFiles) -> list[int]:
    return text_ids(files, "\n")


def _answer(files: FamilyFiles, texts: Sequence[str], codes: Sequence[int] | None) -> list[int]:
    """Returns the ids of an answer with the end of its turn."""
    named = files.layout.named
    begin, end = named["begin_of_audio"], named["end_of_audio"]
    said = mixed(files, texts, codes, ratio(files), begin=begin, end=end)
    return [*said, named["im_end"], *_new_line(files)]


def _hear(files: FamilyFiles, built: Row, audio: Audio, number: int, *, coded: bool) -> None:
    """Adds an audio that is heard: codes, in Plus vectors of the encoder unless it is ``coded``."""
    named = files.layout.named
    built.add([named["begin_of_audio"]])
    if coded or "context_of_audio" not in named:
        built.add(code_ids(files.layout, audio.codes, f"audio {number}"))
    else:
        built.add_vectors(number, vectors_of(audio, number), named["context_of_audio"])
    built.add([named["end_of_audio"]])


def _release_prompt(
    files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]
) -> Prompt:
    check_dialogue(messages, audios)
    for message in messages:
        for part in message["content"].split(AUDIO_TAG):
            text_ids(files, part)  # refuses tokens that are no text
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    parts = "".join([*turns, "<|im_start|>assistant\n"]).split(AUDIO_TAG)
    whose = [m["role"] for m in messages for _ in range(m["content"].count(AUDIO_TAG))]
    built = Row()
    for number, part in enumerate(parts):
        built.add(files.tokenizer(part, add_special_tokens=False)["input_ids"])
        if number < len(audios):
            _hear(files, built, audios[number], number, coded=whose[number] == "assistant")
    return built.prompt()
