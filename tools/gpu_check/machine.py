"""The machine of a run: the GPU, its driver and clocks, and versions.

python -m tools.gpu_check.machine facts DIRECTORY      writes machine.json
python -m tools.gpu_check.machine archs                prints WAVALIGN_CUDA_ARCHS for this GPU
python -m tools.gpu_check.machine backends DIRECTORY   adds what was built, and which backends work
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import installed_version, machine
from tools.gpu_check import files

sys.path.insert(0, str(Path(__file__).parents[2] / "csrc"))

import build_cuda

PACKAGES = (
    "torch", "triton", "transformers", "numpy", "safetensors", "peft", "pytest", "pytest-xdist",
    "pytest-timeout", "hypothesis", "pydantic", "rich", "nvidia-ml-py", "setuptools",
    "liger-kernel", "cut-cross-entropy", "trl", "verl",
)  # fmt: skip
TOOLS = ("g++", "ninja", "nvcc", "compute-sanitizer", "ncu")
QUERY = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm",
    "clocks.max.mem", "power.limit", "ecc.mode.current", "mig.mode.current", "temperature.gpu",
)  # fmt: skip


def facts() -> dict[str, Any]:
    """Everything but the backends.

    Raises:
        RuntimeError: this torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU")
    return {
        "machine": machine("cuda"),
        "capability": list(torch.cuda.get_device_capability(0)),
        "nvidia_smi": nvidia_smi(),
        "nvcc": nvcc_release(),
        "tools": {name: shutil.which(name) is not None for name in TOOLS},
        "versions": {name: installed_version(name) for name in PACKAGES},
    }


def nvidia_smi() -> dict[str, str] | str:
    """Its answers for the first GPU, or why there are none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(QUERY):
        return f"nvidia-smi: exit code {done.returncode}: {(done.stdout + done.stderr).strip()}"
    return dict(zip(QUERY, values, strict=True))


def nvcc_release() -> str | None:
    """The release of nvcc; ``None`` without one, or if it fails, which the build will report."""
    nvcc = build_cuda.find_nvcc()
    try:
        return None if nvcc is None else build_cuda.nvcc_release(nvcc)
    except build_cuda.NoCudaError:
        return None


def archs(capability: tuple[int, int]) -> str:
    """WAVALIGN_CUDA_ARCHS for a GPU, with the letter that the defaults have for its major."""
    major, minor = capability
    default = re.search(rf"\b{major}\d([af])", build_cuda.DEFAULT_ARCHS)
    return f"{major}{minor}{default[1] if default else ''}"


def backends() -> dict[str, Any]:
    """What was built, and why each backend cannot run here; ``None`` where it can."""
    from wavalign_fast.ops import backend_status, cuda

    return {"built": cuda.EXTENSION, **backend_status()}


def main(command: str, directory: str = "") -> int:
    path = Path(directory) / "machine.json"
    if command == "facts":
        found = facts()
        files.write(path, found)
        for name, value in found.items():
            print(f"{name}: {value}")
    elif command == "archs":
        print(archs(torch.cuda.get_device_capability(0)))
    elif command == "backends":
        found = backends()
        files.write(path, files.read(path) | {"backends": found})
        print(f"backends: {found}")
    else:
        raise ValueError(f"command: got {command!r}, want facts, archs or backends")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"gpu_check: {error}")
