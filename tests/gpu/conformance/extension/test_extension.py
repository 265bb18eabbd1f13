"""The installed extension: what it needs from its process, what it holds, what torch sees of it.

This machine's nvcc compiles it. Without nvcc these tests are skipped, unless WAVALIGN_FORCE_CUDA
requires it, as in continuous integration.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from tests.gpu.conformance.extension.compiling import build_cuda, without_kernels
from tests.gpu.conformance.extension.test_bindings import CALLS
from wavalign_fast.ops import cuda

if build_cuda.find_nvcc() is None and not build_cuda.switched_on("WAVALIGN_FORCE_CUDA"):
    pytest.skip("no nvcc built the CUDA kernels", allow_module_level=True)

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
ARCHS = os.environ.get("WAVALIGN_CUDA_ARCHS") or build_cuda.DEFAULT_ARCHS


@pytest.fixture(scope="module")
def binary() -> Path:
    assert isinstance(cuda.EXTENSION, dict), cuda.EXTENSION
    import wavalign_fast._C_cuda as module

    return Path(module.__file__)


def symbols(path: Path, *options: str) -> set[str]:
    """Names in a dynamic symbol table, without their versions."""
    done = subprocess.run(["nm", "-D", *options, path], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def test_it_needs_no_cuda_of_torch(binary):
    """So one file loads under every build of torch."""
    done = subprocess.run(["readelf", "-d", binary], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.+?)\.so", done.stdout))
    runtime = {"libstdc++", "libgcc_s", "libc", "libm", "libdl", "librt", "libpthread"}
    assert needed <= {"libtorch", "libtorch_cpu", "libc10", "ld-linux-x86-64", *runtime}
    missing = symbols(binary, "--undefined-only")
    torch_api = {name for name in missing if name.startswith(("aoti_", "torch_"))}
    # Weak: null if torch has no CUDA part; otherwise libtorch loads it.
    torch_api.remove("aoti_torch_get_current_cuda_stream")
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    assert torch_api and torch_api <= symbols(library, "--defined-only")
    # Neither another C++ name of torch nor a CUDA runtime other than the one inside.
    assert not [
        name for name in missing if re.search(r"_ZNK?(2at|3c10|5torch)|^cu[A-Z]|^cuda", name)
    ]


def test_it_hands_out_nothing_but_its_module(binary):
    """The symbols of this CUDA runtime must not collide with those of another in the process."""
    exported = symbols(binary, "--defined-only")
    assert "PyInit__C_cuda" in exported
    assert not [name for name in exported if re.search(r"^cu|cuda[A-Z]|wavalign", name)]


def holds_code_for(path: Path, archs: str) -> None:
    """Asserts that a binary has machine code for each of ``archs``, and PTX where it is asked."""
    for option, suffix, wanted in (
        ("--list-elf", "cubin", {word.removesuffix("+PTX") for word in archs.split(";")}),
        ("--list-ptx", "ptx", {word[:-4] for word in archs.split(";") if word.endswith("+PTX")}),
    ):
        done = subprocess.run(
            [TOOLS / "cuobjdump", option, path], capture_output=True, text=True, check=True
        )
        # Some releases of the tool do not print the letter of 90a.
        assert {name.rstrip("af") for name in wanted} == {
            name.rstrip("af") for name in re.findall(rf"\.sm_(\w+)\.{suffix}", done.stdout)
        }


def test_it_holds_code_for_every_architecture(binary):
    assert set(cuda.EXTENSION["archs"].split(";")) == set(re.split(r"[;, ]", ARCHS))
    holds_code_for(binary, ARCHS)


def test_the_default_architectures_compile_together(tmp_path, monkeypatch):
    """CI builds the extension for one; tests/gpu/budgets/nvcc compiles each file for each."""
    monkeypatch.delenv("WAVALIGN_CUDA_ARCHS", raising=False)
    nvcc = build_cuda.find_nvcc()
    known = re.findall(r"sm_(\d+)", build_cuda.run([str(nvcc), "--list-gpu-code"]))
    archs = build_cuda.architectures(set(known))
    command = build_cuda.nvcc_command(nvcc, archs, threads=2, debug=False)
    build_cuda.run([*command, "-c", "csrc/cuda/status.cu", "-o", str(tmp_path / "status.o")])
    holds_code_for(tmp_path / "status.o", build_cuda.DEFAULT_ARCHS)


def test_torch_knows_the_schemas_of_this_source(binary):
    """A stale binary would have other schemas."""
    library = without_kernels()
    for name in CALLS:
        ours, source = (str(getattr(ops, name).default._schema) for ops in (cuda.OPS, library.ops))
        assert ours.partition("(")[2] == source.partition("(")[2]


@pytest.mark.parametrize("name", CALLS)
def test_an_op_has_a_fake_kernel_and_none_for_the_cpu(binary, name):
    op = getattr(cuda.OPS, name).default
    with pytest.raises(NotImplementedError, match="CPU"):
        op(**CALLS[name])
    on_gpu = {
        key: value.to("meta") if isinstance(value, torch.Tensor) else value
        for key, value in CALLS[name].items()
    }
    results = op(**on_gpu)
    results = results if isinstance(results, tuple | list) else [results]
    assert len(op._schema.returns) == len([result for result in results if result is not None])


def test_status_without_a_gpu(binary, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.status() == "there is no GPU that this torch sees"


@pytest.mark.parametrize(
    ("capability", "driver", "reason"),
    [
        ((9, 0), 13, None),
        ((8, 9), 14, None),
        ((7, 5), 13, "this GPU is of architecture 75: install again with WAVALIGN_CUDA_ARCHS"),
        ((9, 0), 12, "this driver serves up to CUDA 12: update it"),
    ],
)
def test_status_of_a_gpu(monkeypatch, capability, driver, reason):
    monkeypatch.setattr(cuda, "EXTENSION", {"cuda": "13.0", "archs": build_cuda.DEFAULT_ARCHS})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(cuda, "_driver_release", lambda: driver)
    cuda._device_status.cache_clear()
    said = cuda.status(torch.device("cuda", 1))
    cuda._device_status.cache_clear()
    assert said is None if reason is None else reason in said


def test_the_driver_is_asked_for_its_release(monkeypatch):
    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, version) -> int:
            version._obj.value = 12080
            return 0

    monkeypatch.setattr(cuda.ctypes, "CDLL", Driver)
    assert cuda._driver_release() == 12


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("80", (8, 6), True),
        ("86", (8, 0), False),
        ("80", (9, 0), False),
        ("80+PTX", (9, 0), True),
        ("90a", (9, 0), True),
        ("100a", (10, 3), False),
        ("100f", (10, 3), True),
        ("80;120", (12, 1), True),
        ("80;120+PTX", (10, 0), False),
    ],
)
def test_code_runs_where_cuda_says_it_does(archs, capability, runs):
    assert cuda.runs_on(archs, capability) is runs
