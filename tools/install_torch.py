"""Installs a release of torch without the libraries of CUDA: tools/install_torch.py torch==2.10.0

On Linux a plain torch is the build for GPUs. It cannot be imported without five gigabytes of CUDA
libraries, which a test on a CPU never calls. This script installs a stand-in for each library: it
defines the symbols that torch looks up, and a call of one aborts with a message. For tests only. A
build for CPUs stays as it is.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib import metadata
from pathlib import Path

# Version -> symbols; the version is "" where a library has none.
Names = dict[str, set[str]]

CUDA = re.compile(r"lib(cu|nv|nccl)(?!da\.)")
# These two stay real: they are small, and torch asks them at import whether there is a GPU.
REAL = {"cudart": "cuda-runtime", "cupti": "cuda-cupti"}


def pip_install(*arguments: str) -> None:
    quietly = ["--quiet", "--no-compile", "--no-warn-conflicts"]
    command = [sys.executable, "-m", "pip", "install", *quietly, *arguments]
    subprocess.run(command, check=True)


def small_requirements(requirements: list[str]) -> list[str]:
    """The requirements of torch without the libraries of CUDA, except ``REAL``, and without Triton,
    which the caller chooses."""
    chosen = []
    for requirement in requirements:
        name = re.split(r"[^\w-]", requirement)[0]
        if "extra ==" in requirement or name in ("triton", "cuda-bindings"):
            continue
        if name == "cuda-toolkit":
            chosen.append(re.sub(r"\[.*?\]", f"[{','.join(REAL)}]", requirement))
        elif not name.startswith("nvidia-") or any(real in name for real in REAL.values()):
            chosen.append(requirement)
    return chosen


def readelf(option: str, library: Path) -> str:
    command = ["readelf", "--wide", option, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wanted_names(libraries: list[Path]) -> dict[str, Names]:
    """CUDA library -> the symbols that ``libraries`` look up in it."""
    wanted: dict[str, Names] = {}
    owners: dict[str, str] = {}  # version -> library
    undefined: set[tuple[str, str]] = set()
    for library in libraries:
        for needed in re.findall(r"NEEDED.*\[(.+)\]", readelf("--dynamic", library)):
            if CUDA.match(needed) and not needed[3:].startswith(tuple(REAL)):
                wanted[needed] = defaultdict(set)
        files = re.findall(r"File: (\S+) .*\n((?:.* Name: .*\n)+)", readelf("-V", library))
        for owner, versions in files:
            owners |= dict.fromkeys(re.findall(r"Name: (\S+)", versions), owner)
        undefined |= set(re.findall(r" UND (\w+)(?:@(\S+))?", readelf("--dyn-syms", library)))
    for name, version in undefined:
        for library, names in wanted.items():
            # Symbols of a library without versions begin with its name: libnccl, ncclSend.
            stem = library[3:].split(".")[0].lower()
            if owners.get(version, "") == library or (
                not version and name.lower().startswith(stem)
            ):
                names[version].add(name)
    return wanted


def write_stand_in(target: Path, names: Names) -> None:
    source = ["#include <stdio.h>", "#include <stdlib.h>"]
    for name in sorted(set().union(*names.values())):
        message = f"{name} of {target.name}, which is a stand-in (tools/install_torch.py)\\n"
        source.append(f'void {name}(void) {{ fputs("call of {message}", stderr); abort(); }}')
    versions = [f"{v} {{ global: {'; '.join(sorted(names[v]))}; }};" for v in names if v]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "names.c").write_text("\n".join(source), encoding="utf-8")
        Path(folder, "versions").write_text("\n".join(versions), encoding="utf-8")
        script = ["-Wl,--version-script=versions"] if versions else []
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", *script]
        subprocess.run([*command, "-o", str(target), "names.c"], check=True, cwd=folder)


def main(torch: str) -> None:
    pip_install("--no-deps", torch)
    installed = metadata.distribution("torch")
    pip_install(*small_requirements(installed.requires or []))
    folder = Path(str(installed.locate_file("torch/lib")))
    libraries = sorted(folder.glob("*.so*"))
    for library, names in wanted_names(libraries).items():
        write_stand_in(folder / library, names)


if __name__ == "__main__":
    main(sys.argv[1])
