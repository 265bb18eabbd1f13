"""Covo-Audio-Chat: Qwen2 behind ``llm.``, Whisper's encoder and an adapter aside.

Its codes have no tokens: they are the ids behind the tokenizer.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.families.dialogue import (
    Row,
    check_ends_with_user,
    check_says_something,
    mixed,
    split_one_stream,
    text_ids,
    turns,
    vectors_of,
)
from wavalign_fast.models.families.encoders import aside_shapes, stored_tensors
from wavalign_fast.models.families.interface import (
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
    check_table,
    qwen2_tokenizer,
    special_ids,
    token_ids,
)
from wavalign_fast.models.families.weight_table import Shape, WeightTable, same_names
from wavalign_fast.models.prompt_audio.whisper import CovoAudioEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "covo_audio"

RATIO = (5, 15)
"""Ids of text and codes by turns, which the published system text asks for."""
AUDIO = ("<|begofcAUDIO|>", "<|endofcAUDIO|>", "<|cAUDIO|>")
TURNS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def detect(config: Mapping[str, Any], tokens: Collection[str]) -> int:
    """Tells the family by its class, its type, or the parts of its configuration."""
    return evidence(
        config,
        architectures=("CovoAudioForCausalLM",),
        model_types=("covo_audio",),
        keys=("llm_config", "encoder_config"),
    )


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """Loads Qwen2's tokenizer."""
    return qwen2_tokenizer(directory)


def layout(config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> FamilyLayout:
    """Derives the ids from the names of tokens; all ids behind the tokenizer are codes.

    Raises:
        UserError: a token is missing, or the codes do not begin where the tokenizer ends.
    """
    vocab, rows = tokenizer.get_vocab(), field(_text(config), "vocab_size")
    first = config.get("audio_token_index", len(vocab))
    check_table(vocab, rows)
    if first != len(vocab) or max(vocab.values()) != first - 1:
        raise UserError(
            f"config.json: audio_token_index is {first}, wanted {max(vocab.values()) + 1}, the "
            f"first id behind the tokenizer, which has {len(vocab)} tokens"
        )
    if first >= rows:
        raise UserError(f"no id is left for codes: they begin at {first}, vocab_size is {rows}")
    named = dict(zip((*AUDIO, *TURNS), token_ids(vocab, (*AUDIO, *TURNS)), strict=True))
    stop = (named["<|im_end|>"], named["<|endoftext|>"])
    return FamilyLayout(
        stream=ModalityLayout(vocab_size=rows, speech=((first, rows),), eos=stop),
        first_code=first,
        codebook_size=rows - first,
        stop=stop,
        special=special_ids(tokenizer, vocab, first),
        named=named,
    )


def build(config: Mapping[str, Any], dtype: torch.dtype) -> "PreTrainedModel":
    """Builds the language model."""
    text = _text(config)
    return qwen2_model(text, layers=field(text, "num_hidden_layers"), dtype=dtype)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the language model; a converted directory has no other."""
    text: Mapping[str, Any] = config.get("llm_config") or config
    return text


def weights(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> WeightTable:
    """The language model is behind ``llm.``. Encoder and adapter stay aside."""
    if "llm_config" not in config:
        return WeightTable(pieces=same_names(shapes), shapes=shapes)
    aside = aside_shapes(lambda: CovoAudioEncoder(config, inner=1))
    inner = [name for name in aside if name.startswith("audio_adapter.") and "linear" in name]
    any_width = [name for name in inner if not name.endswith("linear2.bias")]
    return WeightTable(
        pieces=same_names(shapes, "llm."),
        shapes=shapes,
        aside=aside | dict.fromkeys(any_width),  # the inner width is in no configuration
    )


def audio_encoder(files: FamilyFiles) -> CovoAudioEncoder:
    """Loads the encoder of prompt audio."""
    tensors = stored_tensors(files.directory, ("encoder.", "audio_adapter."))
    return CovoAudioEncoder.of(tensors, files.config)


def prompt(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Prompt:
    """Builds the turns and the beginning of the assistant's, every piece tokenised on its own.

    Raises:
        UserError: the dialogue does not end with a user, or a message or an audio cannot be used.
    """
    check_ends_with_user(messages)
    end, built = files.layout.named["<|im_end|>"], Row()
    for turn in turns(messages, audios):
        _open_turn(files, built, turn.role)
        if turn.role == "assistant":
            built.add([*_answer(files, turn.parts, turn.codes), end], scored=True)
        else:
            for number, part in enumerate(turn.parts):
                built.add(text_ids(files, part))
                if number < len(turn.audios):
                    _hear(files, built, turn.audios[number], turn.first + number)
            built.add([end])
        built.add(text_ids(files, "\n"))
    _open_turn(files, built, "assistant")
    return built.prompt()


def _open_turn(files: FamilyFiles, built: Row, role: str) -> None:
    built.add([files.layout.named["<|im_start|>"], *text_ids(files, f"{role}\n")])


def _hear(files: FamilyFiles, built: Row, audio: Audio, number: int) -> None:
    begin, end, place = (files.layout.named[name] for name in AUDIO)
    count = vectors_of(audio, number)
    built.add([begin])
    built.add_vectors(number, count, place)
    built.add([end])


def _answer(files: FamilyFiles, texts: Sequence[str], codes: Sequence[int] | None) -> list[int]:
    return mixed(files, texts, codes, files.options.ratio or RATIO)


def target(files: FamilyFiles, text: str | None, codes: Sequence[int] | None) -> Target:
    """Builds 5 ids of text and 15 codes by turns, and the end of the turn.

    Raises:
        UserError: there is neither text nor speech, or a code is not in the codebook.
    """
    check_says_something(text, codes)
    ids = [*_answer(files, [text or ""], codes), files.layout.named["<|im_end|>"]]
    return Target(ids=ids, labels=list(ids))


split = split_one_stream


def sampling(files: FamilyFiles) -> Sampling:
    """Returns the settings of ``generation_config.json``, and the family's penalty.

    The family penalises ids of the last 8 positions once more, which is left out.
    """
    given = files.generation
    return Sampling(
        temperature=given.get("temperature", 1.0),
        top_k=given.get("top_k", 0),
        top_p=given.get("top_p", 1.0),
        repetition_penalty=given.get("repetition_penalty", 1.05),
    )


def codec(files: FamilyFiles) -> str:
    """Names the codec, which is not published: bring it by one of the adapters."""
    return "covo_audio"
