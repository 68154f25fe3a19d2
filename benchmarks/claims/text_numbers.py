"""Numbers of the documents: README, docs/, and the markdown of notebooks. Code is left out."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

UNITS = (
    r"%(?!\s*\d)|×(?!\s*[\w`])|x\b|times\b|[µumn]s\b|s\b|seconds?\b|minutes?\b|[kMGT]?B(?:/s)?\b|bytes?\b"
    r"|[MGT]?FLOPs?(?:/s)?\b|tokens?/s\b|tokens a second|points?\b|pt\b|floors\b|million\b"
)
WHOLE = r"(?<![\w.,/:-])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)"
NUMBER = re.compile(
    rf"{WHOLE}(?:\.\d+)?(?:e-?\d+)?\s?(?:{UNITS})|{WHOLE}\.\d+(?:e-?\d+)?(?![\w.]*\d)|(?<![\w.])\d+e-\d+"
    r"|(?<=\|) ?[-−]?\d[\d.,; ]*(?=\|)"  # a table cell of nothing else
)
#: What is no prose: fenced code, formulas, code in a line, targets of links, papers.
BLANK = re.compile(r"```.*?```|\$\$.*?\$\$|`[^`]*`|\]\([^)]*\)|arXiv \d+\.\d+|doi \S+", re.DOTALL)


class Passage(NamedTuple):
    """A page, or one markdown cell, with single spaces for all white space."""

    file: str
    cell: str  # its id; "" in a page
    text: str

    def numbers(self) -> Iterator[re.Match]:
        """Numbers with a unit, with a decimal point, or alone in a cell of a table."""
        yield from NUMBER.finditer(BLANK.sub(lambda found: "`" * len(found[0]), self.text))

    def spans(self, quotes: Iterable[str]) -> list[tuple[int, int]]:
        """Where the quotes stand."""
        words = map(one_line, quotes)
        return [found.span() for quote in words for found in re.finditer(re.escape(quote), self.text)]


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def numbers_in(quote: str) -> list[str]:
    """As they are printed, with their units."""
    return [found[0].strip() for found in Passage("", "", one_line(quote)).numbers()]


def pages(root: Path) -> list[str]:
    """README and the pages of docs/, by name."""
    return ["README.md", *(f"docs/{path.name}" for path in sorted((root / "docs").glob("*.md")))]


def passages(root: Path) -> list[Passage]:
    """All that is scanned."""
    found = [Passage(name, "", one_line((root / name).read_text(encoding="utf-8"))) for name in pages(root)]
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{path.name}"
        found += [
            Passage(name, cell["id"], one_line("".join(cell["source"])))
            for cell in cells(path)
            if cell["cell_type"] == "markdown"
        ]
    return found


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]
