"""The safetensors files of a model directory, mapped into memory."""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.models.json_files import read_json

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def has_weight_files(directory: Path) -> bool:
    """Whether ``directory`` has weights in safetensors files."""
    return any((directory / name).is_file() for name in (ONE_FILE, INDEX))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weight_map(index: Path) -> dict[str, str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise DamagedFileError(f"{index} has no weight_map, wanted the file of each tensor")
    return files


class WeightFiles:
    """The safetensors files of a directory, opened once each.

    Raises:
        DamagedFileError: the index, or a file when it is first used, cannot be read.
        UserError: a file that the index names is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._opened: dict[str, Any] = {}
        self._file_of: dict[str, str] | None = None
        if not (directory / ONE_FILE).is_file() and (directory / INDEX).is_file():
            self._file_of = _weight_map(directory / INDEX)
        for file in self.files:
            if not (directory / file).is_file():
                raise UserError(f"weights in {directory}: the file {file} is missing")

    def __enter__(self) -> "WeightFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Names of all stored tensors."""
        return list(self._file_of or self._open(ONE_FILE).keys())

    @property
    def files(self) -> list[str]:
        """Names of the files with tensors."""
        return [ONE_FILE] if self._file_of is None else sorted(set(self._file_of.values()))

    def in_file(self, file: str) -> list[str]:
        """Names of the tensors in one of the files."""
        return [name for name in self.names if self._named(name) == file]

    def metadata(self, file: str) -> dict[str, str]:
        """What a file says of itself."""
        return dict(self._open(file).metadata() or {})

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a stored tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a stored tensor."""
        return self.tensor(name).dtype if not self.shape(name) else self.rows(name, 0, 0).dtype

    def check_dtypes(self, names: Iterable[str]) -> None:
        """Raises ``UserError`` if one of the stored tensors is quantized, and so no weight."""
        for name in names:
            if (found := self.dtype(name)) not in WEIGHT_DTYPES:
                wanted = ", ".join(_short(dtype) for dtype in WEIGHT_DTYPES)
                raise UserError(
                    f"weights in {self.directory}: {name} is {_short(found)}, wanted {wanted}; "
                    "quantized weights are not read"
                )

    def tensor(self, name: str) -> Tensor:
        """Reads a stored tensor."""
        tensor: Tensor = self._open(self._named(name)).get_tensor(name)
        return tensor

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Reads rows ``first`` to ``last`` of a stored tensor."""
        rows: Tensor = self._slice(name)[first:last]
        return rows

    def _slice(self, name: str) -> Any:
        return self._open(self._named(name)).get_slice(name)

    def _named(self, name: str) -> str:
        return ONE_FILE if self._file_of is None else self._file_of[name]

    def _open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._opened:
            try:
                opened = safe_open(self.directory / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise DamagedFileError(
                    f"{self.directory / file} cannot be read: {one_line(error)}"
                ) from error
            self._opened[file] = self._stack.enter_context(opened)
        return self._opened[file]
