"""One instruction executed by some lanes: its operands in, its results out."""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from .errors import KernelFault, Unsupported
from .program import Immediate, Instruction, Negated, Operand, Register, Sink, Special, Symbol
from .values import DTYPES, UNSIGNED, fit, reason

if TYPE_CHECKING:
    from .machine import Machine


@cache
def immediate(text: str, kind: str) -> np.ndarray:
    """A constant of the program as a value of type ``kind``, without dimensions."""
    dtype = DTYPES[kind]
    if text[:2] in ("0f", "0F", "0d", "0D"):
        bits = int(text[2:], 16)
        source = UNSIGNED[4 if text[1] in "fF" else 8]
        if source.itemsize != dtype.itemsize:
            raise Unsupported(f"the constant {text} as .{kind}")
        return np.array(bits, source).view(dtype)
    value = int(text.rstrip("U"), 0)
    if dtype == np.bool_:
        return np.array(bool(value))
    bits = value & ((1 << 8 * dtype.itemsize) - 1)
    return np.array(bits, UNSIGNED[dtype.itemsize]).view(dtype)


class Step:
    """What an instruction's handler works with.

    Values are arrays of all lanes, or have no dimensions where every lane has the same value; only
    the lanes of ``mask`` count. A write is undefined in the lanes in which anything read before it
    was. Handlers for which that is too coarse (a selection, a shuffle) use ``undefined``.
    """

    def __init__(
        self,
        machine: Machine,
        instruction: Instruction,
        number: int,
        arrived: np.ndarray,
        mask: np.ndarray,
        full: bool,
    ) -> None:
        self.machine = machine
        self.instruction = instruction
        self.number = number
        self.arrived = arrived
        """All lanes at the instruction; ``mask`` are those whose guard holds."""
        self.mask = mask
        self.full = full
        self.undefined: np.ndarray | None = None

    def read(self, operand: Operand, kind: str) -> np.ndarray:
        value, undefined = self.read_apart(operand, kind)
        if undefined is not None:
            self.note(undefined)
        return value

    def read_apart(self, operand: Operand, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
        """A value, and where it is undefined; the read is not noted."""
        if isinstance(operand, Register):
            bits, undefined = self.machine.registers.read(operand.name)
            if undefined is not None:
                undefined = np.where(self.mask, undefined, 0)
                undefined = undefined if undefined.any() else None
            dtype = DTYPES[kind]
            if bits.dtype == np.bool_ or bits.dtype.itemsize == dtype.itemsize:
                return bits.view(dtype), undefined
            # Sources may be wider than the type (they are cut), and narrower in moves.
            return bits.astype(UNSIGNED[dtype.itemsize]).view(dtype), undefined
        if isinstance(operand, Immediate):
            return immediate(operand.text, kind), None
        if isinstance(operand, Special):
            return fit(self.machine.special(operand.name), UNSIGNED[DTYPES[kind].itemsize]).view(
                DTYPES[kind]
            ), None
        if isinstance(operand, Symbol):
            return immediate(str(self.machine.address_of(operand.name)), kind), None
        if isinstance(operand, Negated):
            value, undefined = self.read_apart(operand.register, "pred")
            return ~value, undefined
        raise Unsupported(f"{self.instruction}: {operand} as a value")

    def note(self, undefined: np.ndarray) -> None:
        if self.undefined is None:
            self.undefined = undefined
        else:
            self.undefined = np.maximum(self.undefined, undefined)

    def write(self, operand: Operand, value: np.ndarray) -> None:
        self.write_apart(operand, value, self.undefined)

    def write_apart(
        self, operand: Operand, value: np.ndarray, undefined: np.ndarray | None
    ) -> None:
        """Writes a value that is undefined only where it says so, whatever was read."""
        if isinstance(operand, Sink):
            return
        if not isinstance(operand, Register):
            raise Unsupported(f"{self.instruction}: {operand} as a result")
        self.machine.registers.write(operand.name, value, undefined, self.mask, self.full)

    def require_defined(self, what: str) -> None:
        """Raises if anything read so far is undefined: it is about to decide something."""
        if self.undefined is not None:
            lane = int(np.argmax(np.where(self.mask, self.undefined, 0)))
            raise self.fault(f"{what} comes from {reason(int(self.undefined[lane]))}", lane)

    def spread(self, value: np.ndarray) -> np.ndarray:
        """As an array of all lanes."""
        return value if np.ndim(value) else np.broadcast_to(value, self.mask.shape)

    def uniform(self, operand: Operand, kind: str) -> int:
        """A value that all lanes must agree on."""
        value = self.spread(self.read(operand, kind))[self.mask]
        self.require_defined("an operand that all threads share")
        if (value != value[0]).any():
            raise self.fault("threads disagree on an operand that they must share")
        return int(value[0])

    def proceed(self) -> bool:
        """Moves all lanes to the next instruction; the scheduler decides who runs then."""
        self.machine.pc[self.arrived] = self.number + 1
        return True

    @cached_property
    def active(self) -> np.ndarray:
        """The numbers of the lanes of ``mask``."""
        return np.nonzero(self.mask)[0]

    def fault(self, message: str, lane: int | None = None) -> KernelFault:
        where = f" [{self.machine.place(lane)}]" if lane is not None else ""
        return KernelFault(f"{message}{where}\n  {self.instruction}")

    def unsupported(self, message: str = "this instruction") -> Unsupported:
        return Unsupported(f"{message} is not known to the emulator\n  {self.instruction}")
