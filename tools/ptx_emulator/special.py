"""Special registers (PTX ISA, chapter 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .machine import Machine


def special_registers(m: Machine) -> dict[str, np.ndarray]:
    """uint32, of all lanes or without dimensions."""
    geometry = m.geometry
    number = m.block_numbers[m.block_of]
    result: dict[str, np.ndarray] = {
        "%laneid": m.thread % 32,
        "%warpid": m.thread // 32,
        "%nwarpid": np.array(geometry.warps),
        "%dynamic_smem_size": np.array(geometry.dynamic_shared),
        "%cluster_nctarank": np.array(geometry.cluster_blocks),
    }
    lane = (m.thread % 32).astype(np.int64)
    below = (1 << lane) - 1
    for name, mask in {
        "lt": below,
        "le": below | 1 << lane,
        "eq": 1 << lane,
        "ge": ~below,
        "gt": ~below ^ 1 << lane,
    }.items():
        result[f"%lanemask_{name}"] = mask & 0xFFFFFFFF
    rank, factor = np.zeros(m.lanes, np.int64), 1
    thread, rest = m.thread, number
    for axis, name in enumerate("xyz"):
        size, cluster = geometry.grid[axis], geometry.cluster[axis]
        block = rest % size
        result[f"%ctaid.{name}"] = block
        result[f"%nctaid.{name}"] = np.array(size)
        result[f"%clusterid.{name}"] = block // cluster
        result[f"%nclusterid.{name}"] = np.array(size // cluster)
        result[f"%cluster_ctaid.{name}"] = block % cluster
        result[f"%cluster_nctaid.{name}"] = np.array(cluster)
        result[f"%ntid.{name}"] = np.array(geometry.block[axis])
        result[f"%tid.{name}"] = thread % geometry.block[axis]
        rank, factor = rank + block % cluster * factor, factor * cluster
        thread, rest = thread // geometry.block[axis], rest // size
    result["%cluster_ctarank"] = rank
    return {name: value.astype(np.uint32) for name, value in result.items()}
