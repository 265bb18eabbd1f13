"""The resources of a compiled kernel: registers, memory, instructions, occupancy."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

from .recording import Launch
from .targets import TARGETS, Target

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Resources(NamedTuple):
    """One kernel on one target, as the table of budgets holds it."""

    registers: int
    """32-bit registers of a thread."""
    spills: int
    """Bytes of stack and instructions that access it; on AMD, spilled registers."""
    shared: int
    """Bytes of shared memory of a program."""
    programs: int
    """Programs that fit on a multiprocessor or compute unit at once."""
    wide: int
    """Instructions that move 16 bytes per thread to or from global memory."""
    matrix: str
    """The instruction that multiplies matrices; empty if there is none."""


def resources(launch: Launch, target: str) -> Resources:
    if TARGETS[target].gpu.backend == "cuda":
        return _on_nvidia(launch, TARGETS[target])
    return _on_amd(launch, TARGETS[target])


def _on_nvidia(launch: Launch, target: Target) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "--dump-resource-usage", file.name)
        code = _output("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, stack = map(int, found.groups())
    pattern = r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)"
    operations = Counter(re.findall(pattern, code, re.MULTILINE))
    return Resources(
        registers=registers,
        spills=stack + _count(operations, r"(LDL|STL)\b"),
        shared=launch.metadata.shared,
        programs=_programs_on_nvidia(registers, launch, target),
        wide=_count(operations, r"(LDG|STG|LDGSTS)\..*128"),
        matrix=_most_common(operations, target.matrix),
    )


def _programs_on_nvidia(registers: int, launch: Launch, target: Target) -> int:
    """A warp gets registers in units of 256; four schedulers share warps; a block adds 1 KiB."""
    warps = launch.threads // 32
    a_warp = -(-registers * 32 // 256) * 256
    by_registers = 65_536 // 4 // a_warp * 4 // warps
    by_shared = target.shared_per_unit // (launch.metadata.shared + 1024)
    return min(by_registers, by_shared, target.threads_per_unit // launch.threads, 32)


def _on_amd(launch: Launch, target: Target) -> Resources:
    code = launch.asm["amdgcn"]
    registers = _amd_field(code, "vgpr_count") + _amd_field(code, "agpr_count")
    operations = Counter(re.findall(r"\b(v_\w+|buffer_\w+|global_\w+)", code))
    # 512 registers a lane on each of four SIMDs, in units of 8; at most 8 waves on one.
    waves = 4 * min(8, 512 // (-(-registers // 8) * 8))
    by_shared = target.shared_per_unit // max(launch.metadata.shared, 1)
    return Resources(
        registers=registers,
        spills=_amd_field(code, "vgpr_spill_count") + _amd_field(code, "sgpr_spill_count"),
        shared=launch.metadata.shared,
        programs=min(waves // (launch.threads // 64), by_shared),
        wide=_count(operations, r"(buffer|global)_(load|store)_dwordx4"),
        matrix=_most_common(operations, target.matrix),
    )


def _amd_field(code: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", code)
    assert found is not None, name
    return int(found.group(1))


def _count(operations: Counter[str], pattern: str) -> int:
    return sum(count for name, count in operations.items() if re.match(pattern, name))


def _most_common(operations: Counter[str], pattern: str) -> str:
    matching = [name for name, _ in operations.most_common() if re.match(pattern, name)]
    return matching[0] if matching else ""


def _output(tool: str, *args: str) -> str:
    done = subprocess.run([TOOLS / tool, *args], capture_output=True, text=True, check=True)
    return done.stdout
