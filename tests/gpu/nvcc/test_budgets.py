"""What nvcc makes of the kernels: no warnings, no stack, and registers that are accounted for."""

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .compiled import (
    ARCHS,
    BUDGETS,
    UNAVAILABLE,
    Kernel,
    budgets,
    compile_all,
    demangled,
    release,
)

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
REGISTERS_OF_MULTIPROCESSOR = 65536
ROW_THREADS = 512
"""Of a block; two blocks are meant to be on a multiprocessor, so that one row is read while another
is written."""
SHARED_IN_PLAN = 512
"""Static bytes that plan_hybrid_rows counts with."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(scope="module")
def kernels(folder: Path) -> dict[str, list[Kernel]]:
    return compile_all(folder)


def test_no_kernel_has_a_stack(kernels: dict[str, list[Kernel]]) -> None:
    every = [(arch, kernel) for arch, found in kernels.items() for kernel in found]
    assert len(every) >= 30 * len(ARCHS)
    assert [(arch, k.name) for arch, k in every if k.stack or k.spilled] == []


def test_two_blocks_of_a_row_kernel_fit_on_a_multiprocessor(
    kernels: dict[str, list[Kernel]],
) -> None:
    for arch, found in kernels.items():
        rows = [k for k in found if k.name.startswith(("hybrid_rows", "row_"))]
        assert len(rows) == 17
        for kernel in rows:
            assert 2 * ROW_THREADS * kernel.registers <= REGISTERS_OF_MULTIPROCESSOR, (arch, kernel)
            assert kernel.shared <= SHARED_IN_PLAN, (arch, kernel)


def test_registers_are_as_written_down(kernels: dict[str, list[Kernel]]) -> None:
    wanted = BUDGETS.read_text(encoding="utf-8")
    if not wanted.startswith(f"nvcc {release()}:"):
        pytest.skip(f"the budgets are of another nvcc than {release()}")
    moved = difflib.unified_diff(
        wanted.splitlines(), budgets(kernels).splitlines(), "budgets.txt", "now", n=0, lineterm=""
    )
    assert not (diff := "\n".join(moved)), f"python -m tests.gpu.nvcc writes them anew\n{diff}"


def disassembled(cubin: Path) -> dict[str, str]:
    """The instructions of each kernel, by the disassembler that triton brings."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    found = str(tool) if tool.exists() else shutil.which("nvdisasm")
    if found is None:
        pytest.skip("needs nvdisasm")
    done = subprocess.run([found, "-c", str(cubin)], capture_output=True, text=True, check=True)
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+)", done.stdout, flags=re.MULTILINE)[1:]
    return {demangled(parts[i]): parts[i + 1] for i in range(0, len(parts), 2)}


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("source", ["hybrid_rows", "row_stats", "row_gradient"])
def test_logits_move_16_bytes_at_a_time(
    kernels: dict[str, list[Kernel]], folder: Path, source: str, arch: str
) -> None:
    code = disassembled(folder / f"{source}.{arch}.cubin")
    assert len(code) == sum(kernel.name.startswith(f"{source}<") for kernel in kernels[arch])
    for name, text in code.items():
        assert not re.search(r"\b(LDL|STL)\b", text), name
        loads = re.findall(r"\bLDG\.E\.128\b", text)
        if source == "row_gradient":
            # One unit of eight logits, its bias, and no more of either.
            assert len(loads) >= (2 if "<fp32" in name else 1) + 2, name
        else:
            # Four vectors of the sweep, each with its bias.
            assert len(loads) >= 8, name
        if source != "row_stats":
            assert re.search(r"\bSTG\.E\.128\b", text), name


def test_clusters_meet_twice(kernels: dict[str, list[Kernel]], folder: Path) -> None:
    for name, text in disassembled(folder / "hybrid_rows.90a.cubin").items():
        for half in ("UCGABAR_ARV", "UCGABAR_WAIT"):
            assert len(re.findall(rf"\b{half}\b", text)) == 2, name
    for text in disassembled(folder / "hybrid_rows.80.cubin").values():
        assert "UCGABAR" not in text
