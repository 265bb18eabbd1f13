"""A recipe is a folder with a ``recipe.yaml``; nothing else has to name it."""

import sys

import pytest

from wavalign_fast import recipes
from wavalign_fast.recipes import PACKAGES, build_recipe, describe_recipe, load_recipe


def test_every_folder_with_a_recipe_is_found():
    assert PACKAGES == {
        "dialogue": "dialogue",
        "spoken-sums": "spoken_sums",
        "wavalign": "wavalign",
    }
    for name in PACKAGES:
        defaults, arms, _ = load_recipe(name)
        assert defaults["recipe"] == name and defaults["arm"] in arms and describe_recipe(name)


def test_a_recipe_without_files_to_build_says_so(monkeypatch, tmp_path):
    package = tmp_path / "plain"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    monkeypatch.setitem(PACKAGES, "plain", "plain")
    with pytest.raises(ValueError, match="recipe plain ships no files that could be built"):
        build_recipe("plain", tmp_path)
    monkeypatch.delitem(sys.modules, "wavalign_fast.recipes.plain", raising=False)
