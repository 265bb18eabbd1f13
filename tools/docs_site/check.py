"""Checks the built site: every link leads somewhere, and nothing is loaded from elsewhere.

python -m tools.docs_site.check build/docs

mkdocs checks the links that are written in Markdown; this reads the HTML, so it also sees those of
HTML, of pictures and of the theme.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script", "img", "source", "link", "iframe"}
"""Tags whose addresses a browser fetches without a click."""


class Page(HTMLParser):
    """The ids and links of a page.

    Attributes:
        ids: that a link can lead to.
        links: (tag, address), in order.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.ids.add(value)
            elif name in {"href", "src", "srcset"} and value is not None:
                self.links.append((tag, value))


def faults(site: Path) -> Iterator[str]:
    """Yields what is wrong with the pages of a built site, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: got no page, wanted a built site"
    for path, page in pages.items():
        for tag, address in page.links:
            if fault := _fault(site, path, tag, address, pages):
                yield f"{path.relative_to(site)}: {fault}"


def _fault(site: Path, path: Path, tag: str, address: str, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(address)
    if parts.scheme in {"http", "https"} or parts.netloc:
        if tag in LOADED:
            return f"<{tag}> loads {address}, wanted a file of the site"
        return None
    if parts.scheme in {"data", "mailto", "javascript"}:
        return None
    # The page of errors has links from the top of the site, for it may stand in for any page.
    folder = site if parts.path.startswith("/") else path.parent
    target = (folder / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return f"{address} leads to no file"
    anchor = unquote(parts.fragment)
    # "#__" are places that the theme's own script makes.
    if anchor and target in pages and anchor not in pages[target].ids and anchor[:2] != "__":
        return f"{address} leads to no place of {target.name}"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path, help="folder of the built site")
    found = list(faults(parser.parse_args(argv).site.resolve()))
    print("\n".join(found) or "every link of the site leads somewhere", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
