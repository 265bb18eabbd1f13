"""The kernels as nvcc compiles them: no warnings, no stack, registers as written down."""

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.builds import session_folder
from tests.nvcc import RELEASE

from .compiled import (
    ARCHS,
    BUDGETS,
    SOURCES,
    UNAVAILABLE,
    budgets,
    compile_all,
    cubin,
    demangled,
    kernels_of,
)

pytestmark = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
REGISTERS_OF_MULTIPROCESSOR = 65536
ROW_THREADS = 512
"""The most for one block: a multiprocessor should hold two, so that it reads one row while it
writes another."""
SHARED_IN_PLAN = 512
"""Static bytes that plan_hybrid_rows assumes."""
ROW_SOURCES = ("hybrid_rows", "row_stats", "row_gradient")
KERNELS = {
    "compact_rows": 1,
    "gather_scatter": 5 + 9,
    "group_statistics": 2,
    "hybrid_rows": 10,
    "row_gradient": 5,
    "row_stats": 2,
    "scale": 3,
    "status": 0,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return session_folder(tmp_path_factory, "cubins")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_has_a_stack(folder: Path, source: str, arch: str) -> None:
    kernels = kernels_of(folder, source, arch)
    assert len(kernels) == KERNELS[source]
    assert [kernel for kernel in kernels if kernel.stack or kernel.spilled] == []


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", ROW_SOURCES)
def test_two_blocks_of_a_row_kernel_fit_on_a_multiprocessor(
    folder: Path, source: str, arch: str
) -> None:
    for kernel in kernels_of(folder, source, arch):
        assert 2 * ROW_THREADS * kernel.registers <= REGISTERS_OF_MULTIPROCESSOR, kernel
        assert kernel.shared <= SHARED_IN_PLAN, kernel


def test_registers_are_as_written_down(folder: Path) -> None:
    wanted = BUDGETS.read_text(encoding="utf-8")
    if not wanted.startswith(f"nvcc {RELEASE}:"):
        pytest.skip(f"the budgets are of another nvcc than {RELEASE}")
    moved = difflib.unified_diff(
        wanted.splitlines(),
        budgets(compile_all(folder)).splitlines(),
        "budgets.txt",
        "now",
        n=0,
        lineterm="",
    )
    assert not (diff := "\n".join(moved)), f"python -m tests.gpu.budgets.nvcc rewrites them\n{diff}"


def disassembled(folder: Path, source: str, arch: str) -> dict[str, str]:
    """The instructions of each kernel, from Triton's disassembler."""
    kernels_of(folder, source, arch)
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    found = str(tool) if tool.exists() else shutil.which("nvdisasm")
    if found is None:
        pytest.skip("needs nvdisasm")
    done = subprocess.run(
        [found, "-c", str(cubin(folder, source, arch))], capture_output=True, text=True, check=True
    )
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+)", done.stdout, flags=re.MULTILINE)[1:]
    return {demangled(parts[i]): parts[i + 1] for i in range(0, len(parts), 2)}


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("source", ROW_SOURCES)
def test_logits_move_16_bytes_at_a_time(folder: Path, source: str, arch: str) -> None:
    code = disassembled(folder, source, arch)
    assert len(code) == KERNELS[source]
    for name, text in code.items():
        loads = len(re.findall(r"\bLDG\.E\.128\b", text))
        if source == "row_gradient":
            # A unit of eight logits, and the bias of each.
            assert loads >= (4 if "<fp32" in name else 3), name
        else:
            # Four vectors of the sweep, and the bias of each logit in them.
            assert loads >= (8 if "<fp32" in name else 12), name
        if source != "row_stats":
            assert re.search(r"\bSTG\.E\.128\b", text), name


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_gradients_are_scaled_16_bytes_at_a_time(folder: Path, arch: str) -> None:
    for name, text in disassembled(folder, "scale", arch).items():
        for move in ("LDG", "STG"):
            assert len(re.findall(rf"\b{move}\.E\.128\b", text)) == 4, name


def test_clusters_meet_twice(folder: Path) -> None:
    for name, text in disassembled(folder, "hybrid_rows", "90a").items():
        for half in ("UCGABAR_ARV", "UCGABAR_WAIT"):
            assert len(re.findall(rf"\b{half}\b", text)) == 2, name
    for text in disassembled(folder, "hybrid_rows", "80").values():
        assert "UCGABAR" not in text
