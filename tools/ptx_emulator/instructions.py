"""Imports every module of instructions, which enter themselves in the table of handlers."""

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
