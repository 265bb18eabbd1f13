"""Reads sound files that are no WAV: MP3, FLAC and Ogg, by the package soundfile."""

from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from wavalign_fast.errors import UserError, described

if TYPE_CHECKING:
    from torch import Tensor

READ = ("MP3", "FLAC", "Ogg")
MP3_FRAME = 1152
"""Samples of the longest frame. A last frame that lost some bytes is no sound that is missed."""


def format_of(head: bytes) -> str | None:
    """Returns the format of a file by its first 12 bytes, ``None`` for one that is not known."""
    starts = {
        b"ID3": "MP3", b"fLaC": "FLAC", b"OggS": "Ogg", b"#!AMR": "AMR", b"FORM": "AIFF",
        b"\x1a\x45\xdf\xa3": "WebM/Matroska",
    }  # fmt: skip
    for start, name in starts.items():
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "MP4/M4A"
    # A frame of MPEG audio: eleven bits of ones, then neither a reserved version nor layer.
    frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    return "MP3" if frame and head[1] & 0x18 != 0x08 and head[1] & 0x06 == 0x02 else None


def read_compressed(file: BinaryIO, kind: str) -> tuple["Tensor", int]:
    """Decodes a whole file.

    Args:
        file: at its start.
        kind: as ``format_of`` returns it.

    Returns:
        The wave, float32 [channels, frames], and its rate in Hz.

    Raises:
        UserError: soundfile is missing, does not read this format, or the file is damaged or cut
            off.
    """
    import torch

    soundfile = _soundfile(kind)
    counted = kind == "MP3" and _has_count(file)
    try:
        with soundfile.SoundFile(file) as opened:
            samples, rate = opened.read(dtype="float32", always_2d=True), opened.samplerate
            told = opened.frames
    except (RuntimeError, TypeError) as error:
        raise UserError(f"the file is {kind} and cannot be decoded: {described(error)}") from error
    if not len(samples):
        raise UserError(f"the file is {kind} and has no samples, wanted at least one frame")
    if counted and len(samples) < told - MP3_FRAME:  # FLAC and Ogg tell their own ends
        raise UserError(f"the file is MP3 and cut off: {len(samples)} of {told} samples are there")
    return torch.from_numpy(samples).T.contiguous(), int(rate)


def _has_count(file: BinaryIO) -> bool:
    """Whether an MP3 file says how long it is, which is else an estimate from its size.

    Its first frame then is the header of Xing or LAME; ID3v2 tags may stand before it.
    """
    head, start = file.read(10), 0
    while head[:3] == b"ID3" and len(head) == 10:
        size = 0
        for byte in head[6:]:  # seven bits each
            size = size << 7 | byte & 0x7F
        start += 10 + size
        file.seek(start)
        head = file.read(10)
    frame = head + file.read(190)
    file.seek(0)
    return b"Xing" in frame or b"Info" in frame


def _soundfile(kind: str) -> ModuleType:
    convert = "convert the file: ffmpeg -i FILE FILE.wav"
    if kind not in READ:
        raise UserError(f"the file is {kind}, wanted WAV, {', '.join(READ)}; {convert}")
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its C library is missing
        raise UserError(
            f"the file is {kind}, which the package soundfile reads: {described(error)}; "
            f"pip install 'wavalign-fast[audio]', or {convert}"
        ) from error
    module: ModuleType = soundfile
    return module
