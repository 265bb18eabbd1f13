"""What the site is made of: pages of the repository, of settings, of docstrings; and its checks."""

import re

import pytest

import wavalign_fast as wf

pytest.importorskip("pydantic")

from tools.docs_site import sources
from tools.docs_site.api_pages import PAGES, api_pages
from tools.docs_site.check import faults
from tools.docs_site.docstrings import markdown_of
from tools.docs_site.settings_page import settings_page
from wavalign_fast.config.layers import known_keys, options_model
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.recipes import PACKAGES, load_recipe


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a README, a page, code and a folder."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    for name, text in {
        "README.md": "[page](docs/a.md#b) [code](tool/x.py) [web](https://x.y/z) [here](#c)\n",
        "docs/a.md": "[home](../README.md) [folder](../tool)\n<!-- seen by tests -->\n"
        "| `a\\|b` | c |\n\n```text\n[not](a link) `a\\|b`\n```\n",
        "tool/x.py": "x = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return sources.Sources()


def test_links_of_the_repository_lead_to_pages_of_the_site(repository):
    assert repository.page("README.md") == (
        "[page](a.md#b) [code](source/tool/x.py.md) [web](https://x.y/z) [here](#c)\n"
    )
    assert repository.page("docs/a.md") == (
        "[home](index.md) [folder](source/tool.md)\n"
        "| `a|b` | c |\n\n```text\n[not](a link) `a\\|b`\n```\n"
    )
    assert repository.linked.keys() == {"tool/x.py", "tool"}
    assert repository.shown("tool") == "# tool\n\n- [x.py](tool/x.py.md)\n"
    assert "````python\nx = 1\n````" in repository.shown("tool/x.py")


def test_a_link_to_a_missing_file_is_named(repository):
    (sources.ROOT / "docs" / "b.md").write_text("[gone](../gone.py)")
    with pytest.raises(sources.LinkError, match=r"docs/b.md: got a link to ../gone.py"):
        repository.page("docs/b.md")


def test_a_picture_for_both_schemes_follows_the_theme_of_the_site(repository):
    (sources.ROOT / "docs" / "b.md").write_text(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="d.png">'
        '<img alt="A plot" src="l.png"></picture>'
    )
    for name in ("d.png", "l.png"):
        (sources.ROOT / "docs" / name).touch()
    assert repository.page("docs/b.md") == ("![A plot](l.png#only-light)![A plot](d.png#only-dark)")


def test_the_page_of_settings_holds_every_key():
    page = settings_page()
    keys = set(known_keys(RunConfig))
    for recipe in PACKAGES:
        model = options_model(load_recipe(recipe)[2])
        for key in known_keys(model, "task."):
            keys.add(key)
            assert f"#{recipe}.{key} " in page, key
    assert len(keys) > 150
    missing = [key for key in keys if f"`{key}`" not in page]
    assert not missing
    anchors = re.findall(r"\{ #([^ ]+) \}", page)
    assert len(anchors) == len(set(anchors)) >= len(keys)


def test_the_reference_documents_every_public_name():
    pages = api_pages()
    for name in wf.__all__:
        assert f"{{ #wavalign_fast.{name} }}" in pages["api/losses.md"], name
    for file, (_, _, modules) in PAGES.items():
        for module, names in modules.items():
            for name in names:
                _, _, text = pages[f"api/{file}.md"].partition(f"{{ #{module}.{name} }}")
                own = text.partition("\n### ")[0]
                assert len(own) > 60 or name in {"SPEECH", "TEXT"}, name
    assert "hidden: Tensor," in pages["api/losses.md"] and " at 0x" not in "".join(pages.values())


def test_a_docstring_becomes_text_and_lists():
    found = markdown_of(
        """``f(x)`` of [T, *] rows.

        Args:
            a, b: [T] floats, longer
                than a line.
            *rest: ignored_names.

        Returns:
            A sum.

        Raises:
            ValueError: bad.

        And a last word.
        """
    )
    assert found == (
        "`f(x)` of \\[T, \\*] rows.\n\nAnd a last word.\n\n"
        "**Arguments**\n\n`a`, `b`\n:   \\[T] floats, longer than a line.\n\n"
        "`*rest`\n:   ignored\\_names.\n\n**Returns**\n\nA sum.\n\n"
        "**Raises**\n\n`ValueError`\n:   bad."
    )


GOOD = '<a href="b.html#x"></a><h1 id="y"></h1><a href="#y"></a><a href="https://x.y"></a>'


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        (GOOD, None),
        ('<a href="c.html"></a>', "a.html: c.html leads to no file"),
        ('<a href="b.html#z"></a>', "a.html: b.html#z leads to no place of b.html"),
        ('<a href="#z"></a>', "a.html: #z leads to no place of a.html"),
        ('<img src="gone.png">', "a.html: gone.png leads to no file"),
        ('<script src="https://x.y/z.js"></script>', "a.html: <script> loads https://x.y/z.js"),
        ('<link href="//x.y/z.css">', "a.html: <link> loads //x.y/z.css"),
        ('<a href="/b.html"></a>', None),
    ],
)
def test_the_checker_finds_links_that_lead_nowhere(tmp_path, html, fault):
    (tmp_path / "b.html").write_text('<h1 id="x"></h1>')
    (tmp_path / "a.html").write_text(html)
    found = list(faults(tmp_path))
    assert len(found) == (fault is not None)
    assert not fault or found[0].startswith(fault)


def test_a_site_without_pages_is_a_fault(tmp_path):
    assert list(faults(tmp_path))
