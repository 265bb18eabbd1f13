"""Runs a notebook's code in plain Python, stores what it prints, and makes a page of it.

python -m tools.docs_site.notebook docs/losses.ipynb      runs it and stores its outputs anew
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.outputs import write_whole


def outputs_of(notebook: dict[str, Any]) -> Iterator[str]:
    """Runs the code cells one after the other and yields what each prints."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(notebook)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        yield printed.getvalue()


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def stored_output(cell: dict[str, Any]) -> str:
    """What a code cell is stored to have printed."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def notebook_page(path: Path) -> str:
    """Returns the notebook as a page of Markdown, outputs included."""
    lines = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [text, ""]
            continue
        lines += ["```python", text, "```", ""]
        if output := stored_output(cell):
            lines += ["```output", output.rstrip(), "```", ""]
    return "\n".join([*lines, f"[Download the notebook]({path.name}).", ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    path = parser.parse_args(argv).notebook
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, text) in enumerate(
        zip(code_cells(notebook), outputs_of(notebook), strict=True)
    ):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [stream] if text else []
        cell["execution_count"] = number + 1
    write_whole(path, (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
