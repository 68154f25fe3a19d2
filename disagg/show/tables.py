"""Tables and sentences as plain lines for a terminal, a pipe or a file. Nothing is cut off or read as markup; a word
that is longer than a line, such as a path, exceeds it, so that it can be copied whole.
"""

import textwrap
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

WIDTH = 80
BETWEEN, INDENT = "  ", "    "
ROOM = 28  # least width of the last cell to stand beside the others, not below them


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], width: int = WIDTH) -> list[str]:
    """The roomiest of four layouts that fits: the last cell beside the others, below them, the first one above as
    well, or each cell on lines of its own. Columns of numbers are aligned right."""
    cells = [[plain(cell) for cell in row] for row in (columns, *rows)]
    wide = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    right = [index > 0 and all(map(_is_number, column[1:])) for index, column in enumerate(zip(*cells, strict=True))]
    padded = [[_pad(*cell) for cell in zip(row, wide, right, strict=True)] for row in cells]
    before, last = sum(wide[:-1]) + len(BETWEEN) * (len(wide) - 1), min(wide[-1], ROOM)
    above = before - wide[0] + len(BETWEEN)
    if before <= width:
        lines = (_row(row, width, before + last <= width) for row in padded)
    elif above <= width:
        lines = ([row[0].rstrip(), *_row([BETWEEN, *row[1:]], width, above + last <= width)] for row in padded)
    else:
        lines = (_apart(cells[0], row, width) for row in cells)
    return [line for row, shown in zip(cells, lines, strict=True) if row is not cells[0] or any(row) for line in shown]


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Lines of a text; those that are too long are broken between words."""
    found = []
    for line in text.splitlines() or [""]:
        indent = line[: len(line) - len(line.lstrip())]
        found += [line] if cell_len(line) <= width else _wrap(line, width, indent, indent + INDENT * bool(indent))
    return found


def plain(text: str) -> str:
    """The text on one line, without characters that move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _row(padded: list[str], width: int, beside: bool) -> list[str]:
    """A row's lines, with the last cell beside the others or below them."""
    start = BETWEEN.join((*padded[:-1], ""))
    if not beside:
        return [start.rstrip(), *_wrap(padded[-1], width, INDENT, INDENT)]
    room = width - cell_len(start)
    texts = [padded[-1]] if cell_len(padded[-1].rstrip()) <= room else _wrap(padded[-1], room)
    return [(start + texts[0]).rstrip(), *(" " * cell_len(start) + text for text in texts[1:])]


def _apart(columns: list[str], row: list[str], width: int) -> list[str]:
    """A line for each cell, with its column's name, and no header."""
    if row is columns:
        return []
    named = [f"{name}: {cell}" if name else cell for name, cell in zip(columns, row, strict=True)]
    return [line for index, cell in enumerate(named) for line in _wrap(cell, width, INDENT * (index > 0), INDENT)]


def _wrap(text: str, width: int, first: str = "", then: str = "") -> list[str]:
    """Wraps between words; a long word is neither broken nor cut at hyphens."""
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=then,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+-–≤≥.0123456789"
