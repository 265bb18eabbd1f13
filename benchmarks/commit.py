"""The commit that a measurement is of. Nothing here imports torch.

python -m benchmarks.commit      prints the commit of this checkout, or nothing
"""

import argparse
from pathlib import Path

from wavalign_fast.checkout import DIRTY, checkout_commit

WRITTEN = (
    "README.md",
    "docs",
    "benchmarks/results",
    "benchmarks/plots",
    "benchmarks/results.html",
)
"""Files that the benchmarks and their report write.

They do not make a checkout dirty: after the first of several benchmarks is saved, the others still
measure the code of that commit.
"""


def own_commit() -> str | None:
    """The commit of the checkout that holds this file; ``None`` for an installed package."""
    folder = Path(__file__).parent
    if folder.name != "benchmarks" or not (folder.parent / "pyproject.toml").exists():
        return None
    return checkout_commit(folder.parent, exclude=WRITTEN)


def refuse_dirty(parser: argparse.ArgumentParser, commit: str | None) -> None:
    """Ends a command with ``--save`` in a checkout whose files are not those of the commit."""
    if commit is not None and commit.endswith(DIRTY):
        parser.error(f"--save: the checkout is {commit}, wanted one without uncommitted changes")


def commit_text(commit: str | None) -> str:
    """The commit, and whether the checkout held other code; "" for an installed package."""
    if not commit:
        return ""
    clean = commit.removesuffix(DIRTY)
    return f"commit {clean}" + ("" if clean == commit else " with uncommitted changes")


if __name__ == "__main__":
    print(own_commit() or "")
