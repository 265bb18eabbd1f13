"""Builds the sdist, a wheel for CPUs and, where there is an nvcc, one with CUDA kernels, in dist/.

    python tools/build_wheels.py [--output dist] [--cpu-only]

It needs what an editable install needs: torch, setuptools, build and ninja in this environment. The
wheels are built from the unpacked sdist. Their local version names the torch they were built with,
because the C++ kernels serve that release alone (2.13 and 2.13.1 are one release), and the CUDA
release: ``0.2.0+torch2.13.cpu``, ``0.2.0+torch2.13.cu130``. `_host`, which packs and interleaves,
serves this Python alone; another one takes its plain Python twin. The rest serves Python 3.10 up.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "csrc"))

from build_cuda import find_nvcc, nvcc_release  # noqa: E402

KERNELS = ("_C.", "_host.", "_C_cuda.")


def run_build(source: Path, output: Path, kind: str, **env: str) -> Path:
    """The file that ``python -m build --KIND`` makes of ``source``."""
    before = set(output.glob("*"))
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation"]
    done = subprocess.run(
        [*command, "--outdir", str(output), str(source)],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    made = set(output.glob("*")) - before
    if done.returncode or len(made) != 1:
        sys.exit(f"{done.stdout}\n{' '.join(command)} failed, or its file was in {output} before")
    return made.pop()


def build_wheel(source: Path, output: Path, cuda_release: str | None) -> Path:
    """A wheel of the unpacked sdist; without ``cuda_release`` it has no CUDA kernels.

    Exits with a message if the wheel lacks kernels, which a build without a compiler allows.
    """
    release = ".".join(torch.__version__.split(".")[:2])
    kernels = "cpu" if cuda_release is None else "cu" + cuda_release.replace(".", "")
    with tempfile.TemporaryDirectory() as folder:
        # setuptools reads this file on top of pyproject.toml.
        extra = Path(folder, "local_version.cfg")
        extra.write_text(f"[egg_info]\ntag_build = +torch{release}.{kernels}\n", encoding="utf-8")
        wanted = "WAVALIGN_SKIP_CUDA" if cuda_release is None else "WAVALIGN_FORCE_CUDA"
        env = {"DIST_EXTRA_CONFIG": str(extra), wanted: "1"}
        wheel = run_build(source, output, "wheel", **env)
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist()]
    for start in KERNELS if cuda_release is not None else KERNELS[:-1]:
        if not any(name.startswith(start) for name in names):
            sys.exit(f"{wheel} lacks {start}*: pip wheel -v shows why its build left it out")
    return wheel


def unpack(sdist: Path, folder: str) -> Path:
    with tarfile.open(sdist) as archive:
        # Python 3.11.2, in Debian 12, has no filters and ignores the attribute.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return next(Path(folder).iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR")
    parser.add_argument("--cpu-only", action="store_true", help="no wheel with CUDA kernels")
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        sys.exit(f"{output} is not empty: remove its files, or name another directory: --output")
    nvcc = None if arguments.cpu_only else find_nvcc()
    if nvcc is None and not arguments.cpu_only:
        print("No nvcc in CUDA_HOME, on the PATH or in /usr/local/cuda: no wheel with CUDA kernels")
    made = [run_build(ROOT, output, "sdist")]
    releases = [None] if nvcc is None else [None, nvcc_release(nvcc) or "?"]
    for cuda_release in releases:
        with tempfile.TemporaryDirectory() as folder:
            made.append(build_wheel(unpack(made[0], folder), output, cuda_release))
    for path in made:
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path}")


if __name__ == "__main__":
    main()
