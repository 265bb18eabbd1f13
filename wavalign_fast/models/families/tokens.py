"""Tokenizers from their files, and the ids of named and numbered tokens in them."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.models.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUMBERED_CODES = "<|audio_{}|>"

DIGITS_BY_THREE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Splits text into pieces as GPT-4 does: words, up to three digits, signs, white space."""


def qwen2_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """Loads a Qwen2 tokenizer; ``AutoTokenizer`` would ask whether to run the directory's code.

    Raises:
        DamagedFileError: its files cannot be read.
    """
    from transformers import Qwen2Tokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer.from_pretrained(
            directory, local_files_only=True
        )
    except Exception as error:  # transformers and tokenizers raise many types for a bad file
        raise DamagedFileError(f"tokenizer in {directory}: {one_line(error)}") from error
    return tokenizer


def tiktoken_tokenizer(
    file: Path, *, pattern: str, unlisted: Callable[[int], Sequence[str]] = lambda first: ()
) -> "PreTrainedTokenizerBase":
    """Builds the tokenizer of a tiktoken file and the added tokens of ``tokenizer_config.json``.

    Args:
        file: lines of a token in base64 and its rank, which is its id.
        pattern: splits text into the pieces within which tokens are merged.
        unlisted: returns the names of the special tokens from an id on, where
            ``tokenizer_config.json`` lists no added tokens.

    Raises:
        DamagedFileError: a file cannot be read, or an added token has the id of another one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ranks = _ranks(file)
    settings = read_json(file.parent / "tokenizer_config.json")
    added = {int(i): entry for i, entry in settings.get("added_tokens_decoder", {}).items()}
    if not added:
        first = max(ranks.values(), default=-1) + 1
        named = enumerate(unlisted(first), first)
        added = {index: {"content": name, "special": True} for index, name in named}
    letters = byte_letters()
    vocab = {_spelled(token, letters): rank for token, rank in ranks.items()}
    taken = set(vocab.values())
    for index, entry in sorted(added.items()):
        if index in taken:
            raise DamagedFileError(
                f"tokenizer in {file.parent}: {entry['content']} has id {index}, which is taken"
            )
        vocab[entry["content"]] = index
    merges = [(_spelled(a, letters), _spelled(b, letters)) for a, b in _merges(ranks)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = byte_level_pieces(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    # Their ids are in the vocabulary already, and stay.
    tokenizer.add_tokens([AddedToken(**entry) for _, entry in sorted(added.items())])
    names = {key: settings.get(key) for key in ("bos_token", "eos_token", "pad_token")}
    built: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{key: name for key, name in names.items() if isinstance(name, str)},
    )
    return built


def byte_level_pieces(pattern: str) -> Any:
    """Returns what splits text into pieces and spells their bytes."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _ranks(file: Path) -> dict[bytes, int]:
    ranks = {}
    try:
        for line in file.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError, binascii.Error) as error:
        raise DamagedFileError(f"tokenizer {file} cannot be read: {one_line(error)}") from error
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Returns the pairs that make each token, in the order in which tiktoken merges them."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def byte_letters() -> list[str]:
    """Returns the character that spells each byte in byte-level BPE, as GPT-2 chose them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]


def _spelled(token: bytes, letters: Sequence[str]) -> str:
    return "".join(letters[byte] for byte in token)


def token_ids(vocab: Mapping[str, int], names: Sequence[str]) -> list[int]:
    """Returns the ids of tokens.

    Raises:
        UserError: the tokenizer lacks one.
    """
    missing = [name for name in names if name not in vocab]
    if missing:
        raise UserError(f"the tokenizer has no token {', '.join(missing)}")
    return [vocab[name] for name in names]


def numbered_codes(vocab: Mapping[str, int], pattern: str = NUMBERED_CODES) -> tuple[int, int]:
    """Returns the id of code 0, and the number of codes, from their names.

    Raises:
        UserError: there are none, or their ids have a gap or another order than their numbers.
    """
    before, after = pattern.split("{}")
    numbered = re.compile(re.escape(before) + "(0|[1-9][0-9]*)" + re.escape(after))
    found = {int(m[1]): index for name, index in vocab.items() if (m := numbered.fullmatch(name))}
    if 0 not in found:
        raise UserError(f"the tokenizer has no token {pattern.format(0)}")
    first = found[0]
    for number in range(len(found)):
        if found.get(number) != first + number:
            raise UserError(
                f"codes must follow each other from {pattern.format(0)} = {first}: "
                f"{pattern.format(number)} has id {found.get(number, 'missing')}, wanted "
                f"{first + number}"
            )
    return first, len(found)


def check_knows_text(tokenizer: Any, directory: Path) -> None:
    """Raises ``UserError`` for a tokenizer of added tokens alone, which drops all other text.

    transformers makes one where the file of the vocabulary is missing.
    """
    if not tokenizer.encode("a", add_special_tokens=False):
        raise UserError(
            f"tokenizer in {directory}: it has no id for 'a', wanted ids for all text; the file of "
            "its vocabulary is missing or empty"
        )


def check_order(vocab: Mapping[str, int], names: Sequence[str]) -> None:
    """Raises ``UserError`` unless each of ``names`` has the id after the one before it."""
    ids = token_ids(vocab, names)
    for before, name, index in zip(names[:-1], names[1:], ids[1:], strict=True):
        if index != vocab[before] + 1:
            raise UserError(
                f"the tokenizer has {name} at id {index}, wanted {vocab[before] + 1}, "
                f"after {before}"
            )


def check_table(vocab: Mapping[str, int], rows: int) -> None:
    """Raises ``UserError`` if a token has an id beyond the ``rows`` of the embedding."""
    name, index = max(vocab.items(), key=lambda item: item[1])
    if index >= rows:
        raise UserError(
            f"the tokenizer is longer than the embedding: {name} has id {index}, wanted one below "
            f"{rows}"
        )


def special_ids(tokenizer: Any, vocab: Mapping[str, int], rows: int) -> frozenset[int]:
    """Returns the ids of special tokens and of the rows that no token has."""
    used = set(vocab.values())
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | (set(range(rows)) - used))
