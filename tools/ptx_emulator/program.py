"""A parsed kernel: its instructions with their operands, its parameters and its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Register:
    name: str
    """Unique in the kernel: a register of an inner scope carries the scope's number."""


@dataclass(frozen=True)
class Negated:
    """A predicate read as its opposite, ``!%p``."""

    register: Register


@dataclass(frozen=True)
class Special:
    """A read-only register of the machine, ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A variable or parameter named in the program: as a value, its address."""

    name: str


@dataclass(frozen=True)
class Immediate:
    text: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``; tensor copies add coordinates, ``[base, {x, y}]``."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vector:
    """``{a, b, ...}``."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """Two results in one place, ``%p|%q``: ``None`` where one is dropped as ``_``."""

    first: Register | None
    second: Register | None


@dataclass(frozen=True)
class Sink:
    """``_``: a result that is dropped."""


Operand = Register | Negated | Special | Symbol | Immediate | Address | Vector | Pair | Sink


@dataclass(frozen=True, eq=False)
class Instruction:
    """One statement. Compared by identity, so that results derived from it can be cached."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    guard_negated: bool
    line: int
    """In the PTX text, from 1."""
    source: str
    """As it stands there, on one line."""
    origin: str
    """``file:line`` of the source that it was compiled from; empty where the PTX does not say."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.opcode.split("."))

    @cached_property
    def modifiers(self) -> frozenset[str]:
        return frozenset(self.parts[1:])

    @property
    def kind(self) -> str:
        """The last part, which for most instructions is the operand type."""
        return self.parts[-1]

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        text = self.source if len(self.source) <= 160 else self.source[:157] + "..."
        return f"PTX line {self.line}{origin}: {text}"


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    """The type of a scalar; ``bytes`` for a structure."""
    size: int


FIRST_SHARED = 1024
"""Shared addresses start here. On sm_90 the system reserves the first KiB; on every architecture
this makes the null address invalid."""


@dataclass(frozen=True)
class SharedLayout:
    """Where shared variables lie. The dynamic part starts at ``static_bytes``, rounded up."""

    offsets: Mapping[str, int]
    static_end: int
    dynamic_alignment: int

    @property
    def dynamic_start(self) -> int:
        return -(-self.static_end // self.dynamic_alignment) * self.dynamic_alignment


@dataclass(frozen=True)
class Kernel:
    name: str
    target: str
    """The architecture it was compiled for, ``sm_90a``."""
    parameters: tuple[Parameter, ...]
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]
    """Instruction number by unique label name; only labels that a branch names."""
    registers: Mapping[str, str]
    """Type by unique register name."""
    shared: SharedLayout
    local: Mapping[str, int]
    """Offset of each variable in a thread's own memory."""
    local_bytes: int
    directives: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Launch bounds such as ``reqntid``."""

    @cached_property
    def branch_targets(self) -> frozenset[int]:
        return frozenset(self.labels.values())
