"""Exchange within a warp (PTX ISA 9.7.9: shfl, 9.7.13: vote, match, redux, elect)."""

import numpy as np

from .handlers import instruction
from .program import Operand, Pair
from .step import Step
from .values import DTYPES, Undefined


def _by_warp(step: Step, value: np.ndarray) -> np.ndarray:
    return step.spread(value).reshape(-1, 32)


@instruction("shfl", modifiers="sync up down bfly idx")
def shuffle(step: Step) -> None:
    destination, a, b, c, _ = step.instruction.operands
    mode = step.instruction.parts[2]
    value, undefined = step.read_apart(a, "b32")
    by, control = step.read(b, "u32").astype(np.int64), step.read(c, "u32").astype(np.int64)
    step.require_defined("the lane to read from")
    lane = step.machine.thread % 32
    segment, clamp = control >> 8 & 31, control & 31
    by = by & 31
    last = (lane & segment) | (clamp & ~segment)
    if mode == "up":
        source = lane - by
        inside = source >= last
    else:
        source = {
            "down": lane + by,
            "bfly": lane ^ by,
            "idx": (lane & segment) | (by & ~segment),
        }[mode]
        inside = source <= last
    source = np.arange(len(lane)) - lane + np.where(inside, source, lane)
    result = step.spread(value)[source]
    missing = np.where(step.mask, 0, np.uint8(Undefined.ABSENT_LANE))[source]
    if undefined is not None:
        missing = np.maximum(missing, undefined[source])
    missing = np.where(step.mask, missing, 0).astype(np.uint8)
    first: Operand | None = destination
    if isinstance(destination, Pair):
        first = destination.first
        if destination.second is not None:
            step.write_apart(destination.second, inside, None)
    if first is not None:
        step.write_apart(first, result, missing if missing.any() else None)


def _ballot(step: Step, flags: np.ndarray) -> np.ndarray:
    """One word for each warp: the bits of its active lanes."""
    bits = _by_warp(step, flags) & step.mask.reshape(-1, 32)
    return (bits.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)


@instruction("vote", modifiers="sync ballot any all uni")
def vote(step: Step) -> None:
    destination, source, _ = step.instruction.operands
    flags = step.read(source, "pred")
    step.require_defined("a vote")
    mode = step.instruction.parts[2]
    yes = np.repeat(_ballot(step, flags), 32)
    voters = np.repeat(_ballot(step, np.array(True)), 32)
    result = {
        "ballot": yes,
        "any": yes != 0,
        "all": yes == voters,
        "uni": (yes == voters) | (yes == 0),
    }[mode]
    step.write(destination, result)


@instruction("activemask")
def active_mask(step: Step) -> None:
    step.write(step.instruction.operands[0], np.repeat(_ballot(step, np.array(True)), 32))


@instruction("match", modifiers="sync any")
def match_any(step: Step) -> None:
    destination, source, _ = step.instruction.operands
    value = _by_warp(step, step.read(source, step.instruction.kind))
    step.require_defined("a value to match")
    same = (value[:, :, None] == value[:, None, :]) & step.mask.reshape(-1, 1, 32)
    words = (same.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(2)
    step.write(destination, words.astype(np.uint32).reshape(-1))


_REDUCE = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@instruction("redux", modifiers="sync add min max and or xor")
def reduce(step: Step) -> None:
    destination, source, _ = step.instruction.operands
    kind, function = step.instruction.kind, _REDUCE[step.instruction.parts[2]]
    value = _by_warp(step, step.read(source, kind))
    if step.undefined is not None:  # one undefined term makes the whole warp's result undefined
        step.undefined = np.repeat(step.undefined.reshape(-1, 32).max(1), 32)
    neutral = {"add": 0, "or": 0, "xor": 0, "and": -1}.get(step.instruction.parts[2])
    if neutral is None:
        limits = np.iinfo(DTYPES[kind])
        neutral = limits.max if function is np.minimum else limits.min
    term = np.where(step.mask.reshape(-1, 32), value, np.array(neutral).astype(DTYPES[kind]))
    step.write(destination, np.repeat(function.reduce(term, axis=1), 32).astype(DTYPES[kind]))


@instruction("elect", modifiers="sync")
def elect(step: Step) -> None:
    """Some lane is chosen; here the first, or under a random order any other."""
    destination, _ = step.instruction.operands
    lanes = step.mask.reshape(-1, 32)
    order = np.arange(32)
    if step.machine.conditions.order is not None:
        order = np.random.default_rng(step.machine.conditions.order).permutation(32)
    leader = np.where(lanes, order, 32).argmin(1)
    chosen = np.zeros(lanes.shape, bool)
    chosen[np.arange(len(lanes)), leader] = lanes.any(1)
    assert isinstance(destination, Pair)
    if destination.first is not None:
        step.write(destination.first, np.repeat(leader.astype(np.uint32), 32))
    if destination.second is not None:
        step.write(destination.second, chosen.reshape(-1))
