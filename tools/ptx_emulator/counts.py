"""What a launch did, counted exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SECTOR = 32
"""The fewest bytes that the memory system moves."""

SPECIAL_FUNCTIONS = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh")


@dataclass
class Counts:
    """Dynamic counts of a launch. They depend on the program and its data, not on the schedule
    (except for turns of a loop that polls), and say nothing about caches or time."""

    instructions: Counter[str] = field(default_factory=Counter)
    """Warp-instructions issued, by opcode, including those whose guard is false in every lane."""
    loaded_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes that threads asked for, by buffer, including asynchronous copies."""
    stored_bytes: Counter[str] = field(default_factory=Counter)
    load_sectors: Counter[str] = field(default_factory=Counter)
    """Distinct 32-byte sectors of each warp-instruction, summed, by buffer."""
    store_sectors: Counter[str] = field(default_factory=Counter)
    atomics: Counter[str] = field(default_factory=Counter)
    """Atomic operations of single threads on global memory, by buffer."""
    shared_wavefronts: int = 0
    """Passes of shared memory over its 32 banks, conflicts included."""
    shared_wavefronts_ideal: int = 0
    """The same without bank conflicts."""
    mma_flops: int = 0
    """Multiplications and additions of matrix instructions."""
    blocks: int = 0
    warps: int = 0

    @property
    def warp_instructions(self) -> int:
        return self.instructions.total()

    @property
    def special_functions(self) -> dict[str, int]:
        """Warp-instructions of the special function unit, by function."""
        result: Counter[str] = Counter()
        for opcode, count in self.instructions.items():
            parts = opcode.split(".")
            if parts[0] in SPECIAL_FUNCTIONS and "approx" in parts:
                result[parts[0]] += count
        return dict(result)

    def __add__(self, other: Counts) -> Counts:
        return self._with(other, 1)

    def __sub__(self, other: Counts) -> Counts:
        return self._with(other, -1)

    def __mul__(self, factor: int) -> Counts:
        return Counts()._with(self, factor)

    def _with(self, other: Counts, factor: int) -> Counts:
        """``self + factor * other``, field by field, without zeros: equal counts are equal."""
        result = Counts()
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if isinstance(mine, Counter):
                keys = mine.keys() | theirs.keys()
                sums = {key: mine[key] + factor * theirs[key] for key in keys}
                setattr(result, name, Counter({k: v for k, v in sums.items() if v}))
            else:
                setattr(result, name, mine + factor * theirs)
        return result

    def as_dict(self) -> dict[str, object]:
        """For JSON: every field, keys sorted, and the sums."""
        fields = {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }
        return fields | {
            "warp_instructions": self.warp_instructions,
            "special_functions": self.special_functions,
        }
