"""Builds the replay program of one kernel source: the CUDA C++ of csrc/cuda compiled by g++."""

import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.build_once import build_once

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
UNAVAILABLE = (
    None
    if shutil.which("g++") and platform.machine() == "x86_64" and platform.system() == "Linux"
    else "needs g++ on x86-64 Linux"
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How the kernels are compiled, and what is compiled beside them."""

    kernels: tuple[str, ...]
    """Flags for the kernels."""
    others: tuple[str, ...]
    """Flags for the emulator and the replay."""
    link: tuple[str, ...] = ()
    accesses: str = "no_accesses.cpp"


ADDRESSES = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
VARIANTS = {
    "plain": Variant(kernels=("-O2",), others=("-O2",)),
    "addresses": Variant(
        kernels=("-O1", "-g1", *ADDRESSES), others=("-O1", *ADDRESSES), link=ADDRESSES
    ),
    # What the emulator does is no access of a kernel's: it is compiled without the sanitizer.
    "races": Variant(
        kernels=("-O1", "-g1", "-fsanitize=thread"),
        others=("-O1", "-DCUDA_ON_CPU_THREAD_SANITIZER"),
        link=("-fsanitize=thread",),
    ),
    # The same calls, answered by our own runtime.
    "accesses": Variant(
        kernels=("-O1", "-fsanitize=thread"), others=("-O2",), accesses="accesses.cpp"
    ),
}


@dataclass(frozen=True)
class Toolchain:
    """A folder of objects and programs; processes may share it."""

    folder: Path

    def program(self, source: str, variant: str) -> Path:
        """The replay program of ``csrc/cuda/<source>.cu``, or of one beside this file."""
        path = HERE / f"{source}.cu"
        path = path if path.exists() else CSRC / "cuda" / path.name
        chosen = VARIANTS[variant]
        emulator = [*(HERE / "emulator").glob("*.cpp")]
        emulator += [HERE / "replay" / "replay.cpp", HERE / "replay" / chosen.accesses]
        kernels = (f"-DSOURCE_{source}", *chosen.kernels)
        wanted = [(path, chosen.others, variant) for path in emulator]
        wanted += [
            (path, kernels, variant),
            (HERE / "replay" / "entries.cpp", (f"-DSOURCE_{source}", *chosen.others),
             f"{variant}.{source}"),
        ]  # fmt: skip
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda one: self._object(*one), wanted))
        command = ["g++", *chosen.link, *map(str, objects)]
        program = self.folder / f"{source}.{variant}"
        build_once(program, command)
        return program

    def _object(self, path: Path, flags: tuple[str, ...], group: str) -> Path:
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        command += ["-DWAVALIGN_CUDA_ON_CPU", f"-I{HERE}", f"-I{HERE / 'include'}", f"-I{CSRC}"]
        command += [*flags, "-c", "-x", "c++", str(path)]
        target = self.folder / f"{path.stem}.{group}.o"
        build_once(target, command)
        return target
