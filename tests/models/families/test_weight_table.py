"""A weight table connects native and stored names, and refuses by name what does not fit."""

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models.families.weight_table import Piece, WeightTable, same_names

SHAPES = {"q": (4, 3), "k": (2, 3), "v": (2, 3), "norm": (3,)}
PIECES = {
    "v": Piece("qkv", 6),
    "q": Piece("qkv", 0),
    "k": Piece("qkv", 4),
    "norm": Piece("own.norm"),
}
STORED = {"qkv": (8, 3), "own.norm": (3,), "extra": (5,)}


def table(**changes):
    return WeightTable(**({"pieces": PIECES, "shapes": SHAPES, "aside": {"extra": (5,)}} | changes))


def test_rows_are_read_where_they_are_stored_and_put_back_there():
    files = {"qkv": torch.randn(8, 3), "own.norm": torch.randn(3)}

    def rows(stored, first, last):
        return files[stored][first:last]

    weights = {name: table().read_rows(name, 0, shape[0], rows) for name, shape in SHAPES.items()}
    assert torch.equal(weights["k"], files["qkv"][4:6])
    assert torch.equal(table().read_rows("v", 1, 2, rows), files["qkv"][7:8])
    assert torch.equal(table().assemble("qkv", weights), files["qkv"])
    assert torch.equal(table().assemble("own.norm", weights), files["own.norm"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"qkv": None}, "missing: qkv"),
        ({"extra": None}, "missing: extra"),
        ({"qkv": (9, 3)}, r"another shape: qkv \(9, 3\) instead of \(8, 3\)"),
        ({"qkv": (8, 4)}, r"another shape: qkv \(8, 4\) instead of \(8, 3\)"),
        ({"extra": (4,)}, r"another shape: extra \(4,\) instead of \(5,\)"),
        ({"q": (4, 3), "r": (1,)}, "not known: q, r"),
    ],
)
def test_what_does_not_fit_is_named(changes, named):
    table().check(STORED, "DIR")
    found = {name: shape for name, shape in (STORED | changes).items() if shape is not None}
    with pytest.raises(UserError, match=f"weights in DIR do not fit.*{named}"):
        table().check(found, "DIR")


def test_what_is_kept_aside_may_have_any_shape_or_name():
    loose = table(aside={"extra": None}, aside_prefixes=("encoder.",))
    loose.check(STORED | {"extra": (7, 7), "encoder.layer": (1,)}, "DIR")
    assert loose.is_aside("encoder.layer") and not loose.is_aside("qkv")


@pytest.mark.parametrize("first", [3, 5])
def test_a_table_with_a_gap_or_an_overlap_is_refused(first):
    with pytest.raises(ValueError, match=f"k begins at row {first} of qkv, wanted 4"):
        table(pieces=PIECES | {"k": Piece("qkv", first)})


def test_a_table_must_place_every_weight():
    with pytest.raises(ValueError, match="norm"):
        table(pieces=same_names({"q": (4, 3), "k": (2, 3), "v": (2, 3)}))
    assert same_names({"q": (4, 3)}, "llm.") == {"q": Piece("llm.q")}
