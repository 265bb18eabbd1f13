"""The pages of the documentation, and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FOR_ALL = re.compile(r"^<!-- all blocks: (.*) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        mark: the comment right above it, or that of the page for all blocks; a reader of the page
            does not see it. It says how the block is tested, where that is not the usual way.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Returns the code blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    common = FOR_ALL.search(text)
    return [
        Block(
            page=page,
            line=text.count("\n", 0, found.start("text")),
            language=found["language"],
            text=found["text"],
            mark=found["mark"] or (common[1] if common else ""),
        )
        for found in BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[str]:
    """Returns the command lines of a shell block, each whole, without those joined by ``&&``."""
    lines = block.text.replace("\\\n", "").splitlines()
    return [part.strip() for line in lines for part in line.split(" && ") if part.strip()]
