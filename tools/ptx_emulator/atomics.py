"""Atomic operations (PTX ISA 9.7.13: atom, red)."""

import numpy as np

from .access import items_of, put_elements, take_elements
from .addressing import (
    addresses_of,
    by_space,
    global_pieces,
    require_writable,
    shared_places,
    space_of,
)
from .formats import FLOAT_KINDS, decode, encode
from .handlers import instruction
from .program import Operand
from .step import Step
from .values import DTYPES, UNSIGNED

_OPERATIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_KNOWN = frozenset(
    "global shared shared::cta relaxed acquire release acq_rel cta gpu sys cluster noftz"
    " v2 v4 v8 add min max and or xor exch cas inc dec L2::cache_hint".split()
)


def _updated(step: Step, old: np.ndarray, operands: list[np.ndarray]) -> np.ndarray:
    """New bits of each place from its old ones."""
    kind, modifiers = step.instruction.kind, step.instruction.modifiers
    if "cas" in modifiers:
        return np.where(old == operands[0], operands[1], old)
    (operand,) = operands
    if "exch" in modifiers:
        return operand
    if "inc" in modifiers:
        return np.where(old >= operand, 0, old + 1).astype(old.dtype)
    if "dec" in modifiers:
        return np.where((old == 0) | (old > operand), operand, old - 1).astype(old.dtype)
    function = next(_OPERATIONS[name] for name in modifiers if name in _OPERATIONS)
    if kind in FLOAT_KINDS:
        result = encode(function(decode(old, kind), decode(operand, kind)), kind)
    else:
        result = function(old.view(DTYPES[kind]), operand.view(DTYPES[kind]))
    return np.ascontiguousarray(result).view(old.dtype)


def _apply(
    step: Step, content: np.ndarray, places: np.ndarray, operands: list[np.ndarray]
) -> np.ndarray:
    """Updates places of ``content`` (of one element's type), lane by lane in some order, and gives
    each lane what it found. Under a random order of warps the order of the lanes is random too."""
    order = np.arange(len(places))
    seed = step.machine.conditions.order
    if seed is not None:
        order = np.random.default_rng([seed, step.number]).permutation(order)
    found = np.zeros(len(places), content.dtype)
    # Lanes at different places do not meet: each round takes the next lane of every place.
    sorted_places = places[order]
    by_place = np.argsort(sorted_places, kind="stable")
    grouped = sorted_places[by_place]
    starts = np.concatenate(([0], np.nonzero(np.diff(grouped))[0] + 1))
    round_of = np.arange(len(grouped)) - np.repeat(starts, np.diff([*starts, len(grouped)]))
    for turn in range(int(round_of.max()) + 1):
        lanes = order[by_place[round_of == turn]]
        there = places[lanes]
        found[lanes] = content[there]
        content[there] = _updated(step, content[there], [o[lanes] for o in operands])
    return found


@instruction("atom", modifiers=None)
def atom(step: Step) -> None:
    destination, target, *sources = step.instruction.operands
    found = _execute(step, target, sources)
    put_elements(step, destination, found, None)


@instruction("red", modifiers=None)
def red(step: Step) -> None:
    target, *sources = step.instruction.operands
    _execute(step, target, sources)


def _execute(step: Step, target: Operand, sources: list[Operand]) -> np.ndarray:
    ins = step.instruction
    if ins.modifiers - _KNOWN - DTYPES.keys():
        raise step.unsupported()
    if "L2::cache_hint" in ins.modifiers:
        sources = sources[:-1]
    width = DTYPES[ins.kind].itemsize
    operands = []
    for source in sources:
        bits, holes = take_elements(step, source, width)
        if holes is not None:
            step.note(step.machine.expand(step, holes.max(1)))
            step.require_defined("an operand of an atomic operation")
        operands.append(bits)
    addresses = addresses_of(step, target)
    count = len(items_of(sources[0]))
    found = np.zeros((len(addresses), count), UNSIGNED[width])
    for where, part in by_space(step, space_of(step), addresses):
        lanes = step.active[part]
        values = [o[part] for o in operands]
        if where == "global":
            found[part] = _on_global(step, lanes, addresses[part], values, width)
        elif where in ("shared", "cluster"):
            places = shared_places(
                step, lanes, addresses[part], width * count, cluster=where == "cluster"
            )
            if step.machine.races:
                step.machine.races.write(step, lanes, places, width * count, None)
            step.machine.counts.shared_wavefronts += len(lanes)
            step.machine.counts.shared_wavefronts_ideal += len(np.unique(places))
            memory = step.machine.shared
            found[part] = _elements(
                step, memory.content, memory.undefined, places, values, width, lanes
            )
        else:
            raise step.unsupported(f"an atomic operation on {where} memory")
    return found


def _on_global(
    step: Step, lanes: np.ndarray, addresses: np.ndarray, values: list[np.ndarray], width: int
) -> np.ndarray:
    m = step.machine
    count = values[0].shape[1]
    found = np.zeros((len(lanes), count), UNSIGNED[width])
    for piece in global_pieces(step, lanes, addresses, width * count, "atomic operation"):
        part = lanes[piece.lanes]
        require_writable(step, piece.buffer, int(part[0]))
        m.counts.atomics[piece.buffer.name] += len(part)
        if m.global_races:
            m.global_races.write(step, part, piece.buffer, piece.offsets, width * count, None)
        found[piece.lanes] = _elements(
            step,
            content=piece.buffer.content,
            undefined=piece.buffer.undefined,
            places=piece.offsets,
            values=[v[piece.lanes] for v in values],
            width=width,
            lanes=part,
        )
    return found


def _elements(
    step: Step,
    content: np.ndarray,
    undefined: np.ndarray | None,
    places: np.ndarray,
    values: list[np.ndarray],
    width: int,
    lanes: np.ndarray,
) -> np.ndarray:
    count = values[0].shape[1]
    typed = content.view(UNSIGNED[width])
    found = np.zeros((len(places), count), UNSIGNED[width])
    for element in range(count):
        index = places // width + element
        if undefined is not None and (holes := undefined.view(UNSIGNED[width])[index]).any():
            lane = int(lanes[int(np.argmax(holes != 0))])
            raise step.fault("an atomic operation on memory that holds nothing", lane)
        found[:, element] = _apply(step, typed, index, [v[:, element] for v in values])
    return found
