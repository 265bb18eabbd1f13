"""Calls launch functions of CUDA sources on an emulated device."""

import ctypes
from collections.abc import Callable
from ctypes import c_void_p
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from .cases import Buffers, Device, Result, replay

AnyLauncher = TypeVar("AnyLauncher", bound="Launcher")


class LaunchError(Exception):
    """A launch was refused; the argument is its status."""


def structure(name: str, **fields: type) -> type[ctypes.Structure]:
    """A C struct with these members."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def pointers(*names: str) -> dict[str, type]:
    """Members of a struct that are pointers."""
    return dict.fromkeys(names, c_void_p)


@dataclass
class Launcher:
    """Launches kernels in one variant, on one device."""

    program: Callable[[str, str], Path]
    """The replay program of a source, by the source's name and the variant."""
    variant: str = "plain"
    device: Device = field(default_factory=Device)
    last: Result | None = None
    """The result of the last launch."""

    def on(self: AnyLauncher, variant: str | None = None, **device: int) -> AnyLauncher:
        """The same on another device, or in another variant."""
        return replace(self, variant=variant or self.variant, device=replace(self.device, **device))

    def launch(
        self,
        source: str,
        entry: str,
        params: ctypes.Structure,
        buffers: Buffers,
    ) -> Result:
        """Calls an entry of a source's program.

        Args:
            source: name of the source.
            entry: name of an entry of the program.
            params: the entry's parameters; its pointers are set from ``buffers``.
            buffers: by the dotted name of the pointer in ``params``; ``None`` is null.

        Raises:
            LaunchError: the status is not 0.
            EmulatorError: the emulator or a sanitizer found a fault.
        """
        program = self.program(source, self.variant)
        result = replay(program, entry, params, buffers, self.device)
        self.last = result
        if result.status != 0:
            raise LaunchError(result.status)
        return result
