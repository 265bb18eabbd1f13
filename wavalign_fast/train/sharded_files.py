"""Tensors that several ranks write and read together, in the files of torch's DCP.

Each rank writes its shards to files of its own, and ``.metadata`` says where each piece of each
tensor is, so that any number of ranks can read them. torch unpickles ``.metadata`` without a check;
here it may only hold DCP's own classes, for a checkpoint is data and no code of it is run.
"""

import os
import pathlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from wavalign_fast.errors import DamagedFileError, described, one_line

METADATA_FILE = ".metadata"


class PartError(OSError):
    """A rank could not write or read its part; raised on every rank, naming that rank."""


def save_tensors(
    directory: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> None:
    """Writes ``tensors`` into the new ``directory`` and flushes the files; every rank calls it.

    A DTensor is written in shards, each by one rank, any other tensor by one of the ranks.

    Raises:
        PartError: on every rank, if one could not write.
    """
    with _naming_the_rank(), _of_one_process():
        save(dict(tensors), storage_writer=FileSystemWriter(directory), process_group=group)


def load_tensors(directory: Path, tensors: Mapping[str, Tensor], *, alone: bool = False) -> None:
    """Fills ``tensors`` in place from the files in ``directory``; every rank calls it.

    A rank reads only what its shards need. Names and shapes must be those of the files.

    Args:
        alone: only this rank calls it.

    Raises:
        PartError: on every rank, if one could not read.
    """
    with _naming_the_rank(), _of_one_process():
        load(dict(tensors), storage_reader=_Reader(directory), no_dist=alone)


def saved_tensors(directory: Path) -> dict[str, Tensor]:
    """Returns a tensor without values (on "meta") for each one in ``directory``, by name.

    Raises:
        DamagedFileError: ``.metadata`` cannot be read, or a file is missing or too short.
    """
    metadata = _read_metadata(directory)
    ends: dict[str, int] = {}
    for info in metadata.storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        file = directory / name
        if not file.is_file():
            raise DamagedFileError(f"{file} is missing")
        if file.stat().st_size < end:
            raise DamagedFileError(
                f"{file} has {file.stat().st_size} bytes, wanted {end}: it is truncated"
            )
    found = {}
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise DamagedFileError(f"{directory}: {name} is {type(entry).__name__}, wanted tensors")
        found[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return found


def _read_metadata(directory: Path) -> Metadata:
    path = directory / METADATA_FILE
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
    except Exception as error:  # pickle raises many types for a bad file
        raise DamagedFileError(f"{path} cannot be read: {described(error)}") from error
    if not isinstance(metadata, Metadata):
        raise DamagedFileError(f"{path}: {type(metadata).__name__} found, wanted DCP's Metadata")
    return metadata


class _Unpickler(pickle.Unpickler):
    """Knows the classes that DCP writes into ``.metadata``, and refuses any other."""

    MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

    def find_class(self, module: str, name: str) -> Any:
        """Returns the class or function ``module.name`` if it is harmless."""
        if module.partition(".")[0] == "pathlib":  # it moved to pathlib._local in Python 3.13
            return pathlib.PurePosixPath
        if (module, name) == ("torch.serialization", "_get_layout"):
            return super().find_class(module, name)
        if module == "torch" and (name == "Size" or isinstance(_of_torch(name), torch.dtype)):
            return _of_torch(name)
        if module in self.MODULES:
            found = super().find_class(module, name)
            # The modules also hold what they import, such as os.
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which DCP's metadata does not")


def _of_torch(name: str) -> Any:
    return getattr(torch, name, None)


class _Reader(FileSystemReader):
    """Reads ``.metadata`` with the unpickler above; tensors are read with ``weights_only``."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Returns the metadata of the checkpoint."""
        metadata = _read_metadata(Path(os.fspath(self.path)))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata


@contextmanager
def _of_one_process() -> Iterator[None]:
    """Silences DCP's warning that one process alone writes or reads; that is what is asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def _naming_the_rank() -> Iterator[None]:
    """Turns DCP's exception, which is no ``Exception`` and shows tracebacks, into one line."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise PartError(f"rank {rank}: {one_line(cause)}") from error
