"""Executes a kernel's instructions for all lanes of the blocks in flight."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from . import instructions  # noqa: F401  (enters all handlers in the table)
from .async_copies import AsyncCopies
from .barriers import Barriers
from .cluster import ClusterBarriers
from .collectives import group_size, required_lanes
from .counts import Counts
from .errors import EmulatorError, KernelFault, Unsupported
from .handlers import Handler, handler_of
from .mbarriers import Mbarriers
from .memory import GlobalMemory
from .program import FIRST_SHARED, Instruction, Kernel
from .races import Clocks, GlobalRaces, SharedRaces
from .schedule import Scheduler
from .shared import SharedMemory
from .special import special_registers
from .step import Step
from .tensor_copies import TensorMaps
from .values import Registers, reason
from .warpgroup import WarpgroupProducts

if TYPE_CHECKING:
    from .launch import Conditions, Geometry


class Machine:
    """The state of the blocks in flight.

    A lane is a thread: lane ``(b * warps + w) * 32 + i`` is thread ``32 w + i`` of the b-th block.
    """

    def __init__(
        self,
        kernel: Kernel,
        geometry: Geometry,
        memory: GlobalMemory,
        conditions: Conditions,
        parameters: dict[str, np.ndarray],
        block_numbers: np.ndarray,
        global_races: GlobalRaces | None,
    ) -> None:
        self.kernel = kernel
        self.geometry = geometry
        self.memory = memory
        self.conditions = conditions
        self.parameters = parameters
        self.block_numbers = block_numbers
        self.blocks = len(block_numbers)
        self.block_lanes = geometry.warps * 32
        self.lanes = self.blocks * self.block_lanes
        self.block_of = np.repeat(np.arange(self.blocks), self.block_lanes)
        self.thread = np.tile(np.arange(self.block_lanes), self.blocks)
        self.warp_of = np.arange(self.lanes) // 32
        self.alive = self.thread < geometry.threads
        self.pc = np.zeros(self.lanes, np.int32)
        self.parked = np.zeros(self.lanes, bool)
        """Lanes at a collective instruction whose other lanes have not come yet."""
        self.registers = Registers(dict(kernel.registers), self.lanes)
        self.specials = special_registers(self)
        self.shared = SharedMemory(
            self.blocks,
            start=FIRST_SHARED,
            end=kernel.shared.dynamic_start + geometry.dynamic_shared,
        )
        self.local = np.zeros((self.lanes, kernel.local_bytes), np.uint8)
        self.barriers = Barriers(self)
        self.cluster = ClusterBarriers(self)
        self.copies = AsyncCopies(self)
        self.mbarriers = Mbarriers(self)
        self.products = WarpgroupProducts(self)
        self.tensor_maps = TensorMaps()
        self.clocks = Clocks(self) if conditions.races else None
        self.races = SharedRaces(self, self.clocks.columns) if self.clocks else None
        self.global_races = global_races
        self.scheduler = Scheduler(self, conditions.order)
        self.counts = Counts(blocks=self.blocks, warps=self.blocks * geometry.warps)
        self._executed = [0] * len(kernel.instructions)
        self._handlers: dict[Instruction, tuple[Handler, int]] = {}

    def run(self) -> Counts:
        with np.errstate(all="ignore"):
            while (lanes := self.scheduler.next()) is not None:
                self._run_straight(lanes)
        opcodes: Counter[str] = Counter()
        for ins, times in zip(self.kernel.instructions, self._executed, strict=True):
            if times:
                opcodes[ins.opcode] += times
        self.counts.instructions = opcodes
        return self.counts

    def _run_straight(self, mask: np.ndarray) -> None:
        """Runs lanes that stand at one instruction to the next branch, target or barrier."""
        number = first = int(self.pc[np.argmax(mask)])
        program, targets = self.kernel.instructions, self.kernel.branch_targets
        warps, full = self._extent(mask)
        while number < len(program):
            if number != first and number in targets:
                self.pc[mask] = number
                return
            ins = program[number]
            self._executed[number] += warps
            active, all_active = self._guarded(ins, mask, full)
            if all_active is not None:
                handler, group = self._decode(ins)
                if group:
                    ready = self._gathered(ins, number, mask, active, group)
                    if ready is None:
                        return
                    if ready is not active:
                        mask = active = ready
                        warps, full = self._extent(mask)
                        all_active = full
                step = Step(self, ins, number, mask, active, all_active)
                if self._execute(handler, step):
                    return
            number += 1
        self.alive[mask] = False

    def _extent(self, mask: np.ndarray) -> tuple[int, bool]:
        """How many warps take part, and whether all lanes do."""
        return int(mask.reshape(-1, 32).any(1).sum()), bool(mask.all())

    def _guarded(
        self, ins: Instruction, mask: np.ndarray, full: bool
    ) -> tuple[np.ndarray, bool | None]:
        """The lanes whose guard holds, and whether these are all; ``None`` if there are none."""
        if ins.guard is None:
            return mask, full
        condition, undefined = self.registers.read(ins.guard.name)
        if undefined is not None and (wrong := mask & (undefined != 0)).any():
            lane = int(np.argmax(wrong))
            raise KernelFault(
                f"the condition comes from {reason(int(undefined[lane]))} [{self.place(lane)}]"
                f"\n  {ins}"
            )
        active = mask & ~condition if ins.guard_negated else mask & condition
        if not active.any():
            return active, None
        return active, full and bool(active.all())

    def _decode(self, ins: Instruction) -> tuple[Handler, int]:
        found = self._handlers.get(ins)
        if found is None:
            found = self._handlers[ins] = (handler_of(ins), group_size(ins))
        return found

    def _execute(self, handler: Handler, step: Step) -> bool | None:
        try:
            return handler(step)
        except EmulatorError:
            raise
        except Exception as error:
            raise Unsupported(f"{error!r} while executing\n  {step.instruction}") from error

    def _gathered(
        self, ins: Instruction, number: int, mask: np.ndarray, active: np.ndarray, group: int
    ) -> np.ndarray | None:
        """The lanes that can execute a collective instruction now; the others are parked at it.

        All lanes that take part must arrive before any executes it. They arrive at different times
        after diverging branches, or where the schedule lets warps run apart.
        """
        needed = required_lanes(self, ins, active, group)
        if not (needed & ~active).any():
            return active
        self.pc[mask] = number + 1
        self.pc[active] = number
        self.parked |= active
        here = self.parked & (self.pc == number)
        needed = required_lanes(self, ins, here, group)
        missing = (needed & ~here).reshape(-1, group).any(1)
        ready = here & np.repeat(~missing, group)
        self.parked &= ~ready
        return ready if ready.any() else None

    def special(self, name: str) -> np.ndarray:
        if name not in self.specials:
            raise Unsupported(f"the special register {name} is not known to the emulator")
        return self.specials[name]

    def address_of(self, symbol: str) -> int:
        for table in (self.kernel.shared.offsets, self.kernel.local):
            if symbol in table:
                return table[symbol]
        names = list(self.parameters)
        if symbol in names:
            return names.index(symbol) << 16
        raise Unsupported(f"the variable {symbol} is not known to the emulator")

    def parameter_at(self, index: int) -> str:
        """The parameter whose address, as ``address_of`` gives it, starts with this number."""
        return list(self.parameters)[index]

    def uncount(self, step: Step) -> None:
        """The lanes will come to this instruction again: it counts once."""
        self._executed[step.number] -= self._extent(step.arrived)[0]

    def expand(self, step: Step, values: np.ndarray) -> np.ndarray:
        """Values of the active lanes as an array of all lanes."""
        if step.full:
            return np.ascontiguousarray(values)
        result = np.zeros(self.lanes, values.dtype)
        result[step.mask] = values
        return result

    def place(self, lane: int) -> str:
        """The thread of a lane, for messages."""
        number = int(self.block_numbers[self.block_of[lane]])
        return f"block {number}, thread {int(self.thread[lane])}"
