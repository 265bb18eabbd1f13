"""What mkdocs calls while it builds the site; ``mkdocs.yml`` names this file."""

from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

from tools.docs_site.api_pages import api_pages
from tools.docs_site.notebook import notebook_page
from tools.docs_site.settings_page import settings_page
from tools.docs_site.sources import COPIED, PAGES, ROOT, Sources

_texts: dict[str, str] = {}
"""Of the pages in docs/, by their path in the site."""


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages that are not in docs/: README's, generated ones, and linked files."""
    sources = Sources()
    for page in files.documentation_pages():
        _texts[page.src_uri] = sources.page(f"docs/{page.src_uri}")
    made = {"config_keys.md": settings_page(), **api_pages()}
    for notebook in (ROOT / "docs").glob("*.ipynb"):
        made[sources.place(f"docs/{notebook.name}")] = notebook_page(notebook)
    made |= {place: sources.page(path) for path, place in PAGES.items()}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    shown: set[str] = set()
    while waiting := sources.linked.keys() - shown:  # a page that is shown may link more
        for path in sorted(waiting):
            files.append(_linked_file(config, sources, path))
        shown |= waiting
    return files


def _linked_file(config: Any, sources: Sources, path: str) -> File:
    place = sources.linked[path]
    if (ROOT / path).suffix in COPIED:
        return File.generated(config, place, abs_src_path=str(ROOT / path))
    level = InclusionLevel.NOT_IN_NAV
    return File.generated(config, place, content=sources.shown(path), inclusion=level)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Gives the text of a page whose links lead to pages of the site."""
    return _texts.get(page.file.src_uri, markdown)
