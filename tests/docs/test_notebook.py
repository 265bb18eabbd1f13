"""The notebook runs in plain Python, and prints what is stored in it."""

import json
import re

import pytest

from tests.docs.pages import ROOT
from tools.docs_site.notebook import code_cells, main, notebook_page, outputs_of, stored_output

NOTEBOOK = ROOT / "docs" / "losses.ipynb"
NUMBER = re.compile(r"-?\d+\.\d+")


def test_it_prints_what_is_stored():
    """Numbers to a tenth: another processor rounds otherwise, and may sample another id."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    printed = list(outputs_of(notebook))
    stored = list(map(stored_output, code_cells(notebook)))
    assert [NUMBER.sub("x", text) for text in printed] == [NUMBER.sub("x", text) for text in stored]
    found, wanted = (
        list(map(float, NUMBER.findall("".join(texts)))) for texts in (printed, stored)
    )
    assert len(found) > 20 and found == pytest.approx(wanted, abs=0.1)


def test_outputs_are_stored_and_shown(tmp_path):
    cell = {"cell_type": "code", "source": ["x = 2\n", "print(x)"], "outputs": [], "metadata": {}}
    quiet = {"cell_type": "code", "source": ["x += 1"], "outputs": [], "metadata": {}}
    text = {"cell_type": "markdown", "source": ["# Head"], "metadata": {}}
    file = tmp_path / "n.ipynb"
    file.write_text(json.dumps({"cells": [text, cell, quiet, cell]}))
    assert main([str(file)]) == 0
    assert list(map(stored_output, code_cells(json.loads(file.read_text())))) == ["2\n", "", "2\n"]
    page = notebook_page(file)
    assert page.startswith("# Head\n\n```python\nx = 2\nprint(x)\n```\n\n```output\n2\n```\n")
    assert page.count("```output") == 2 and "(n.ipynb)" in page
