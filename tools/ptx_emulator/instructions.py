"""Imports every module of instructions, so that they enter their handlers in the table."""

from . import (
    access,
    arithmetic,
    async_copies,
    atomics,
    barriers,
    cluster,
    control,
    exchange,
    integer,
    matrix,
    mbarriers,
    moves,
    tensor_copies,
    warpgroup,
)

__all__ = [
    "access",
    "arithmetic",
    "async_copies",
    "atomics",
    "barriers",
    "cluster",
    "control",
    "exchange",
    "integer",
    "matrix",
    "mbarriers",
    "moves",
    "tensor_copies",
    "warpgroup",
]
