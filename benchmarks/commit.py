"""The commit that a measurement is of. Nothing here imports torch.

python -m benchmarks.commit      prints the commit of this checkout, or nothing
"""

import argparse
import subprocess
from pathlib import Path

DIRTY = "-dirty"
"""Ends the name of a commit from which tracked files differ."""
WRITTEN = tuple(
    f":(exclude){path}"
    for path in (
        "README.md",
        "docs",
        "benchmarks/results",
        "benchmarks/plots",
        "benchmarks/results.html",
    )
)
"""Files that the benchmarks and their report write, as git's path patterns."""


def own_commit() -> str | None:
    """The commit of the checkout that holds this file; ``None`` for an installed package."""
    folder = Path(__file__).parent
    if folder.name != "benchmarks" or not (folder.parent / "pyproject.toml").exists():
        return None
    return checkout_commit(folder.parent)


def checkout_commit(checkout: Path) -> str | None:
    """The commit of a directory; ``None`` where git knows of none.

    It ends in ``DIRTY`` where tracked files differ from it. ``WRITTEN`` does not count: after the
    first of several benchmarks is saved, the others still measure the code of that commit.
    """
    try:
        commit = _git(checkout, "rev-parse", "--short=7", "HEAD").strip()
        changed = _git(checkout, "diff", "--name-only", "HEAD", "--", ".", *WRITTEN)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}{DIRTY}" if changed else commit


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


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=checkout, check=True).stdout


if __name__ == "__main__":
    print(own_commit() or "")
