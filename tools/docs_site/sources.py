"""Turns Markdown that is written for the repository into pages of the site.

A link between files of the repository leads to a page of the site where there is one. Any other
file that is linked gets a page that shows it.
"""

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Pages of the site whose text is a file outside of docs/."""
SHOWN = "source"
"""The site's folder of files that are no pages by themselves."""
COPIED = {".png", ".html"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash",
             ".toml": "toml", ".cpp": "cpp", ".cu": "cpp"}  # fmt: skip

FENCE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1[ ]*$", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(
    r'<picture><source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">'
    r'<img alt="([^"]+)" src="([^"]+)"></picture>'
)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)


class LinkError(ValueError):
    """A link of a page leads nowhere."""


@dataclass
class Sources:
    """Texts of pages, and the files outside of docs/ that they link."""

    linked: dict[str, str] = field(default_factory=dict)
    """Path in the repository -> path in the site."""

    def page(self, path: str) -> str:
        """Returns the text of a page of the site.

        Args:
            path: of the file, relative to the repository.

        Raises:
            LinkError: a link to a file or folder that is not there.
        """
        text = (ROOT / path).read_text(encoding="utf-8")
        return outside_fences(text, lambda part: self._rewritten(part, path))

    def _rewritten(self, text: str, path: str) -> str:
        text = PICTURE.sub(r"![\2](\3#only-light)![\2](\1#only-dark)", COMMENT.sub("", text))
        text = LINK.sub(lambda m: f"{m[1]}{self._target(m[2], path)}{m[3]}", text)
        return "\n".join(map(_table_row, text.split("\n")))

    def _target(self, link: str, path: str) -> str:
        """Returns where a link of the file ``path`` leads from that file's page."""
        name, mark, anchor = link.partition("#")
        if not name or re.match(r"[a-z]+:", name):
            return link
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if (ROOT / target / "README.md").is_file():
            target = posixpath.join(target, "README.md")
        if not (ROOT / target).exists():
            raise LinkError(f"{path}: got a link to {link}, wanted one to a file of the repository")
        here = posixpath.dirname(self.place(path))
        return posixpath.relpath(self.place(target), here or ".") + mark + anchor

    def place(self, path: str) -> str:
        """Returns the file of the site that has or shows a file of the repository."""
        if path in PAGES:
            return PAGES[path]
        if path.startswith("docs/"):
            # A notebook is a page of its own, made of its cells and outputs.
            return path.removeprefix("docs/").replace(".ipynb", "_notebook.md")
        ending = "" if Path(path).suffix in COPIED | {".md"} else ".md"
        shown = f"{SHOWN}/{path}{ending}"
        self.linked.setdefault(path, shown)
        return shown

    def shown(self, path: str) -> str:
        """Returns a page that shows a linked file, or lists a linked folder's files."""
        if path.endswith(".md"):
            return self.page(path)
        if (ROOT / path).is_dir():
            files = sorted(file.name for file in (ROOT / path).iterdir() if file.is_file())
            links = [f"- [{name}]({Path(path).name}/{Path(self.place(f'{path}/{name}')).name})"
                     for name in files]  # fmt: skip
            return "\n".join([f"# {path}", "", *links, ""])
        text = (ROOT / path).read_text(encoding="utf-8").rstrip()
        return f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n````\n"


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Returns the text with ``change`` applied to everything but the code blocks."""
    parts, end = [], 0
    for block in FENCE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def _table_row(line: str) -> str:
    r"""A ``\|`` in the code of a table is for GitHub; Python-Markdown wants a plain ``|``."""
    if not line.startswith("|"):
        return line
    return re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), line)
