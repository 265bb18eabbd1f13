"""Types, registers and undefined values.

A register is an array with one element for each thread of the blocks in flight (a lane). Where
needed, a second array says why a lane's value is undefined. To read an undefined value is no fault,
because compilers hoist and speculate. To use it as an address or as a branch's condition, or to
store it to global memory, is a fault. Results of undefined values are undefined, as in Memcheck.
"""

import enum

import numpy as np

DTYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "pred": "?",
        **dict.fromkeys(("b8", "u8"), "u1"),
        **dict.fromkeys(("b16", "u16", "bf16"), "u2"),
        **dict.fromkeys(("b32", "u32", "f16x2", "bf16x2", "tf32"), "u4"),
        **dict.fromkeys(("b64", "u64"), "u8"),
        **{"s8": "i1", "s16": "i2", "s32": "i4", "s64": "i8"},
        **{"f16": "f2", "f32": "f4", "f64": "f8"},
    }.items()
}
"""The numpy type of the values of each PTX type; numpy has no bfloat16: it stays bits."""

UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


class Undefined(enum.IntEnum):
    """Why a value is undefined. Of two reasons the larger one is reported."""

    NO = 0
    REGISTER = 1
    SHARED = 2
    GLOBAL = 3
    ABSENT_LANE = 4
    IN_FLIGHT = 5

    @property
    def words(self) -> str:
        return {
            Undefined.NO: "a defined value",
            Undefined.REGISTER: "a register that was never written",
            Undefined.SHARED: "shared memory that was never written",
            Undefined.GLOBAL: "global memory that holds nothing (padding, or never written)",
            Undefined.ABSENT_LANE: "a lane that took no part in the exchange",
            Undefined.IN_FLIGHT: "the target of an asynchronous copy that was not waited for",
        }[self]


ACCUMULATING = np.uint8(0x80)
"""A flag beside the reason: a wgmma may still be writing this accumulator."""


def reason(code: int) -> str:
    if code & ACCUMULATING:
        return "an accumulator of a wgmma that was not waited for"
    return Undefined(code).words


class Registers:
    """All registers of all lanes. One that no instruction wrote takes no memory."""

    def __init__(self, kinds: dict[str, str], lanes: int) -> None:
        self.lanes = lanes
        # Register types only say how wide: any type of that size may be read from it.
        self.dtypes = {
            name: DTYPES[kind] if kind == "pred" else UNSIGNED[DTYPES[kind].itemsize]
            for name, kind in kinds.items()
        }
        self.bits: dict[str, np.ndarray] = {}
        self.undefined: dict[str, np.ndarray | None] = {}
        self._never = np.full(lanes, Undefined.REGISTER, np.uint8)
        self._never.flags.writeable = False

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """A register's bits, not to be written, and what is undefined about them."""
        bits = self.bits.get(name)
        if bits is None:
            return np.zeros(self.lanes, self.dtypes[name]), self._never
        return bits, self.undefined[name]

    def write(
        self,
        name: str,
        value: np.ndarray,
        undefined: np.ndarray | None,
        mask: np.ndarray,
        full: bool,
    ) -> None:
        """Writes the lanes of ``mask``; ``full`` says that these are all."""
        dtype = self.dtypes[name]
        value = fit(value, dtype)
        bits = self.bits.get(name)
        if bits is None:
            bits = self.bits[name] = np.zeros(self.lanes, dtype)
            self.undefined[name] = self._never
        before = self.undefined[name]
        if full:
            bits[...] = value
            self.undefined[name] = undefined
            return
        np.copyto(bits, value, where=mask)
        if before is None and undefined is None:
            return
        after = np.zeros(self.lanes, np.uint8) if before is None else before.copy()
        np.copyto(after, np.uint8(0) if undefined is None else undefined, where=mask)
        self.undefined[name] = after if after.any() else None


def fit(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``value`` as bits of a register: unchanged, extended by its sign or zeros, or truncated."""
    if value.dtype == dtype or dtype == np.bool_:
        return value
    if value.dtype.itemsize == dtype.itemsize:
        return value.view(dtype)
    if value.dtype.kind == "f":
        value = value.view(UNSIGNED[value.dtype.itemsize])
    return value.astype(dtype)
