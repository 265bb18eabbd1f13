"""Tiny PTX programs around the instructions under test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tools.ptx_emulator import (
    Buffer,
    Conditions,
    Counts,
    Geometry,
    GlobalMemory,
    Kernel,
    launch,
    parse,
)

BITS = {
    **{"8": 8, "16": 16, "32": 32, "64": 64},
    **{"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "tf32": 32, "f32": 32, "f64": 64},
}


def bits_of(kind: str) -> int:
    return BITS.get(kind) or BITS[kind[1:]]


def module(parameters: Sequence[str], body: str, *, target: str = "sm_90a") -> Kernel:
    """A kernel of one entry ``k`` with 64-bit parameters of these names."""
    listed = ", ".join(f".param .b64 {name}" for name in parameters)
    return parse(
        f".version 8.7\n.target {target}\n.address_size 64\n"
        f".visible .entry k({listed})\n{{\n{body}\nret;\n}}\n"
    )


@dataclass
class Ran:
    memory: GlobalMemory
    buffers: dict[str, Buffer]
    counts: Counts

    def __getitem__(self, name: str) -> np.ndarray:
        return self.buffers[name].array


def run(
    body: str,
    arrays: Mapping[str, np.ndarray],
    *,
    threads: int = 32,
    blocks: int = 1,
    cluster: int = 1,
    dynamic_shared: int = 0,
    conditions: Conditions | None = None,
    results: Sequence[str] = (),
    blocks_in_flight: int | None = None,
) -> Ran:
    """Runs ``body`` with a pointer parameter for each array; ``results`` start undefined."""
    memory = GlobalMemory()
    buffers = {
        name: memory.place(
            name, value, defined=np.zeros(value.shape, bool) if name in results else None
        )
        for name, value in arrays.items()
    }
    counts = launch(
        module(list(arrays), body),
        memory,
        list(buffers.values()),
        Geometry((blocks, 1, 1), (threads, 1, 1), (cluster, 1, 1), dynamic_shared),
        conditions,
        blocks_in_flight=blocks_in_flight,
    )
    return Ran(memory, buffers, counts)


def elementwise(
    instructions: str,
    out: tuple[str, np.dtype | type],
    conditions: Conditions | None = None,
    **inputs: tuple[str, np.ndarray],
) -> np.ndarray:
    """One thread an element: ``%out`` from the registers ``%<input>``.

    Args:
        instructions: PTX between the loads and the store.
        out: PTX type and numpy type of the result.
        conditions: of the launch.
        inputs: PTX type and values of each input.
    """
    kind, dtype = out
    size = len(next(iter(inputs.values()))[1])
    threads = -(-size // 32) * 32
    lines = [
        ".reg .b32 %t; .reg .pred %last; .reg .b64 %at, %by;",
        f"mov.u32 %t, %tid.x; setp.ge.u32 %last, %t, {size}; @%last ret;",
        f".reg .b{bits_of(kind)} %out;",
    ]
    for name, (its_kind, _) in inputs.items():
        bits = bits_of(its_kind)
        lines += [
            f".reg .b{bits} %{name};",
            f"ld.param.b64 %at, [{name}]; mul.wide.u32 %by, %t, {bits // 8};",
            f"add.s64 %at, %at, %by; ld.global.b{bits} %{name}, [%at];",
        ]
    lines += [
        f"{{ {instructions} }}",
        f"ld.param.b64 %at, [out]; mul.wide.u32 %by, %t, {bits_of(kind) // 8};",
        f"add.s64 %at, %at, %by; st.global.b{bits_of(kind)} [%at], %out;",
    ]
    arrays = {name: value for name, (_, value) in inputs.items()}
    arrays["out"] = np.zeros(size, dtype)
    return run("\n".join(lines), arrays, threads=threads, conditions=conditions)["out"]
