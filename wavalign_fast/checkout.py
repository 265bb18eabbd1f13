"""Names the commit of a checkout. Nothing here imports torch."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

DIRTY = "-dirty"
"""Ends the name of a commit from which tracked files differ."""
GIT_LIMIT_S = 20.0


def own_commit() -> str | None:
    """Returns the commit of the checkout that holds this file; ``None`` for an installed package.

    The folder of an installed package may lie in a repository of somebody else.
    """
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").exists() or not (checkout / ".git").exists():
        return None
    return checkout_commit(checkout)


def checkout_commit(checkout: Path, exclude: Sequence[str] = ()) -> str | None:
    """Returns the short commit of a directory; ``None`` where git knows of none.

    It ends in ``DIRTY`` where tracked files differ from it, except those at ``exclude``.
    """
    paths = [".", *(f":(exclude){path}" for path in exclude)]
    try:
        commit = _git(checkout, "rev-parse", "--short=7", "HEAD").strip()
        changed = _git(checkout, "diff", "--name-only", "HEAD", "--", *paths)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{DIRTY}" if changed else commit


def _git(checkout: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        capture_output=True,
        text=True,
        cwd=checkout,
        check=True,
        timeout=GIT_LIMIT_S,
    ).stdout
