"""Checks that all ranks train the same: configuration, directory, named files, data and weights.

Each machine reads its own files. Ranks that differ would sum gradients of different runs without an
error, or wait for each other in different places.
"""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.config.layers import leaves
from wavalign_fast.errors import UserError, shown
from wavalign_fast.train.checksums import checksum
from wavalign_fast.train.ranks import Ranks

SEEN_WITHIN_S = 35.0
"""An NFS client may trust an older listing of a directory for 30 s."""


def check_same_settings(settings: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
    """Raises ``UserError`` on every rank if the settings of each run are not those of rank 0."""
    first, *others = ranks.gather([dict(leaves(tree)) for tree in settings])
    with ranks.failing_together():
        for rank, other in enumerate(others, start=1):
            if len(other) != len(first):
                raise UserError(
                    f"{len(first)} runs on rank 0 and {len(other)} on rank {rank}; wanted the same "
                    "on every rank"
                )
            for ours, theirs in zip(first, other, strict=True):
                differing = (k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
                if (key := next(differing, None)) is not None:
                    raise UserError(
                        f"{key}: {shown(ours.get(key))} given on rank 0 and "
                        f"{shown(theirs.get(key))} on rank {rank}; wanted the same on every rank"
                    )


def check_shared(file: Path, ranks: Ranks) -> None:
    """Raises ``UserError`` on every rank unless all of them see ``file``, which rank 0 has made."""
    with ranks.waiting_for("the other ranks to see the run directory"), ranks.failing_together():
        end = time.monotonic() + SEEN_WITHIN_S
        while not file.exists():
            if time.monotonic() > end:
                raise UserError(
                    f"rank {ranks.rank} does not see {file.absolute()}, which rank 0 has made; "
                    "wanted a directory that all machines share (--output)"
                )
            time.sleep(0.1)


def check_same_files(settings: Sequence[Mapping[str, Any]], ranks: Ranks) -> None:
    """Raises ``UserError`` on every rank if a file that a setting names differs by rank.

    Such as a reward function, ``FILE.py:FUNCTION``. What only some ranks have is not compared:
    the main one alone evaluates, and what the others need they miss themselves.
    """
    if ranks.world == 1:
        return
    own: dict[str, tuple[str, str]] = {}
    with ranks.failing_together():
        for key, value in (leaf for tree in settings for leaf in leaves(tree)):
            for file in _files(value):
                own[f"{key}: {file}"] = str(file.absolute()), checksum(file)
    first, *others = ranks.gather(own)
    with ranks.failing_together():
        for rank, other in enumerate(others, start=1):
            for name in first.keys() & other.keys():
                if first[name][1] != other[name][1]:
                    raise UserError(
                        f"{name}: {first[name][0]} on rank 0 and {other[name][0]} on rank {rank} "
                        "differ in content; wanted the same file on every machine"
                    )


def _files(value: Any) -> list[Path]:
    """Returns the files that ``value`` or its items name, also before ``:FUNCTION``."""
    names = value if isinstance(value, list | tuple) else [value]
    found = []
    for name in names:
        if isinstance(name, str) and name:
            source, _, function = name.rpartition(":")
            file = Path(source if source and function.isidentifier() else name).expanduser()
            found += [file] if file.is_file() else []
    return found


def check_same_data(data: Mapping[str, Any], ranks: Ranks) -> None:
    """Raises ``UserError`` on every rank if the ranks have different training examples."""
    first, *others = ranks.gather(dict(data))
    with ranks.failing_together():
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise UserError(
                    f"training data: {first['examples']} examples on rank 0 and "
                    f"{other['examples']} on rank {rank}, contents differ; wanted the same files "
                    "on every machine"
                )


def check_same_weights(rows: Callable[[], Mapping[str, Tensor]], ranks: Ranks) -> None:
    """Raises ``UserError`` on every rank if the ranks start from different weights.

    Args:
        rows: returns one row of each weight, by name.
    """
    if ranks.world == 1:
        return
    own: dict[str, Any] = {}
    with ranks.failing_together():
        own = {name: _described(row) for name, row in rows().items()}
    first, *others = ranks.gather(own)
    with ranks.failing_together():
        for rank, other in enumerate(others, start=1):
            differing = (k for k in {**first, **other} if first.get(k) != other.get(k))
            if (name := next(differing, None)) is not None:
                raise UserError(
                    f"model: {name} on rank {rank} is not that on rank 0; wanted the same files on "
                    "every machine"
                )


def _described(row: Tensor) -> tuple[Any, ...]:
    values = row.detach().to("cpu", torch.float32).contiguous()
    return str(row.dtype), tuple(row.shape), zlib.crc32(values.numpy().tobytes())
