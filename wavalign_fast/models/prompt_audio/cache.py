"""Keeps the embeddings of prompt audio on disk, so that each clip is encoded once."""

import hashlib
import logging
import threading
from pathlib import Path

from torch import Tensor

from wavalign_fast.errors import naming, user_input, using_cache
from wavalign_fast.models.prompt_audio.encoder import PromptAudioEncoder
from wavalign_fast.outputs import write_whole
from wavalign_fast.speech.channels import ChannelRule, to_mono
from wavalign_fast.speech.wave_files import read_wave

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32
_WRITING = threading.Lock()
"""The temporary file of a write is named by its process: threads take turns."""


class PromptAudioCache:
    """The embeddings of clips, from disk where another call or run has left them.

    An entry is found by the bytes of the WAV file, the weights of the encoder and the channel rule,
    never by a path or a time. It is written whole or not at all; a damaged one is computed anew.
    """

    def __init__(
        self, encoder: PromptAudioEncoder, directory: Path, *, channel: ChannelRule = "mean"
    ) -> None:
        self.encoder = encoder
        self.directory = directory
        self.channel = channel

    def embeddings(self, source: Path | bytes) -> list[Tensor]:
        """Returns the embeddings of a WAV file or of its bytes.

        Returns:
            float32 [n_i, hidden] on the CPU for each piece of the clip.

        Raises:
            UserError: the file cannot be read, has no such channel, or is too short.
            CacheError: the directory cannot be used.
        """
        name = "WAV data" if isinstance(source, bytes) else str(source)
        with user_input(name):
            data = source if isinstance(source, bytes) else source.read_bytes()
        path = self.path(data)
        with using_cache(self.directory):
            found = _read(path)
        if found is None:
            with naming(name):
                wave, rate = read_wave(data)
                mono = to_mono(wave, self.channel)
                encoded = self.encoder.encode(self.encoder.resampled(mono, rate))
            found = [piece.float().cpu().contiguous() for piece in encoded]
            with using_cache(self.directory):
                _write(path, found)
        return found

    def path(self, data: bytes) -> Path:
        """Returns the file that holds the embeddings of a WAV file with these bytes."""
        parts = (self.encoder.identity, str(self.channel), hashlib.sha256(data).hexdigest())
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self.directory / key[:2] / key[2:]


def _write(path: Path, pieces: list[Tensor]) -> None:
    from safetensors.torch import save

    content = save({f"{number:06d}": piece for number, piece in enumerate(pieces)})
    with _WRITING:
        write_whole(path, hashlib.sha256(content).digest() + content)


def _read(path: Path) -> list[Tensor] | None:
    """Returns the stored pieces, ``None`` if there are none or they are damaged."""
    from safetensors.torch import load

    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        logger.warning("%s is damaged: the clip is encoded again", path)
        return None
    pieces = load(content)
    return [pieces[name] for name in sorted(pieces)]
