"""Pages fit together: links and anchors, the navigation, quoted settings and errors."""

import re

import pytest

from tests.docs.commands import TARGETS
from tests.docs.pages import BLOCK, PAGES, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def anchors_of(text):
    """The anchors that a page of a repository has for its headings."""
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_in_the_repository(page):
    """`make docs` checks those of the site, and of pages that only the site has."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in (found[1] or found[2] for found in LINK.finditer(text)):
        name, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"- (?:[^\n]*: )?{page.name}$", navigation, re.MULTILINE), page.name


def test_commands_and_settings_in_running_text_exist():
    pytest.importorskip("pydantic")
    from wavalign_fast.config.layers import known_keys, options_model
    from wavalign_fast.config.schema import RunConfig
    from wavalign_fast.recipes import PACKAGES, load_recipe

    keys = set(known_keys(RunConfig))
    for recipe in PACKAGES:
        keys |= set(known_keys(options_model(load_recipe(recipe)[2]), "task."))
    groups = {key.partition(".")[0] for key in keys}
    count = 0
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`([^`\n]+)`", text):
            setting = re.fullmatch(r"([a-z]+\.[a-z_.]+)(?:=|: ).*", code)
            if setting and setting[1].partition(".")[0] in groups:
                assert any(f"{setting[1]}.".startswith(f"{key}.") for key in keys), (
                    page.name,
                    code,
                )
                count += 1
            if re.fullmatch(r"make [a-z-]+", code):
                assert code.split()[1] in TARGETS, (page.name, code)
    assert count > 20
