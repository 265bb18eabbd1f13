"""Patterns match tokens: neither layout nor names of variables count, and everything else does."""

import pytest

from .places import places

CPP = """
// total(a, b) in a comment is no definition
float total(const Row& row, int last) {
  if (row.at < last) return row.sum;  // the end
  return last < 3 ? "a < b"[0] : row.at;
}
float other(int a) { return a < 3; }
"""
PYTHON = '''
def total(row, last):
    """Text with row < last in it."""
    return sum(
        row.values,
        last,
    )


def other(row):
    return sum(row.values, 1)
'''


@pytest.mark.parametrize(
    ("inside", "pattern", "texts"),
    [
        ("total", "$at < $last) return", ["row.at < last) return"]),
        ("total", "if ($*condition) return $sum;", ["if (row.at < last) return row.sum;"]),
        ("total", "$a < 3", ["last < 3"]),
        ("", "$a < 3", ["last < 3", "a < 3"]),
        ("total", "$a.at", ["row.at", "row.at"]),
        ("total", '"a < b"', ['"a < b"']),
        ("total", "$a < $a", []),
        ("total", "$a <= $b", []),
        ("another", "$a", []),
    ],
)
def test_a_pattern_in_cpp(inside: str, pattern: str, texts: list[str]) -> None:
    assert [CPP[p.start : p.end] for p in places(CPP, ".cu", inside, pattern)] == texts


def test_a_pattern_in_python() -> None:
    (place,) = places(PYTHON, ".py", "total", "sum($values, $last)")
    assert place.bound == {"$values": "row.values", "$last": "last"}
    assert place.filled("max($last, $values)") == "max(last, row.values)"
    assert len(places(PYTHON, ".py", "", "sum($values, $last)")) == 2
