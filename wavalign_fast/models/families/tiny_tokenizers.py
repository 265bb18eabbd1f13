"""Files of small tokenizers by the families' rules: pieces, special tokens, and their order.

The merges are learned from a few sentences, so English text becomes a few ids and any text some.
"""

import base64
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from wavalign_fast.models.families.tokens import (
    DIGITS_BY_THREE,
    byte_letters,
    byte_level_pieces,
)

TEXT = (
    "You are a voice assistant. Answer the question in a kind, natural voice, and keep it short. "
    "Hello, how are you today? I am very well, thank you. What is the weather like in the city? "
    "The answer is nine, ten, eleven or twelve. And then? It will be warm and sunny on Monday. "
    "Please tell me a story about the sea. There was a small boat, and there were three friends in "
    "it. They said that they would sail to the other side of the bay before the night came. "
    "I do not know what you mean, so could you say that again? Yes, of course. No, that is not "
    "right. Which of these is the right one, the first or the second? I think that the first is.\n"
    "\nHello.\n\nYes.\n"
)
MOST = 512
"""Ranks at most: 256 bytes, and merges."""

Added = Sequence[tuple[str, bool]]
"""Tokens that follow the ranks, and whether each is special."""

QWEN2_ADDED: Added = (
    *((f"<|{name}|>", True) for name in ("endoftext", "im_start", "im_end")),
    *(
        (f"<|{of}_{end}|>", True)
        for of in ("object_ref", "box", "quad")
        for end in ("start", "end")
    ),
    *((f"<|vision_{name}|>", True) for name in ("start", "end", "pad")),
    *((f"<|{name}_pad|>", True) for name in ("image", "video")),
    ("<tool_call>", False),
    ("</tool_call>", False),
    *((f"<|fim_{name}|>", False) for name in ("prefix", "middle", "suffix", "pad")),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
)
"""What Qwen2.5's tokenizer has after its ranks."""


def write_qwen2_tokenizer(directory: Path, added: Added) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``; ``added`` follows Qwen2.5's own."""
    from transformers import Qwen2Tokenizer

    vocab, merges = _learned()
    tokenizer: Any = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokens = _entries(len(vocab), (*QWEN2_ADDED, *added))
    backend = tokenizer.backend_tokenizer
    backend.add_tokens(_added_tokens(tokens))
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    _write_config(
        directory, tokens, tokenizer_class="Qwen2Tokenizer", eos="<|im_end|>", pad="<|endoftext|>"
    )


def write_tiktoken(file: Path, added: Added, *, tokenizer_class: str, eos: str, pad: str) -> None:
    """Writes a tiktoken file, and ``tokenizer_config.json`` beside it with the added tokens."""
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    lines = []
    for token, rank in sorted(ranks().items(), key=lambda item: item[1]):
        plain = bytes(byte_of[letter] for letter in token)
        lines.append(f"{base64.b64encode(plain).decode()} {rank}\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")
    tokens = _entries(len(ranks()), added)
    _write_config(file.parent, tokens, tokenizer_class=tokenizer_class, eos=eos, pad=pad)


def ranks() -> dict[str, int]:
    """Returns the tokens before the added ones, spelled by letters for bytes, and their ids."""
    return _learned()[0]


@cache
def _learned() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns ranks and merges: the 256 bytes, then the most frequent pairs of ``TEXT``."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level_pieces(DIGITS_BY_THREE)
    trainer = trainers.BpeTrainer(
        vocab_size=MOST, initial_alphabet=byte_letters(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokens = [*byte_letters(), *(first + second for first, second in merges)]
    return {token: rank for rank, token in enumerate(tokens)}, merges


def _entries(first: int, added: Added) -> dict[int, dict[str, Any]]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        first + number: {"content": name, **flags, "special": special}
        for number, (name, special) in enumerate(added)
    }


def _added_tokens(entries: dict[int, dict[str, Any]]) -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(**entry) for entry in entries.values()]


def _write_config(
    directory: Path, entries: dict[int, dict[str, Any]], *, tokenizer_class: str, eos: str, pad: str
) -> None:
    config = {
        "added_tokens_decoder": {str(index): entry for index, entry in entries.items()},
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": pad,
        "tokenizer_class": tokenizer_class,
    }
    text = json.dumps(config, indent=1, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
