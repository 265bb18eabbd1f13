"""Kimi-Audio: two parallel streams, two heads, and Whisper's features beside the codes."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.families.dialogue import (
    check_dialogue,
    check_ends_with_user,
    code_ids,
    text_ids,
)
from wavalign_fast.models.families.encoders import aside_shapes, first_stored, stored_tensors
from wavalign_fast.models.families.interface import (
    AUDIO_TAG,
    IGNORE,
    Answer,
    Audio,
    AudioSpan,
    FamilyFiles,
    FamilyLayout,
    Message,
    Prompt,
    Sampling,
    Target,
    evidence,
)
from wavalign_fast.models.families.kimi_streams import DELAY
from wavalign_fast.models.families.native import field, qwen2_config
from wavalign_fast.models.families.registry import KIMI_AUDIO_TYPE
from wavalign_fast.models.families.tokens import (
    check_table,
    special_ids,
    tiktoken_tokenizer,
    token_ids,
)
from wavalign_fast.models.families.weight_table import Piece, Shape, WeightTable
from wavalign_fast.models.json_files import read_config
from wavalign_fast.models.loading import cast_weights
from wavalign_fast.models.prompt_audio.whisper import KimiAdaptor, KimiAudioEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "kimi_audio"

WHISPER = "whisper-large-v3"
TUNED_WHISPER = "whisper_model.speech_encoder."
ADAPTOR = "model.vq_adaptor."
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's: the ranks are Qwen's, whose tokens hold single digits only."""

SPECIAL = {
    "msg_end": ("<|im_msg_end|>", 2),
    "media_begin": ("<|im_media_begin|>", 18),
    "media_end": ("<|im_media_end|>", 20),
    "text_blank": ("<|im_kimia_text_blank|>", 23),
    "text_eos": ("<|im_kimia_text_eos|>", 24),
    "user": ("<|im_kimia_user_msg_start|>", 27),
    "assistant": ("<|im_kimia_assistant_msg_start|>", 28),
    "ct": ("<|im_kimia_speech_ct_id|>", 32),
    "ctd": ("<|im_kimia_speech_ctd_id|>", 33),
}
"""Special tokens and their places behind ``[BOS]``, by our names."""
OTHER_SPECIAL = {
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_user_msg_start|>": 3,
    "<|im_assistant_msg_start|>": 4,
    "[EOT]": 9,
}
"""Those of which nothing here makes use; the places between are reserved."""

_NAMES = {
    "lower.embed_tokens.weight": "model.embed_tokens.weight",
    "upper.norm.weight": "model.norm.weight",
    "mimo.norm.weight": "model.mimo_norm.weight",
    "lm_head.weight": "lm_head.weight",
    "mimo_output.weight": "mimo_output.weight",
}


def detect(config: Mapping[str, Any], tokens: Collection[str]) -> int:
    """Tells the family by its class, its type, or the offset of its codes."""
    return evidence(
        config,
        architectures=("MoonshotKimiaForCausalLM",),
        model_types=("kimi_audio",),
        keys=("kimia_token_offset",),
    )


def load_tokenizer(directory: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """Builds the tokenizer from ``tiktoken.model``.

    The published class names its special tokens itself: they fill the ids from the ranks up to the
    codes, whether ``tokenizer_config.json`` lists them or not.
    """
    end: int = field(config, "kimia_token_offset")
    return tiktoken_tokenizer(
        directory / "tiktoken.model",
        pattern=PATTERN,
        unlisted=lambda first: _special_names(end - first),
    )


def _special_names(count: int) -> list[str]:
    named = {place: name for name, place in (*SPECIAL.values(), *OTHER_SPECIAL.items())}
    reserved = itertools.count()
    return [
        named.get(place) or f"<|reserved_token_{next(reserved)}|>" for place in range(max(count, 0))
    ]


def layout(config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> FamilyLayout:
    """Derives the ids from the names of tokens; the codes begin at ``kimia_token_offset``.

    The first stream is the text, whose ids are all text. The second is the audio, whose ids are all
    speech, the end of the answer too.

    Raises:
        UserError: a token is missing or in another place, or the codes begin inside the tokenizer.
    """
    vocab, rows = tokenizer.get_vocab(), field(config, "vocab_size")
    first = field(config, "kimia_token_offset")
    check_table(vocab, rows)
    (begin,) = token_ids(vocab, ["[BOS]"])
    named = {}
    for key, (token, place) in SPECIAL.items():
        (named[key],) = token_ids(vocab, [token])
        if named[key] != begin + place:
            raise UserError(
                f"the tokenizer has {token} at id {named[key]}, wanted {begin + place}, {place} "
                "behind [BOS]"
            )
    if not max(vocab.values()) < first < rows:
        raise UserError(
            f"config.json: kimia_token_offset is {first}, wanted one behind the tokenizer's last "
            f"id {max(vocab.values())} and below vocab_size {rows}"
        )
    for key in ("media_begin", "media_end"):
        if config.get(f"kimia_{key}", named[key]) != named[key]:
            raise UserError(
                f"config.json: kimia_{key} is {config[f'kimia_{key}']}, wanted {named[key]}, the "
                "tokenizer's"
            )
    stop = (named["media_end"], named["msg_end"])
    return FamilyLayout(
        stream=ModalityLayout(vocab_size=rows, speech=(), eos=(named["text_eos"],)),
        second=ModalityLayout(vocab_size=rows, speech=((0, rows),), eos=stop, eos_as="speech"),
        first_code=first,
        codebook_size=rows - first,
        stop=stop,
        special=special_ids(tokenizer, vocab, first),
        named=named,
    )


def build(config: Mapping[str, Any], dtype: torch.dtype) -> "PreTrainedModel":
    """Builds the two-stream model."""
    from wavalign_fast.models.families.kimi_model import KimiAudioConfig, KimiAudioModel

    text = qwen2_config(config, layers=field(config, "num_hidden_layers")).to_dict()
    sizes = {
        "shared_layers": _shared_layers(config),
        "mimo_layers": field(config, "kimia_mimo_layers"),
    }
    model = KimiAudioModel(KimiAudioConfig(**{**text, **sizes, "model_type": KIMI_AUDIO_TYPE}))
    cast_weights(model, dtype)
    return model.eval()


def _shared_layers(config: Mapping[str, Any]) -> int:
    """The audio stream leaves the text behind the layer with this number, counted from 0."""
    last: int = field(config, "kimia_mimo_transformer_from_layer_index")
    return last + 1


def weights(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> WeightTable:
    """Names the stacks' layers as stored. The adaptor and a fine-tuned Whisper stay aside."""
    shared = _shared_layers(config)
    adaptor = aside_shapes(lambda: _adaptor(config))
    return WeightTable(
        pieces={name: Piece(_stored(name, shared)) for name in shapes},
        shapes=shapes,
        aside={f"{ADAPTOR}{name}": shape for name, shape in adaptor.items()},
        aside_prefixes=("whisper_model.",),
    )


def _adaptor(config: Mapping[str, Any]) -> KimiAdaptor:
    inputs = field(config, "kimia_adaptor_input_dim")
    return KimiAdaptor(inputs, field(config, "hidden_size"), field(config, "rms_norm_eps"))


def _stored(name: str, shared: int) -> str:
    if name in _NAMES:
        return _NAMES[name]
    stack, _, number, rest = name.split(".", 3)
    kind = "mimo_layers" if stack == "mimo" else "layers"
    return f"model.{kind}.{int(number) + (shared if stack == 'upper' else 0)}.{rest}"


def audio_encoder(files: FamilyFiles) -> KimiAudioEncoder:
    """Loads the encoder of prompt audio: the adaptor, and Whisper's encoder.

    The makers' fine-tuning keeps Whisper among the model's weights, and their export writes it into
    the folder as a bare ``WhisperModel`` (``export_model`` of their ``finetune_codes/model.py``).

    Raises:
        UserError: the folder ``whisper-large-v3`` is missing, or a tensor does not fit.
    """
    folder = files.directory / WHISPER
    whisper = first_stored(
        [(files.directory, TUNED_WHISPER), (folder, "encoder."), (folder, "model.encoder.")]
    )
    adaptor = stored_tensors(files.directory, (ADAPTOR,))
    return KimiAudioEncoder.of(adaptor, files.config, whisper, read_config(folder))


class _Streams:
    """A prompt as it is put together, position by position."""

    def __init__(self, blank: int) -> None:
        self.blank = blank
        self.text: list[int] = []
        self.audio: list[int] = []
        self.text_labels: list[int] = []
        self.audio_labels: list[int] = []
        self.spans: list[AudioSpan] = []

    def add(
        self, *, text: Sequence[int] = (), audio: Sequence[int] = (), scored: bool = False
    ) -> None:
        """Appends ids of one stream or of both; blanks stand where the other one has none."""
        length = max(len(text), len(audio))
        for ids, stream, labels in (
            (text, self.text, self.text_labels),
            (audio, self.audio, self.audio_labels),
        ):
            stream += [*ids, *[self.blank] * (length - len(ids))]
            own = list(ids) if scored else [IGNORE] * len(ids)
            labels += [*own, *[IGNORE] * (length - len(ids))]

    def append(self, answer: Target) -> None:
        """Appends an answer in both streams, with its labels."""
        assert answer.second_ids is not None and answer.second_labels is not None
        self.text += answer.ids
        self.audio += answer.second_ids
        self.text_labels += answer.labels
        self.audio_labels += answer.second_labels


def prompt(files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]) -> Prompt:
    """Builds both streams of the turns, and the beginning of the assistant's.

    Messages of one role after another are one turn. The family has no system: what a system says is
    text of the user. An answer of history with text and speech is parallel, as in training.
    ``options.speech`` asks for a spoken answer where the last turn ends with audio.

    Raises:
        UserError: the dialogue does not end with a user, or a message or an audio cannot be used.
    """
    check_ends_with_user(messages)
    check_dialogue(messages, audios)
    named, heard = files.layout.named, 0
    built = _Streams(named["text_blank"])
    roles = ["user" if m["role"] == "system" else m["role"] for m in messages]
    for number, (role, message) in enumerate(zip(roles, messages, strict=True)):
        if number == 0 or roles[number - 1] != role:
            built.add(audio=[named[role]])
        own = range(heard, heard + message["content"].count(AUDIO_TAG))
        heard = own.stop
        parts = message["content"].split(AUDIO_TAG)
        if role == "assistant":
            _answered(files, built, parts, [audios[k] for k in own])
        else:
            for place, part in enumerate(parts):
                built.add(text=text_ids(files, part))
                if place < len(own):
                    _hear(files, built, audios[own[place]], own[place])
        if [*roles, None][number + 1] != role:
            if role == "user" and own and not parts[-1]:
                built.add(audio=[named["ctd" if files.options.speech else "ct"]])
            built.add(audio=[named["msg_end"]])
    built.add(audio=[named["assistant"]])
    return Prompt(
        ids=built.text,
        labels=built.text_labels,
        spans=tuple(built.spans),
        second_ids=built.audio,
        second_labels=built.audio_labels,
    )


def _hear(files: FamilyFiles, built: _Streams, audio: Audio, number: int) -> None:
    """Adds an audio of a user: its codes, each with a vector of the encoder."""
    named = files.layout.named
    codes = code_ids(files.layout, audio.codes, f"audio {number}")
    if len(audio.positions) != 1 or audio.positions[0] < len(codes):
        raise UserError(
            f"audio {number} has the positions {tuple(audio.positions)} and {len(codes)} codes, "
            "wanted one number: how many vectors the encoder makes of it, no fewer than the codes"
        )
    built.add(audio=[named["media_begin"]])
    span = AudioSpan(audio=number, first=len(built.audio), count=len(codes))
    built.spans.append(span)  # what the encoder makes beyond the codes is left out
    built.add(audio=[*codes, named["media_end"]])


def _answered(
    files: FamilyFiles, built: _Streams, parts: Sequence[str], own: Sequence[Audio]
) -> None:
    """Adds an answer of history: text, speech between media tokens, or both in parallel."""
    named, text = files.layout.named, "".join(parts)
    if len(own) > 1:
        raise UserError(f"an assistant's turn has {len(own)} audios, wanted at most one")
    if not own:
        built.add(text=text_ids(files, text), scored=True)
    elif text:
        built.append(_spoken(files, text_ids(files, text), own[0].codes))
    else:
        codes = code_ids(files.layout, own[0].codes, "the answer's audio")
        built.add(audio=[named["media_begin"]])
        built.add(audio=[*codes, named["media_end"]], scored=True)


def target(files: FamilyFiles, text: str | None, codes: Sequence[int] | None) -> Target:
    """Builds both streams: text and ``text_eos``; six blanks, the codes and ``media_end``.

    Without codes the audio stream is blank. Blanks are no labels.

    Raises:
        UserError: there is neither text nor speech, a code is not in the codebook, or the text is
            longer than the speech, whose end ends the answer.
    """
    if not text and codes is None:
        raise UserError("the answer has neither text nor codes, wanted one of them")
    return _spoken(files, text_ids(files, text or ""), codes)


def _spoken(files: FamilyFiles, text: Sequence[int], codes: Sequence[int] | None) -> Target:
    named = files.layout.named
    blank = named["text_blank"]
    said = [*text, named["text_eos"]]
    if codes is None:
        blanks = [IGNORE] * len(said)
        silence = [blank] * len(said)
        return Target(ids=said, labels=[*said], second_ids=silence, second_labels=blanks)
    speech = [*code_ids(files.layout, codes, "the answer's audio"), named["media_end"]]
    length = DELAY + len(speech)
    if len(said) > length:
        raise UserError(
            f"the answer has {len(text)} ids of text for {len(codes)} codes, wanted at most "
            f"{length - 1}: the end of the speech ends the answer"
        )
    left = length - len(said)
    return Target(
        ids=[*said, *[blank] * left],
        labels=[*said, *[IGNORE] * left],
        second_ids=[*[blank] * DELAY, *speech],
        second_labels=[*[IGNORE] * DELAY, *speech],
    )


def split(files: FamilyFiles, ids: Sequence[int], second: Sequence[int] = ()) -> Answer:
    """Takes text out of the first stream, up to ``text_eos``, and codes out of the second.

    An answer ends with its speech; one without any speech ends with its text.
    """
    layout = files.layout
    stops = [place for place, index in enumerate(second) if index in layout.stop]
    own = second[: stops[0]] if stops else second
    text_end = layout.named["text_eos"]
    text = ids[: ids.index(text_end)] if text_end in ids else ids
    codes = [index - layout.first_code for index in own if index >= layout.first_code]
    return Answer(
        text=[i for i in text if i not in layout.special and i < layout.first_code],
        codes=codes,
        ended=bool(stops) or (not codes and text_end in ids),
    )


def sampling(files: FamilyFiles) -> Sampling:
    """Returns the published code's defaults; its limit of 1500 positions is 120 seconds."""
    return Sampling(temperature=0.0, top_k=5, max_new_tokens=1500)


def codec(files: FamilyFiles) -> str:
    """Names the codec: GLM-4-Voice's tokenizer, and a decoder of the family's own."""
    return "kimi_audio"
