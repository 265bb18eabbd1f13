"""Every message that docs/troubleshooting.md quotes is one that the code can raise."""

import ast
import re

from tests.docs.pages import ROOT, blocks_of

ANY = "…"


def texts_of(source):
    """Every string of a module; what an f-string inserts is "…"."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else ANY for part in node.values
            )


def is_message(quoted, texts):
    """Whether one text has all of what is quoted, in its order."""
    pattern = re.compile(".*".join(map(re.escape, quoted.split(ANY))), re.DOTALL)
    return any(pattern.search(text) for text in texts)


def test_every_quoted_message_is_in_the_code():
    files = sorted((ROOT / "wavalign_fast").rglob("*.py"))
    texts = {text for file in files for text in texts_of(file.read_text(encoding="utf-8"))}
    blocks = blocks_of(ROOT / "docs" / "troubleshooting.md")
    quoted = [block.text.strip() for block in blocks if block.language == "output"]
    assert len(quoted) > 20
    missing = [text for text in quoted if not is_message(text, texts)]
    assert not missing, "\n".join(missing)


def test_a_message_of_other_words_is_found():
    texts = set(texts_of('raise ValueError(f"{x}: got {y}, " f"want [B, G]")'))
    assert is_message("…: got …, want [B, G]", texts)
    assert not is_message("…: got …, want [B]", texts)
    assert not is_message("…: want [B, G], got …", texts)
