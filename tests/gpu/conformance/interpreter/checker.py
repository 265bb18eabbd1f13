"""Finds accesses outside every tensor, and unordered accesses.

The interpreter runs one program after another, and every operation for all lanes at once. So a
kernel that depends on an order which a GPU does not guarantee gives right values here. The checker
looks at the addresses instead:

* **bounds**: each lane's bytes must lie in an element of a tensor that the launch was given. The
  gap between the rows of a strided tensor is outside.
* **races between programs**: no byte that one program writes may be touched by another.
* **races inside a program**: warps are not in step, so a byte that is written may not be touched
  by another lane between the same two barriers (``tl.debug_barrier``). Equal lanes of operations of
  the same size are taken for one thread. Reductions do not count as barriers, though they have one.

A load's lanes under a false mask without ``other`` are undefined on a GPU; here they hold NaN.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

EVERY_LANE = -1
"""The lane of a scalar, which all threads read or write."""


class Fault(Exception):
    """A kernel did something that it may not do."""


@dataclass(frozen=True)
class Region:
    """The bytes of one tensor: rows of ``width`` bytes, ``pitch`` apart."""

    name: str
    start: int
    rows: int
    pitch: int
    width: int

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> "Region":
        item = tensor.element_size()
        if tensor.is_contiguous():
            size = tensor.numel() * item
            return cls(name, tensor.data_ptr(), 1, size, size)
        if tensor.dim() == 2 and tensor.stride(1) == 1:
            rows, columns = tensor.shape
            return cls(name, tensor.data_ptr(), rows, tensor.stride(0) * item, columns * item)
        raise ValueError(f"{name}: rows of strides {tensor.stride()} are not known here")

    def holds(self, addresses: np.ndarray, size: int) -> np.ndarray:
        place = addresses - self.start
        inside = (place >= 0) & (place < (self.rows - 1) * self.pitch + self.width)
        return inside & (place % max(self.pitch, 1) + size <= self.width)


class Access(NamedTuple):
    """The bytes of one operation of one program."""

    writes: bool
    program: int
    epoch: int
    """Barriers that the program had passed."""
    addresses: np.ndarray
    lanes: np.ndarray
    size: int


@dataclass
class Launch:
    """The accesses of one launch so far."""

    kernel: str
    regions: list[Region]
    accesses: list[Access] = field(default_factory=list)
    program: int = -1
    place: tuple[int, ...] | None = None
    epoch: int = 0

    def enter(self, place: tuple[int, ...]) -> None:
        if place != self.place:
            self.place, self.program, self.epoch = place, self.program + 1, 0

    def touch(self, pointers: np.ndarray, mask: np.ndarray | None, size: int, writes: bool) -> None:
        addresses = pointers.reshape(-1).astype(np.int64)
        scalar = addresses.size == 1
        lanes = np.full(1, EVERY_LANE) if scalar else np.arange(addresses.size)
        if mask is not None:
            chosen = np.broadcast_to(mask, pointers.shape).reshape(-1).astype(bool)
            addresses, lanes = addresses[chosen], lanes[chosen]
        if addresses.size == 0:
            return
        self._check_bounds(addresses, size, writes)
        self.accesses.append(Access(writes, self.program, self.epoch, addresses, lanes, size))

    def _check_bounds(self, addresses: np.ndarray, size: int, writes: bool) -> None:
        known = np.zeros(addresses.shape, dtype=bool)
        for region in self.regions:
            known |= region.holds(addresses, size)
            if known.all():
                return
        stray = addresses[~known]
        name, distance = min(
            ((region.name, int(stray[0]) - region.start) for region in self.regions),
            key=lambda near: abs(near[1]),
        )
        raise Fault(
            f"{self.kernel}, program {self.place}: {'writes' if writes else 'reads'} outside every "
            f"tensor in {stray.size} of {addresses.size} lanes, first at byte {distance} of {name}"
        )

    def check_order(self) -> None:
        """Raises on the first byte that two programs or two lanes access without an order."""
        events = _events(self.accesses)
        if events is None:
            return
        byte, program, epoch, lane, writes = events
        for what, keys, other in (
            ("programs", (byte,), program),
            ("lanes of a program without a barrier between", (byte, program, epoch), lane),
        ):
            clash = _first_clash(keys, other, writes)
            if clash is not None:
                raise Fault(f"{self.kernel}: two {what} touch {self._name(clash)}, one writes")

    def _name(self, address: int) -> str:
        region = next(r for r in self.regions if r.holds(np.array([address]), 1)[0])
        row, column = divmod(address - region.start, max(region.pitch, 1))
        return f"byte {column} of row {row} of {region.name}"


def _events(accesses: list[Access]) -> tuple[np.ndarray, ...] | None:
    """Byte, program, epoch, lane and kind of each access to memory that some access writes."""
    written = [access for access in accesses if access.writes]
    if not written:
        return None
    low = min(int(access.addresses.min()) for access in written)
    high = max(int(access.addresses.max()) + access.size for access in written)
    columns = []
    for access in accesses:
        near = (access.addresses < high) & (access.addresses + access.size > low)
        if near.any():
            bytes_ = access.addresses[near][:, None] + np.arange(access.size)
            lanes = np.repeat(access.lanes[near], access.size)
            of_access = (access.program, access.epoch, access.writes)
            program, epoch, writes = (np.full_like(lanes, value) for value in of_access)
            columns.append((bytes_.reshape(-1), program, epoch, lanes, writes))
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


def _first_clash(keys: tuple[np.ndarray, ...], other: np.ndarray, writes: np.ndarray) -> int | None:
    """The first byte whose accesses have equal keys, include a write, and differ in ``other``."""
    order = np.lexsort(keys[::-1])
    ends = np.zeros(order.size, dtype=bool)
    for key in keys:
        ends[1:] |= key[order][1:] != key[order][:-1]
    starts = np.concatenate([[0], np.flatnonzero(ends)])
    least = np.minimum.reduceat(other[order], starts)
    most = np.maximum.reduceat(other[order], starts)
    clash = (least != most) & (np.maximum.reduceat(writes[order], starts) > 0)
    return int(keys[0][order][starts[clash]][0]) if clash.any() else None


_current: list[Launch] = []


def install() -> None:
    """Checks every launch of the process from now on."""
    InterpreterBuilder.create_masked_load = _load(InterpreterBuilder.create_masked_load)
    InterpreterBuilder.create_masked_store = _store(InterpreterBuilder.create_masked_store)
    InterpreterBuilder.create_barrier = _barrier
    InterpreterBuilder.create_atomic_rmw = InterpreterBuilder.create_atomic_cas = _atomic
    interpreter.GridExecutor.__call__ = _launch(interpreter.GridExecutor.__call__)


def _launch(original: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        known = {name: value for name, value in kwargs.items() if name in self.arg_names}
        values = inspect.getcallargs(self.fn, *args, **known)
        tensors = {n: v for n, v in values.items() if isinstance(v, torch.Tensor) and v.numel()}
        launch = Launch(self.fn.__name__, [Region.of(n, v) for n, v in tensors.items()])
        _current.append(launch)
        try:
            original(self, *args, **kwargs)
        finally:
            _current.pop()
        launch.check_order()

    return call


def _touch(builder: Any, pointers: Any, mask: Any, writes: bool) -> None:
    launch = _current[-1]
    launch.enter(builder.grid_idx)
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    launch.touch(np.asarray(pointers.data), None if mask is None else mask.data, size, writes)


def _load(original: Any) -> Any:
    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> TensorHandle:
        _touch(self, pointers, mask, writes=False)
        if other is None:
            kind = pointers.get_element_ty()
            numbers = interpreter._get_np_dtype(kind)
            poison = 0x7FC0 if kind == tl.bfloat16 else np.nan
            if not kind.is_floating():
                poison = np.iinfo(numbers).max if numbers != np.bool_ else True
            other = TensorHandle(np.full(np.shape(pointers.data), poison, dtype=numbers), kind)
        return original(self, pointers, mask, other, *rest)

    return load


def _store(original: Any) -> Any:
    def store(self: Any, pointers: Any, values: Any, mask: Any, *rest: Any) -> Any:
        _touch(self, pointers, mask, writes=True)
        return original(self, pointers, values, mask, *rest)

    return store


def _barrier(self: Any) -> None:
    launch = _current[-1]
    launch.enter(self.grid_idx)
    launch.epoch += 1


def _atomic(self: Any, *_: Any) -> None:
    raise Fault("atomic operations have no fixed order, and no kernel here uses them")
