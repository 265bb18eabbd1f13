"""Step-Audio 2 mini: Qwen2 under its own names, a Whisper-like encoder and an adapter aside."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.data.interleave import RatioError, interleave
from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.families.dialogue import (
    Row,
    check_ends_with_user,
    check_says_something,
    code_ids,
    split_one_stream,
    text_ids,
    turns,
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
    check_order,
    check_table,
    numbered_codes,
    qwen2_tokenizer,
    special_ids,
    token_ids,
)
from wavalign_fast.models.families.weight_table import Shape, WeightTable, same_names
from wavalign_fast.models.prompt_audio.step_audio_2 import StepAudio2Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "step_audio_2"

CODES = "<audio_{}>"
AUDIO = ("<audio_start>", "<audio_end>", "<audio_patch>")
SPEECH = ("<tts_start>", "<tts_end>")
TURNS = ("<|BOT|>", "<|EOT|>")
TEXT_PADDING = "<tts_pad>"
CODES_A_TEXT_ID = 4
"""The makers' server writes a spoken turn so: one id of text, four codes, and padding where one of
them has ended. Source: ``build_tts_interleave_data`` in ``vllm/tokenizers/step_audio_2.py`` of
https://github.com/stepfun-ai/vllm (branch step-audio2-mini) and of vllm-project/vllm#32333."""
SIZES_THAT_DIFFER = ("adapter.linear1.weight", "adapter.linear1.bias", "adapter.linear2.weight")
"""Their inner width is in no configuration."""


def detect(config: Mapping[str, Any], tokens: Collection[str]) -> int:
    """Tells the family by its class, its type, or the parts of its configuration."""
    return evidence(
        config,
        architectures=("StepAudio2ForCausalLM",),
        model_types=("step_audio_2",),
        keys=("audio_encoder_config", "text_config"),
    )


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """Loads Qwen2's tokenizer."""
    return qwen2_tokenizer(directory)


def layout(config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> FamilyLayout:
    """Derives the ids from the names of tokens.

    The last numbered code fills speech up and is no code. Text is below ``<audio_start>``.

    Raises:
        UserError: a token is missing, out of order or beyond the embedding.
    """
    vocab, rows = tokenizer.get_vocab(), field(_text(config), "vocab_size")
    first, size = numbered_codes(vocab, CODES)
    check_order(vocab, AUDIO)
    check_table(vocab, rows)
    tokens = (*AUDIO, *SPEECH, *TURNS)
    named = dict(zip(tokens, token_ids(vocab, tokens), strict=True))
    if size < 2 or named["<audio_start>"] > first:
        raise UserError(
            f"the tokenizer has {size} codes from {first}, and <audio_start> at "
            f"{named['<audio_start>']}; wanted two codes or more behind it"
        )
    control = frozenset(range(named["<audio_start>"], first))
    padding = first + size - 1
    named |= {"padding": padding}
    if TEXT_PADDING in vocab:
        named[TEXT_PADDING] = vocab[TEXT_PADDING]
        control |= {vocab[TEXT_PADDING]}
    return FamilyLayout(
        stream=ModalityLayout(
            vocab_size=rows,
            speech=((first, first + size),),
            boundary=(named["<tts_start>"], named["<tts_end>"]),
            eos=(named["<|EOT|>"],),
        ),
        first_code=first,
        codebook_size=size - 1,
        stop=(named["<|EOT|>"],),
        special=special_ids(tokenizer, vocab, rows) | control | {padding},
        named=named,
    )


def build(config: Mapping[str, Any], dtype: torch.dtype) -> "PreTrainedModel":
    """Builds the language model."""
    text = dict(_text(config))
    # The family's own name of the number of heads of keys and values.
    text.setdefault("num_key_value_heads", text.get("num_attention_groups"))
    return qwen2_model(text, layers=field(text, "num_hidden_layers"), dtype=dtype)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the language model; a converted directory has no other."""
    text: Mapping[str, Any] = config.get("text_config") or config
    return text


def weights(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> WeightTable:
    """The language model has its native names. Encoder and adapter stay aside."""
    if "text_config" not in config:
        return WeightTable(pieces=same_names(shapes), shapes=shapes)
    aside = aside_shapes(lambda: _encoder(config))
    return WeightTable(
        pieces=same_names(shapes),
        shapes=shapes,
        aside=aside | dict.fromkeys(SIZES_THAT_DIFFER),
    )


def _encoder(config: Mapping[str, Any]) -> StepAudio2Encoder:
    return StepAudio2Encoder(field(config, "audio_encoder_config"), inner=1)


def audio_encoder(files: FamilyFiles) -> StepAudio2Encoder:
    """Loads the encoder of prompt audio."""
    tensors = stored_tensors(files.directory, ("encoder.", "adapter."))
    return StepAudio2Encoder.of(tensors, field(files.config, "audio_encoder_config"))


def prompt(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Prompt:
    """Builds the turns and the beginning of the assistant's, every piece tokenised on its own.

    ``options.speech`` asks for a spoken answer, by ``<tts_start>``.

    Raises:
        UserError: the dialogue does not end with a user, or a message or an audio cannot be used.
    """
    check_ends_with_user(messages)
    named, built = files.layout.named, Row()
    for turn in turns(messages, audios):
        _open_turn(files, built, "human" if turn.role == "user" else turn.role)
        if turn.role == "assistant":
            begin, end = ([named[name]] if turn.audios else [] for name in SPEECH)
            built.add(begin)
            built.add([*_answer(files, turn.parts, turn.codes), *end], scored=True)
            built.add([named["<|EOT|>"]], scored=True)
        else:
            for number, part in enumerate(turn.parts):
                built.add(text_ids(files, part))
                if number < len(turn.audios):
                    _hear(files, built, turn.audios[number], turn.first + number)
            built.add([named["<|EOT|>"]])
    _open_turn(files, built, "assistant")
    if files.options.speech:
        built.add([named["<tts_start>"]])
    return built.prompt()


def _open_turn(files: FamilyFiles, built: Row, role: str) -> None:
    built.add([files.layout.named["<|BOT|>"], *text_ids(files, f"{role}\n")])


def _hear(files: FamilyFiles, built: Row, audio: Audio, number: int) -> None:
    """Adds an audio, each of its pieces between its own boundaries."""
    start, end, patch = (files.layout.named[name] for name in AUDIO)
    if not audio.positions or min(audio.positions) < 1:
        raise UserError(
            f"audio {number} has the positions {tuple(audio.positions)}, wanted how many vectors "
            "the encoder makes of each of its pieces"
        )
    offset = 0
    for count in audio.positions:
        built.add([start])
        built.add_vectors(number, count, patch, offset)
        built.add([end])
        offset += count


def _answer(files: FamilyFiles, texts: Sequence[str], codes: Sequence[int] | None) -> list[int]:
    text = [index for part in texts for index in text_ids(files, part)]
    if codes is None:
        return text
    speech = code_ids(files.layout, codes, "the answer's audio")
    if not text:
        return speech
    if files.options.ratio is None:
        return _padded_turns(files.layout, text, speech)
    return interleave(text, speech, files.options.ratio)


def _padded_turns(layout: FamilyLayout, text: list[int], speech: list[int]) -> list[int]:
    """Puts text and codes by turns as the makers' server does."""
    if TEXT_PADDING not in layout.named:
        raise RatioError(
            f"the tokenizer has no {TEXT_PADDING}, which the turns of Step-Audio 2 need: give the "
            "ratio of text and codes, such as the one that the model's own answers show"
        )
    count = max(len(text), -(-len(speech) // CODES_A_TEXT_ID))
    text = text + [layout.named[TEXT_PADDING]] * (count - len(text))
    # Codes are filled up to one a turn, not to four: so has the server.
    speech = speech + [layout.named["padding"]] * (count - len(speech))
    turns = zip(text, range(0, count * CODES_A_TEXT_ID, CODES_A_TEXT_ID), strict=True)
    return [i for word, at in turns for i in (word, *speech[at : at + CODES_A_TEXT_ID])]


def target(files: FamilyFiles, text: str | None, codes: Sequence[int] | None) -> Target:
    """Builds text and codes by turns, ``<tts_end>`` if there is speech, and the end of the turn.

    Raises:
        UserError: there is neither text nor speech, a code is not in the codebook, or text and
            speech have no ratio, and the tokenizer no padding.
    """
    check_says_something(text, codes)
    named, spoken = files.layout.named, files.options.speech
    begin = [named["<tts_start>"]] if codes is not None and not spoken else []
    end = [named["<tts_end>"]] if codes is not None or spoken else []
    ids = [*begin, *_answer(files, [text or ""], codes), *end, named["<|EOT|>"]]
    return Target(ids=ids, labels=list(ids))


split = split_one_stream


def sampling(files: FamilyFiles) -> Sampling:
    """Returns ``generation_config.json``'s settings; those that it lacks are the chat examples'."""
    given = files.generation
    return Sampling(
        temperature=given.get("temperature", 0.7),
        top_k=given.get("top_k", 0),
        top_p=given.get("top_p", 0.9),
        repetition_penalty=given.get("repetition_penalty", 1.05),
    )


def codec(files: FamilyFiles) -> str:
    """Names the codec: the family's own, 25 codes a second."""
    return "step_audio_2"
