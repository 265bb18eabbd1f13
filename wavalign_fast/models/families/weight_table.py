"""Where the files of a family have the weights of the native model.

One table serves reading, writing, and reading by shards. A native weight is whole rows of one
stored tensor, so a shard of its rows is a range of rows there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from wavalign_fast.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A native weight: rows of the tensor ``stored`` from ``first`` on."""

    stored: str
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class WeightTable:
    """Connects native names with stored ones, in both directions.

    Args:
        pieces: where each native weight is.
        shapes: the shape of each native weight.
        aside: stored tensors that the native model lacks and an export keeps; with their shapes,
            or ``None`` for any.
        aside_prefixes: begins of names that are kept too; none has to be there.

    Raises:
        ValueError: the table is wrong: pieces of a stored tensor leave a gap or overlap.
    """

    pieces: Mapping[str, Piece]
    shapes: Mapping[str, Shape]
    aside: Mapping[str, Shape | None] = field(default_factory=dict)
    aside_prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pieces.keys() != self.shapes.keys():
            names = sorted(self.pieces.keys() ^ self.shapes.keys())
            raise ValueError(f"weight table: {names} are in one of pieces and shapes only")
        for stored, names in self.parts.items():
            row = 0
            for name in names:
                if self.pieces[name].first != row:
                    raise ValueError(
                        f"weight table: {name} begins at row {self.pieces[name].first} of "
                        f"{stored}, wanted {row}"
                    )
                row += _rows(self.shapes[name])

    @cached_property
    def parts(self) -> dict[str, list[str]]:
        """The native weights that each stored tensor holds, in the order of their rows."""
        parts: dict[str, list[str]] = {}
        for name, piece in sorted(self.pieces.items(), key=lambda item: item[1].first):
            parts.setdefault(piece.stored, []).append(name)
        return parts

    def check(self, found: Mapping[str, Shape], where: str) -> None:
        """Raises ``UserError`` unless the stored tensors are the wanted ones, and lists the others.

        Args:
            found: the shape of each stored tensor.
            where: the directory, for the message.
        """
        wanted: dict[str, Shape | None] = {**self.aside}
        for stored, names in self.parts.items():
            rows = sum(_rows(self.shapes[name]) for name in names)
            shape = self.shapes[names[0]]
            wanted[stored] = (rows, *shape[1:]) if shape else shape
        faults = {
            "missing": [name for name in wanted if name not in found],
            "not known": [n for n in found if n not in wanted and not self.is_aside(n)],
            "of another shape": [
                f"{name} {found[name]} instead of {shape}"
                for name, shape in wanted.items()
                if shape is not None and found.get(name, shape) != shape
            ],
        }
        if any(faults.values()):
            listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
            raise UserError(f"weights in {where} do not fit its config.json: {listed}")

    def is_aside(self, stored: str) -> bool:
        """Whether a stored tensor is kept for the export only."""
        return stored in self.aside or stored.startswith(self.aside_prefixes)

    def read_rows(
        self, name: str, first: int, last: int, rows: Callable[[str, int, int], Tensor]
    ) -> Tensor:
        """Reads rows ``first`` to ``last`` of a native weight by ``rows(stored, first, last)``."""
        piece = self.pieces[name]
        return rows(piece.stored, piece.first + first, piece.first + last)

    def assemble(self, stored: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns the stored tensor that holds the native ``weights``."""
        parts = [weights[name] for name in self.parts[stored]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def same_names(shapes: Mapping[str, Shape], prefix: str = "") -> dict[str, Piece]:
    """Returns the pieces of a model that is stored under ``prefix`` and its native names."""
    return {name: Piece(prefix + name) for name in shapes}


def _rows(shape: Shape) -> int:
    return shape[0] if shape else 1


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
