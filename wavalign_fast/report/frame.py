"""The frame of a page: one file with its style, its script, a headline and sections."""

import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from string import Template

from wavalign_fast.errors import UserError
from wavalign_fast.outputs import write_whole
from wavalign_fast.report.formatting import escape


def page(*, kind: str, title: str, headline: str, opening: str, sections: Sequence[str]) -> str:
    """Returns a whole page.

    Args:
        kind: what the page is about, such as ``Run``.
        title: the name of it.
        headline: a sentence, as text.
        opening: what stands below the headline, as HTML.
        sections: as ``section`` returns them.
    """
    return Template(_asset("template.html")).substitute(
        style=_asset("style.css"),
        script=_asset("script.js"),
        kind=escape(kind),
        title=escape(title),
        headline=escape(headline),
        opening=opening,
        sections="\n".join(filter(None, sections)),
        versions=escape(_versions()),
    )


def section(title: str, name: str, content: str) -> str:
    """Returns a section of the page; empty without content."""
    if not content:
        return ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'


def write_page(path: Path, text: str) -> Path:
    """Writes a page and returns its path; raises ``UserError`` if it cannot be written."""
    try:
        # JSON may hold half of a surrogate pair, which UTF-8 cannot encode.
        write_whole(path, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _versions() -> str:
    names = ("wavalign-fast", "torch", "transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except Exception:  # not installed, or its metadata cannot be read
            continue
    return ", ".join([*found, f"Python {sys.version.split()[0]}"])
