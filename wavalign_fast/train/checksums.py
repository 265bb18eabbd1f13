"""Checksums of the files of a checkpoint: a disk that lost some of their bytes is found by name.

Sizes do not show it: a file system that comes back after a crash may give zeros for what it had not
written yet, and a resumed run would train on with weights of 0.
"""

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wavalign_fast.errors import DamagedFileError
from wavalign_fast.train.owned_files import checkpoint_contents

if TYPE_CHECKING:
    from wavalign_fast.train.ranks import Ranks

CHUNK = 1 << 20
PART = re.compile(r"__(\d+)_\d+\.distcp")
"""A file of DCP's, with the rank that has written it."""


def checksum(file: Path) -> str:
    """Returns the CRC-32 of the contents of ``file`` as eight hexadecimal digits."""
    total, buffer = 0, memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as content:
        while count := content.readinto(buffer):
            total = zlib.crc32(buffer[:count], total)
    return f"{total:08x}"


def checksums_of(directory: Path, ranks: "Ranks") -> dict[str, str]:
    """Returns the checksum of each file in ``directory`` by its path there; every rank calls it.

    A rank reads what it has just written, which its machine still has in memory.
    """
    own: dict[str, str] = {}
    with ranks.failing_together():
        for file in directory.rglob("*"):
            part = PART.fullmatch(file.name)
            if file.is_file() and ranks.rank == (int(part[1]) if part else 0):
                own[str(file.relative_to(directory))] = checksum(file)
    found: dict[str, str] = {}
    for of_rank in ranks.gather(own):
        found |= of_rank
    return found


def check_checksums(checkpoint: Path, ranks: "Ranks") -> None:
    """Reads the files of ``checkpoint``, each on one of the ranks; every rank calls it.

    A checkpoint of an earlier release has no checksums and is not checked.

    Raises:
        DamagedFileError: the contents of a file are not those that were saved; on every rank.
    """
    saved = checkpoint_contents(checkpoint).get("crc32")
    with ranks.failing_together():
        if isinstance(saved, Mapping):
            for name in sorted(saved)[ranks.rank :: ranks.world]:
                _check(checkpoint / name, saved[name])


def _check(file: Path, wanted: object) -> None:
    if not file.is_file():
        raise DamagedFileError(f"{file} is missing")
    if (found := checksum(file)) != wanted:
        raise DamagedFileError(
            f"{file} cannot be read: its contents are not those that were saved (CRC-32 {found}, "
            f"wanted {wanted})"
        )
