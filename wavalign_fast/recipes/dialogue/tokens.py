"""The ids of a model directory: its tokenizer, and which ids are speech, boundaries, ends."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavalign_fast.errors import (
    UserError,
    described,
    did_you_mean,
    one_line,
    shown,
    user_input,
)
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.recipes.dialogue.options import NO_TEMPLATE, TOKENIZER, Options

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
BOUNDARIES = ("<|begin_of_audio|>", "<|end_of_audio|>")
NUMBER_0 = re.compile(r"<\D*0\D*>")
"""The form of a speech token of number 0."""
UNLIMITED = 1 << 40
"""Positions of a model whose config names no limit."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Turns text into ids and back, as the model directory wants it."""

    tokenizer: Any
    """The tokenizer of transformers, or ``None`` if the directory has none."""
    template: str | None
    """A Jinja chat template, or ``None`` where prompts are used as they are."""
    layout: ModalityLayout
    end_id: int
    """The id that is put at the end of demonstrated answers."""
    pad_id: int
    special: frozenset[int]
    """Special ids that are neither speech nor boundaries of it."""
    positions: int
    """Maximum length of prompt and answer together."""

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset(self.layout.eos)

    def speech(self, ids: Iterable[int]) -> list[int]:
        """Returns the ids in the ranges of speech, in order, without boundary and end ids."""
        outside = {*self.layout.boundary, *self.layout.eos}
        ranges = self.layout.speech
        return [
            token
            for token in ids
            if token not in outside and any(first <= token < end for first, end in ranges)
        ]

    def text(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, without speech and special tokens; empty without a tokenizer."""
        if self.tokenizer is None:
            return ""
        ids = list(ids)
        left_out = {*self.speech(ids), *self.layout.boundary, *self.special, *self.ends}
        return str(self.tokenizer.decode([token for token in ids if token not in left_out]))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, which may name special tokens, without adding any."""
        if self.tokenizer is None:
            raise ValueError("the model directory has no tokenizer; wanted ids instead of text")
        return [int(token) for token in self.tokenizer.encode(text, add_special_tokens=False)]

    def encode_words(self, name: str, text: str) -> list[int]:
        """Returns the ids of a text that may have speech tokens but no other special token."""
        ids = self.encode(text)
        for token in ids:
            if token in self.special or token in self.ends:
                seen = self.tokenizer.convert_ids_to_tokens(token)
                raise ValueError(f"{name} has the special token {seen!r}, wanted text without it")
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Returns the ids of a conversation, up to where the assistant's answer begins."""
        if self.tokenizer is None or self.template is None:
            lacks = "tokenizer" if self.tokenizer is None else "chat template"
            raise ValueError(
                f"a conversation is given, but there is no {lacks} to put it together; wanted "
                "prompt_ids, or task.chat_template=FILE, or none for prompts as they are"
            )
        settings = {"chat_template": self.template, "add_generation_prompt": True}
        try:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)
        except Exception as error:  # a template raises what Jinja raises, or an error of its own
            raise ValueError(
                f"the chat template refuses the messages: {one_line(error)}"
            ) from error
        return self.encode(text)


def load_tokens(directory: Path, options: Options) -> Tokens:
    """Reads the tokenizer and the ids of a model directory.

    Raises:
        UserError: the directory is not a model's, or its ids are not what the options say.
    """
    config = _read_json(directory / "config.json")
    if not config:
        raise UserError(f"model.path: no model in {directory}: config.json is missing or damaged")
    tokenizer = _load_tokenizer(directory)
    size = _first_number(config, "vocab_size")
    if size is None:
        raise UserError(f"model.path: {directory / 'config.json'} has no vocab_size")
    vocab = {} if tokenizer is None else tokenizer.get_vocab()
    eos = _end_ids(directory, config, tokenizer, options, vocab)
    with user_input("task.eos"):
        layout = dataclasses.replace(_layout(tokenizer, vocab, size, options), eos=eos)
    own_end = None if tokenizer is None else tokenizer.eos_token_id
    end = own_end if own_end in eos else eos[0]
    pads = [None if tokenizer is None else tokenizer.pad_token_id, config.get("pad_token_id"), end]
    return Tokens(
        tokenizer=tokenizer,
        template=_template(tokenizer, options.chat_template),
        layout=layout,
        end_id=end,
        pad_id=next(pad for pad in pads if isinstance(pad, int) and 0 <= pad < size),
        special=_special_ids(tokenizer, layout),
        positions=_first_number(config, "max_position_embeddings") or UNLIMITED,
    )


def _load_tokenizer(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        # A model directory is data: run no code from it.
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers and tokenizers raise many types for a bad file
        reason = described(error)
        if "trust_remote_code" in str(error):  # transformers advises to run the directory's code
            reason = "only code of its own can load it, and code of a model directory is never run"
        raise UserError(f"the tokenizer in {directory} cannot be read: {reason}") from error


def _special_ids(tokenizer: Any, layout: ModalityLayout) -> frozenset[int]:
    if tokenizer is None:
        return frozenset()
    added = tokenizer.added_tokens_decoder.items()
    found = {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}
    speech = {token for token in found if any(a <= token < b for a, b in layout.speech)}
    return frozenset(found - speech - {*layout.boundary})


def _template(tokenizer: Any, choice: str) -> str | None:
    if choice == NO_TEMPLATE:
        return None
    if choice == TOKENIZER:
        given = getattr(tokenizer, "chat_template", None)
        return given.get("default") if isinstance(given, dict) else given
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"task.chat_template: {one_line(error)}") from error


def _first_number(config: dict[str, Any], key: str) -> int | None:
    """Returns a number of the config, or of the part of it that describes the language model."""
    for part in (config, config.get("text_config"), config.get("llm_config")):
        value = part.get(key) if isinstance(part, dict) else None
        if isinstance(value, int) and value > 0:
            return value
    return None


def _layout(tokenizer: Any, vocab: dict[str, int], size: int, options: Options) -> ModalityLayout:
    if options.boundary is None:
        boundary = [vocab[name] for name in BOUNDARIES if name in vocab and options.speech]
    else:
        boundary = [_id_of(token, vocab, "task.boundary") for token in options.boundary]
    with user_input("task.speech"):
        if isinstance(options.speech, str):
            _id_of(options.speech, vocab, "task.speech", NUMBER_0)
            speech = ModalityLayout.from_tokenizer(
                tokenizer, speech_start=options.speech, boundary=(), vocab_size=size
            ).speech
        else:
            speech = ModalityLayout(vocab_size=size, speech=options.speech).speech  # type: ignore[arg-type]
    with user_input("task.boundary"):
        return ModalityLayout(
            vocab_size=size,
            speech=speech,
            boundary=boundary,
            boundary_as=options.boundary_as,
            eos_as=options.eos_as,
        )


def _end_ids(
    directory: Path,
    config: dict[str, Any],
    tokenizer: Any,
    options: Options,
    vocab: dict[str, int],
) -> tuple[int, ...]:
    if options.eos is not None:
        found = [_id_of(token, vocab, "task.eos") for token in options.eos]
    else:
        generation = _read_json(directory / "generation_config.json")
        given = [
            generation.get("eos_token_id", config.get("eos_token_id")),
            None if tokenizer is None else tokenizer.eos_token_id,
        ]
        found = [
            token
            for ids in given
            for token in (ids if isinstance(ids, list) else [ids])
            if isinstance(token, int)
        ]
    if not found:
        raise UserError(
            f"task.eos: {directory} names no end-of-sequence token, wanted the tokens or ids that "
            "end an answer"
        )
    return tuple(dict.fromkeys(found))


def _id_of(
    token: int | str, vocab: dict[str, int], key: str, form: re.Pattern[str] | None = None
) -> int:
    """Returns the id of a token; suggests a similar one, or those of a form, if there is none."""
    if isinstance(token, int):
        return token
    if token in vocab:
        return vocab[token]
    like = [name for name in vocab if form and form.fullmatch(name)][:3]
    named = [name for name in vocab if name.startswith("<")]
    hint = f"; tokens of that form: {', '.join(like)}" if like else did_you_mean(token, named)
    raise UserError(f"{key}: the tokenizer of the model has no token {shown(token)}{hint}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
