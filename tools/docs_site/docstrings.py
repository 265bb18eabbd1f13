"""Reads docstrings in the style of this project, and writes them as Markdown."""

import re
from collections.abc import Iterator
from inspect import cleandoc

SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
}
LISTED = {"Args", "Attributes", "Raises"}
"""Sections of entries ``name, name: text``; the others are text."""


def markdown_of(docstring: str) -> str:
    """Returns a docstring as Markdown; its sections become headed lists of definitions."""
    text, sections = split(docstring)
    parts = [text]
    for name, body in sections.items():
        parts.append(f"**{SECTIONS[name]}**")
        parts.append("\n\n".join(_entries(body)) if name in LISTED else body)
    return "\n\n".join(filter(None, map(_code, parts)))


def split(docstring: str) -> tuple[str, dict[str, str]]:
    """Returns the text of a docstring, and the body of each of its sections by name.

    What stands behind the sections belongs to the text.
    """
    text: list[str] = []
    sections: dict[str, list[str]] = {}
    open_section = ""
    for line in cleandoc(docstring).splitlines():
        head = re.fullmatch(r"(\w+):", line)
        if head and head[1] in SECTIONS:
            open_section = head[1]
            sections[open_section] = []
        elif open_section and (line.startswith(" ") or not line):
            sections[open_section].append(line)
        else:
            open_section = ""
            text.append(line)
    bodies = {name: cleandoc("\n" + "\n".join(body)).strip() for name, body in sections.items()}
    return "\n".join(text).strip(), bodies


def _entries(body: str) -> Iterator[str]:
    """Yields every entry of a section as a definition; text that names nothing as it is."""
    for entry in re.split(r"\n(?=\S)", body):
        names, colon, text = entry.partition(":")
        if not colon or not re.fullmatch(r"[\w*, .\[\]]+", names):
            yield entry
            continue
        shown = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        yield f"{shown}\n:   {' '.join(text.split())}"


def _code(text: str) -> str:
    """Double backticks become single ones; ``*args`` and ``[T, H]`` stay what they are."""
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    parts = re.split(r"(`[^`]*`)", text)
    for place in range(0, len(parts), 2):
        # A bold head is ours; any other star or bracket of a docstring is meant as it stands.
        if not re.fullmatch(r"\*\*\w+\*\*", parts[place]):
            parts[place] = re.sub(r"([*\[_<])", r"\\\1", parts[place]).replace("\\<", "&lt;")
    return "".join(parts)
