"""Reads and writes WAV files, and the same bytes in memory.

Reads PCM of 8, 16, 24 and 32 bits and floats of 32 and 64, also as WAVE_FORMAT_EXTENSIBLE, with
any number of channels. Python's own ``wave`` reads no floats, and the extensible form only since
3.12. Files of other formats are left to ``compressed_files.py``.
"""

import io
import os
import struct
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from wavalign_fast.errors import UserError, naming, shown
from wavalign_fast.outputs import write_whole
from wavalign_fast.speech.compressed_files import format_of, read_compressed

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported on use: mistakes on the command line are reported without it.

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
BITS = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
SUBFORMAT_TAIL = bytes.fromhex("000000001000800000aa00389b71")
"""What follows the two bytes of the format in the extensible form's GUID."""
UNKNOWN_LENGTH = 0xFFFFFFFF
"""Programs that write to a pipe put this where the number of bytes belongs."""
WANTED = "wanted PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64 bits"


class WaveInfo(NamedTuple):
    """What the header of a WAV file says; of another format, what its samples become."""

    sample_rate: int
    """In Hz."""
    channels: int
    frames: int
    """Samples of each channel."""
    format: int
    """``PCM`` or ``FLOAT``."""
    bits: int
    """Of one sample of one channel."""
    start: int
    """Byte at which the samples start, in a WAV file."""

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.sample_rate


def wave_info(path: Path) -> WaveInfo:
    """Reads the header of a WAV file, not its samples; a file of another format is decoded.

    Raises:
        UserError: no such file, it is empty, not a sound file, cut off, or has another encoding or
            no samples.
    """
    with naming(str(path)), path.open("rb") as file:
        kind = _other_format(file)
        if kind is None:
            return _header(file)
        wave, rate = read_compressed(file, kind)
        channels, frames = wave.shape
        return WaveInfo(rate, channels, frames, FLOAT, 32, 0)


def read_wave(source: Path | bytes) -> tuple["Tensor", int]:
    """Reads a sound file, or its bytes: WAV, or MP3, FLAC and Ogg by the extra ``audio``.

    Returns:
        The wave, float32 [channels, frames], PCM scaled to [-1, 1), and its rate in Hz.

    Raises:
        UserError: as ``wave_info``, a float sample is NaN or infinite, or the file has another
            format and cannot be decoded.
    """
    if isinstance(source, bytes):
        with naming("WAV data"):
            return _read(io.BytesIO(source))
    with naming(str(source)), source.open("rb") as file:
        return _read(file)


def as_wave_bytes(path: Path) -> bytes:
    """Returns the bytes of a sound file as those of a WAV file; a WAV file's are its own.

    Raises:
        UserError: as ``read_wave``.
    """
    with naming(str(path)):
        content = path.read_bytes()
    return content if format_of(content[:12]) is None else wave_bytes(*read_wave(path))


def wave_bytes(waveform: Any, sample_rate: int) -> bytes:
    """Returns the bytes of a WAV file with 16-bit PCM.

    Args:
        waveform: floats [N] or [channels, N] in [-1, 1] (tensor, array or list). What is beyond is
            clipped, NaN becomes 0. Samples that ``read_wave`` returned for 16-bit PCM keep
            their bits.
        sample_rate: in Hz.
    """
    import torch

    from wavalign_fast.speech.wire import to_bytes, to_pcm

    samples = torch.as_tensor(waveform, dtype=torch.float64, device="cpu").detach()
    if samples.ndim not in (1, 2):
        raise ValueError(f"waveform has shape {tuple(samples.shape)}, wanted [N] or [channels, N]")
    pcm = to_pcm(samples[None] if samples.ndim == 1 else samples)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(pcm.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(to_bytes(pcm.T))
    return content.getvalue()


def write_wave(path: Path, waveform: Any, sample_rate: int) -> None:
    """Writes ``wave_bytes`` to a file, whole or not at all.

    They are made in memory first: the header holds the length, and a pipe cannot seek back to it.
    """
    write_whole(path, wave_bytes(waveform, sample_rate))


def _read(file: BinaryIO) -> tuple["Tensor", int]:
    import torch

    kind = _other_format(file)
    if kind is not None:
        return read_compressed(file, kind)
    info = _header(file)
    file.seek(info.start)
    data = bytearray(file.read(info.frames * info.channels * info.bits // 8))
    if info.format == FLOAT:
        dtype = torch.float32 if info.bits == 32 else torch.float64
        samples = torch.frombuffer(data, dtype=dtype).to(torch.float32)
        if not samples.isfinite().all():
            first = samples[~samples.isfinite()][0].item()
            raise UserError(f"a sample is {first}, wanted finite numbers")
    else:
        samples = _pcm(data, info.bits)
    return samples.view(info.frames, info.channels).T.contiguous(), info.sample_rate


def _pcm(data: bytearray, bits: int) -> "Tensor":
    """Returns little-endian PCM as float32 in [-1, 1)."""
    import torch

    if bits == 8:  # the only width without a sign
        return (torch.frombuffer(data, dtype=torch.uint8).to(torch.float32) - 128) / 128
    if bits == 24:
        low, middle, high = torch.frombuffer(data, dtype=torch.uint8).view(-1, 3).int().unbind(1)
        value = low + (middle << 8) + (high << 16)
        return (value - ((high >> 7) << 24)).to(torch.float32) / 2**23
    dtype = torch.int16 if bits == 16 else torch.int32
    return torch.frombuffer(data, dtype=dtype).to(torch.float32) / 2.0 ** (bits - 1)


def _other_format(file: BinaryIO) -> str | None:
    """Returns the format of a file that is no WAV, if it is a known one."""
    kind = format_of(file.read(12))
    file.seek(0)
    return kind


def _header(file: BinaryIO) -> WaveInfo:
    """Walks over the chunks up to the samples."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise UserError("the file has 0 bytes, wanted a WAV file")
    head = file.read(12)
    if head[:4] in (b"RF64", b"BW64"):
        raise UserError("the file is in the form for more than 4 GB (RF64), wanted RIFF")
    if head[:4] != b"RIFF" or (len(head) == 12 and head[8:] != b"WAVE"):
        raise UserError(f"the file starts with {shown(head)}, wanted a WAV file (RIFF…WAVE)")
    fields = None
    while True:
        chunk = file.read(8)
        if len(chunk) < 8:
            missing = "no samples (no chunk 'data')" if fields else "no header (no chunk 'fmt ')"
            raise UserError(f"the file is cut off: it has {size} bytes and {missing}")
        name, length = chunk[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data":
            if fields is None:
                raise UserError("the samples come before the header (chunk 'fmt ')")
            return _checked(fields, file.tell(), length, size)
        content = file.read(length) if name == b"fmt " else b""
        if name == b"fmt ":
            if len(content) < min(length, 16) or length < 16:
                raise UserError(f"the header is cut off: {len(content)} bytes, wanted 16 or more")
            fields = content
        else:
            file.seek(length, os.SEEK_CUR)
        file.seek(length % 2, os.SEEK_CUR)  # chunks start at even bytes


def _checked(fields: bytes, start: int, length: int, size: int) -> WaveInfo:
    """Returns what the chunk ``fmt`` says after checks of every value."""
    kind, channels, rate, _, block, bits = struct.unpack("<HHIIHH", fields[:16])
    if kind == EXTENSIBLE:
        if len(fields) < 40 or fields[26:40] != SUBFORMAT_TAIL:
            raise UserError(f"the extensible header names no known encoding, {WANTED}")
        kind = int.from_bytes(fields[24:26], "little")
    if bits not in BITS.get(kind, ()):
        names = {PCM: "PCM", FLOAT: "float", 2: "ADPCM", 6: "A-law", 7: "µ-law", 85: "MP3"}
        raise UserError(f"samples are {names.get(kind, f'format {kind}')} of {bits} bits, {WANTED}")
    if channels == 0 or rate == 0:
        raise UserError(f"the header says {channels} channels at {rate} Hz, wanted at least 1")
    if block != channels * bits // 8:
        wanted = channels * bits // 8
        raise UserError(f"the header says {block} bytes a frame, wanted {wanted}")
    there = size - start
    if length == UNKNOWN_LENGTH:
        length = there
    if length > there:
        raise UserError(f"the file is cut off: {there} bytes of samples, wanted {length}")
    if length // block == 0:
        raise UserError("the file has no samples, wanted at least one frame")
    return WaveInfo(rate, channels, length // block, kind, bits, start)
