"""Packs the parameters and buffers of one launch into a case, replays it, and reads the result."""

import ctypes
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

H100_SHARED = 232448


class EmulatorError(Exception):
    """A fault that the emulator or a sanitizer reports."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device that the emulator pretends to be."""

    arch: int = 90
    shared_bytes: int = H100_SHARED
    most_cluster: int = 8
    seed: int = 1
    """Seed of the order in which threads and blocks run; 0 is the order of their numbers."""


@dataclass(frozen=True)
class Sparse:
    """A buffer in which only some places are filled: tensors by their offset in bytes."""

    bytes: int
    segments: dict[int, torch.Tensor]


@dataclass(frozen=True)
class Shifted:
    """A buffer that starts some bytes beyond the alignment of an allocation."""

    values: torch.Tensor
    by: int


Buffers = dict[str, torch.Tensor | Sparse | Shifted | None]


@dataclass
class Result:
    """The state after a launch."""

    status: int
    launches: int
    params: ctypes.Structure
    buffers: dict[str, Any] = field(default_factory=dict)
    """By the names given: a tensor, or the segments of a sparse buffer."""
    read: dict[str, int] = field(default_factory=dict)
    """Bytes read of each buffer, counted every time; 0 unless accesses are recorded."""
    written: dict[str, int] = field(default_factory=dict)


def replay(
    program: Path,
    entry: str,
    params: ctypes.Structure,
    buffers: Buffers,
    device: Device,
) -> Result:
    """Calls ``entry`` with copies of the buffers.

    Args:
        buffers: by the dotted name of the pointer in ``params``; ``None`` is null.

    Raises:
        EmulatorError: the emulator or a sanitizer found a fault.
    """
    filled = {name: value for name, value in buffers.items() if value is not None}
    case = struct.pack("<iiiI", device.arch, device.shared_bytes, device.most_cluster, device.seed)
    case += _text(entry) + struct.pack("<I", ctypes.sizeof(params)) + bytes(params)
    case += struct.pack("<I", len(filled))
    for name, value in filled.items():
        case += _text(name) + struct.pack("<Q", _offset(type(params), name)) + _packed(value)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("case", "result")]
        paths[0].write_bytes(case)
        done = _run([str(program), *map(str, paths)])
        if done.returncode != 0:
            raise EmulatorError(_headline(done) + done.stderr[:4000])
        return _unpacked(paths[1].read_bytes(), params, filled)


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    environment = {**os.environ, **options}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "unexpected memory mapping" not in done.stderr:
        return done
    # The thread sanitizer of older compilers cannot map the addresses of newer Linux kernels.
    command = ["setarch", "-R", *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _headline(done: "subprocess.CompletedProcess[str]") -> str:
    """The summary line of a sanitizer's report, which itself begins with a ruler."""
    summary = [line for line in done.stderr.splitlines() if line.startswith("SUMMARY: ")]
    return "".join([f"exit code {done.returncode}: ", *(f"{line}\n" for line in summary[:1])])


def _text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def _offset(structure: Any, name: str) -> int:
    """Where the member of a dotted name lies in nested structures."""
    first, _, rest = name.partition(".")
    types = dict(structure._fields_)
    offset = getattr(structure, first).offset
    return offset + _offset(types[first], rest) if rest else offset


def as_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _values(value: torch.Tensor | Shifted) -> torch.Tensor:
    return value.values if isinstance(value, Shifted) else value


def _packed(value: torch.Tensor | Sparse | Shifted) -> bytes:
    if not isinstance(value, Sparse):
        by = value.by if isinstance(value, Shifted) else 0
        data = as_bytes(_values(value))
        return struct.pack("<QBBIQQ", len(data), 0, by, 1, 0, len(data)) + data
    packed = struct.pack("<QBBI", value.bytes, 1, 0, len(value.segments))
    for offset, tensor in value.segments.items():
        data = as_bytes(tensor)
        packed += struct.pack("<QQ", offset, len(data)) + data
    return packed


def _unpacked(data: bytes, params: ctypes.Structure, filled: dict[str, Any]) -> Result:
    view = memoryview(bytearray(data))
    status, launches = struct.unpack_from("<ii", view)
    at = 8 + ctypes.sizeof(params)
    result = Result(status, launches, type(params).from_buffer(view[8:at]))

    def tensor_like(wanted: torch.Tensor) -> torch.Tensor:
        nonlocal at
        size = wanted.numel() * wanted.element_size()
        part = torch.frombuffer(view[at : at + size], dtype=torch.uint8) if size else None
        at += size
        shape = wanted.shape
        return torch.empty(shape, dtype=wanted.dtype) if part is None else (
            part.clone().view(wanted.dtype).reshape(shape)
        )  # fmt: skip

    for name, value in filled.items():
        result.read[name], result.written[name] = struct.unpack_from("<QQ", view, at)
        at += 16
        result.buffers[name] = (
            {offset: tensor_like(part) for offset, part in value.segments.items()}
            if isinstance(value, Sparse)
            else tensor_like(_values(value))
        )
    return result
