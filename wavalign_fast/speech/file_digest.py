"""Hashes files of any size."""

import hashlib
from pathlib import Path

PART = 1 << 20


def file_digest(path: Path) -> bytes:
    """Returns the SHA-256 of a file's bytes. Raises ``OSError``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART):
            digest.update(part)
    return digest.digest()
