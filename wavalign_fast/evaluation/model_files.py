"""Tells model directories apart by what is in their files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.speech.file_digest import file_digest
from wavalign_fast.train.atomic_files import write_json

WEIGHTS = ("*.safetensors",)
OTHERS = ("*.json", "*.jinja", "*.model", "*.txt", "*.yaml", "*.mvn")
CACHE = "model_files.json"


class ModelFiles:
    """Hashes of a model's files; those of files that have not changed are remembered.

    Args:
        directory: of the model.
        cache: directory of the evaluation, in which the hashes are kept.
    """

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory = directory
        self._cache = cache / CACHE

    def digests(self) -> dict[str, str]:
        """Returns a digest of the weights, and one of the model's other files.

        Raises:
            UserError: there are no weights, or a file cannot be read.
        """
        known = self._known()
        weights, others = self._files(WEIGHTS), self._files(OTHERS)
        if not weights:
            raise UserError(f"--model: no weights in {self.directory}, wanted *.safetensors")
        try:
            found = {str(path): self._hashed(path, known) for path in (*weights, *others)}
        except OSError as error:
            raise UserError(f"--model: {one_line(error)}") from error
        write_json(self._cache, found)
        return {
            name: _joined(paths, found)
            for name, paths in (("weights", weights), ("model files", others))
        }

    def _files(self, patterns: Sequence[str]) -> list[Path]:
        return sorted(path for pattern in patterns for path in self.directory.glob(pattern))

    def _known(self) -> dict[str, list[object]]:
        try:
            value = json.loads(self._cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not made yet, or damaged: hash again
            return {}
        return value if isinstance(value, dict) else {}

    def _hashed(self, path: Path, known: dict[str, list[object]]) -> list[object]:
        info = path.stat()
        state: list[object] = [info.st_size, info.st_mtime_ns]
        before = known.get(str(path))
        if isinstance(before, list) and before[:2] == state:
            return before
        return [*state, file_digest(path).hex()]


def _joined(paths: Sequence[Path], hashes: dict[str, list[object]]) -> str:
    names = [f"{path.name} {hashes[str(path)][2]}" for path in paths]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
