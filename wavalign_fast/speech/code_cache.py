"""Keeps the codes of WAV files on disk, so that each file is encoded once."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wavalign_fast.errors import UserError, naming, shown, using_cache
from wavalign_fast.outputs import write_whole
from wavalign_fast.speech.codec import SpeechCodec
from wavalign_fast.speech.file_digest import file_digest
from wavalign_fast.speech.wave_files import read_wave, wave_info

logger = logging.getLogger(__name__)

VITA_SUFFIX = "_glm4voice.json"
"""VITA-Audio keeps the codes of ``a.wav`` in ``a_glm4voice.json`` beside it, as a list of ints."""


Origin: TypeAlias = Literal["cache", "vita", "codec"]
"""Where codes come from."""


class FoundCodes(NamedTuple):
    """The codes of a file."""

    codes: Tensor
    """int64 [T]."""
    origin: Origin


class CodeCache:
    """Codes by the bytes of their file, by codec and by channel rule; paths do not matter.

    An entry is written whole or not at all, so that several processes may share a directory; a
    damaged one is computed anew.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, file: Path, codec: SpeechCodec) -> Path:
        """Returns where the codes of a file are kept.

        Raises:
            UserError: the file cannot be read.
        """
        with naming(str(file)):
            content = file_digest(file).hex()
        # As JSON, so that no text of one part can pass for the next part.
        parts = json.dumps([content, codec.identity, codec.channel])
        key = hashlib.sha256(parts.encode()).hexdigest()
        return self.directory / key[:2] / f"{key[2:]}.json"

    def codes(self, file: Path, codec: SpeechCodec) -> FoundCodes:
        """Returns the codes of a WAV file, and keeps them.

        VITA-Audio's own file beside it is taken where the codec has ``vita_caches``, unless its
        length does not fit, or the file has several channels and ``codec.channel`` is not 0,
        which is what VITA-Audio encodes.

        Raises:
            UserError: the file cannot be read, or the codec fails.
            CacheError: the directory cannot be used.
        """
        path = self.path(file, codec)
        with using_cache(self.directory):
            kept = self._kept(path, codec)
        if kept is not None:
            return FoundCodes(kept, "cache")
        theirs = self._vita(file, codec)
        codes = _encode(file, codec) if theirs is None else theirs
        with using_cache(self.directory):
            write_whole(path, json.dumps(codes.tolist()).encode())
        return FoundCodes(codes, "codec" if theirs is None else "vita")

    def _kept(self, path: Path, codec: SpeechCodec) -> Tensor | None:
        if not path.exists():
            return None
        codes = _read_list(path, codec.codebook_size)
        if isinstance(codes, str):
            logger.warning("%s is damaged (%s): its file is encoded again", path, codes)
            return None
        return codes

    def _vita(self, file: Path, codec: SpeechCodec) -> Tensor | None:
        path = file.with_name(file.stem + VITA_SUFFIX)
        if not getattr(codec, "vita_caches", False) or not path.is_file():
            return None
        info = wave_info(file)
        if info.channels > 1 and codec.channel != 0:
            return None
        codes = _read_list(path, codec.codebook_size)
        if isinstance(codes, str):
            fault = codes
        # A file of pieces, or one that was resampled with other rounding, may differ by one.
        elif abs(len(codes) - info.seconds * codec.codes_per_second) >= 2:
            wanted = info.seconds * codec.codes_per_second
            fault = f"{len(codes)} codes for a wave of {wanted:.1f}"
        else:
            return codes
        logger.warning("%s does not serve (%s): %s is encoded", path, fault, file.name)
        return None


def _encode(file: Path, codec: SpeechCodec) -> Tensor:
    wave, rate = read_wave(file)
    try:
        return codec.encode(wave, rate)
    except UserError as error:  # a CodecError stays one
        raise type(error)(f"{file}: {error}") from error


def _read_list(path: Path, codebook_size: int) -> Tensor | str:
    """Returns the codes of a file, or what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        return str(error)
    if not isinstance(content, list) or not all(type(code) is int for code in content):
        return f"{shown(content)}, wanted a list of whole numbers"
    wrong = [code for code in content if not 0 <= code < codebook_size]
    if wrong:
        return f"code {shown(wrong[0])}, wanted 0 to {codebook_size - 1}"
    return torch.tensor(content, dtype=torch.int64)
