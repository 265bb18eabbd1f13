"""Builds the program that replays cases of one CUDA source, with g++."""

import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.build_once import build_once

HERE = Path(__file__).parent
EMULATOR = tuple(sorted((HERE / "emulator").glob("*.cpp")))
INCLUDES = (HERE, HERE / "include")
"""For whatever runs on the emulator; the second one stands in for CUDA's headers."""
FLAGS = ("-std=c++17", "-Wno-unknown-pragmas", "-DWAVALIGN_CUDA_ON_CPU")
UNAVAILABLE = (
    None
    if shutil.which("g++") and platform.machine() == "x86_64" and platform.system() == "Linux"
    else "needs g++ on x86-64 Linux"
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How the kernels are compiled, and what is compiled with them."""

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
    # The emulator's accesses are not the kernel's, so it is compiled without the sanitizer.
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
    """Builds into a folder that processes may share."""

    folder: Path
    """Of objects and programs."""
    entries: Path
    """C++ that defines the entries of ``replay/entries.h``. It is compiled once for each CUDA
    source, with ``SOURCE_<name of the source>`` defined, and linked with that source only."""
    includes: tuple[Path, ...] = ()
    """Where the sources find their headers."""

    def program(self, source: Path, variant: str) -> Path:
        """The program that replays cases of a CUDA source.

        Args:
            source: the ``.cu`` file.
            variant: a key of ``VARIANTS``.
        """
        chosen = VARIANTS[variant]
        this_source = f"-DSOURCE_{source.stem}"
        tool = [*EMULATOR, HERE / "replay" / "replay.cpp", HERE / "replay" / chosen.accesses]
        wanted = [(path, chosen.others, variant) for path in tool]
        wanted += [
            (source, (this_source, *chosen.kernels), variant),
            (self.entries, (this_source, *chosen.others), f"{variant}.{source.stem}"),
        ]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda one: self._object(*one), wanted))
        program = self.folder / f"{source.stem}.{variant}"
        build_once(program, ["g++", *chosen.link, *map(str, objects)])
        return program

    def _object(self, path: Path, flags: tuple[str, ...], group: str) -> Path:
        command = ["g++", *FLAGS, "-Wall", "-Wextra", "-Werror"]
        command += [f"-I{folder}" for folder in (*INCLUDES, *self.includes)]
        command += [*flags, "-c", "-x", "c++", str(path)]
        target = self.folder / f"{path.stem}.{group}.o"
        build_once(target, command)
        return target
