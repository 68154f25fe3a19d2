"""The bite test: a notebook with one thing changed must no longer agree with what it shows.

One number, one constant, one default of a slider and one sentence of a figure are changed, each in a copy of its own:
the first one of its kind in a cell whose output is compared.
"""

import ast
import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeGuard

import nbformat

from benchmarks.common import known

Cells = Iterable[nbformat.NotebookNode]
KINDS = ("number", "constant", "slider default", "sentence")
IGNORED = {"nbval-ignore-output", "nbval-skip"}

#: Calls in which a number is where a slider starts, or how far it goes: which keyword, and which position.
SLIDERS = {"predict": ("high", 2)}
#: Calls whose numbers decide what is served, and so what is counted; before any other.
DECISIVE = ("Request", "serve", "simulate", "replace")
#: Calls whose numbers set times, which no compared cell may show.
TIMES = {"Link", "ratio", "predict", "replay", "sleep", "round", "retune", "panel", "watch"}
TIME_KEYWORDS = {
    "link",
    "window_ms",
    "arrival_s",
    "width",
    "seed",
    "indent",
    "digits",
    "timeout_s",
    "updates_per_s",
    "threads",
}


@dataclass(frozen=True)
class Mutation:
    """One change: `old` becomes `new` at a place of a cell's source, or in a cell's stored sentence."""

    kind: str
    cell: str  # its id
    start: int
    stop: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.kind} in cell {self.cell}: {self.old} → {self.new}"

    def applied(self, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
        """A copy of the notebook with this change."""
        changed = copy.deepcopy(notebook)
        cell = next(cell for cell in changed.cells if cell.id == self.cell)
        if self.kind == "sentence":
            data = next(shown_data(cell))
            data["text/plain"] = data["text/plain"][: self.start] + self.new + data["text/plain"][self.stop :]
        else:
            cell.source = cell.source[: self.start] + self.new + cell.source[self.stop :]
        return changed


def mutations(notebook: nbformat.NotebookNode) -> list[Mutation]:
    """At most one of each kind; a kind that the notebook has no place for is left out."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and not ignored(cell)]
    finders = {"number": numbers, "constant": constants, "slider default": slider_defaults, "sentence": sentences}
    return [found for kind in KINDS if (found := next(finders[kind](cells), None))]


def ignored(cell: nbformat.NotebookNode) -> bool:
    return bool(IGNORED & set(cell.metadata.get("tags", [])))


# ---- where -----------------------------------------------------------------------------------------------------------


def numbers(cells: Cells) -> Iterator[Mutation]:
    """Numbers among the arguments of a call whose cell shows something; those that decide what is served come first."""
    found = []
    for cell in (cell for cell in cells if cell.outputs):
        for literal, call, keyword in literals(cell.source):
            name = called(call)
            if name not in TIMES and keyword not in TIME_KEYWORDS:
                found.append((name not in DECISIVE, change("number", cell, literal)))
    yield from (mutation for _, mutation in sorted(found, key=lambda pair: pair[0]))


def constants(cells: Cells) -> Iterator[Mutation]:
    """Numbers that are given a name without any call: `LAYERS = 30`, `text = "so " * 7`; then texts with a name; where
    no name is given, the first text of a cell that shows something."""
    cells, texts = list(cells), []
    for cell in cells:
        for node in parsed(cell.source).body:
            if not isinstance(node, ast.Assign) or any(isinstance(part, ast.Call) for part in ast.walk(node.value)):
                continue
            for part in ast.walk(node.value):
                if is_number(part):
                    yield change("constant", cell, part)
                elif is_text(part):
                    texts.append(change("constant", cell, part))
    yield from texts
    for cell in (cell for cell in cells if cell.outputs and "import" not in cell.source):
        yield from (change("constant", cell, part) for part in ast.walk(parsed(cell.source)) if is_text(part))


def slider_defaults(cells: Cells) -> Iterator[Mutation]:
    """Where a slider starts; what a range is when its middle is the start."""
    for cell in cells:
        for call in (node for node in ast.walk(parsed(cell.source)) if isinstance(node, ast.Call)):
            name = called(call)
            keyword, position = SLIDERS.get(name, ("value", None))
            if name not in SLIDERS and not name.endswith("Slider"):
                continue
            given = {k.arg: k.value for k in call.keywords}
            if position is not None and position < len(call.args):
                given.setdefault(keyword, call.args[position])
            start = given.get(keyword)
            if is_number(start):
                yield change("slider default", cell, start)


def sentences(cells: Cells) -> Iterator[Mutation]:
    """The stored sentence of a figure, or where there is none of another object: its first number, or first word."""
    for cell in sorted(cells, key=lambda cell: not any(map(is_picture, shown_data(cell)))):
        for data in shown_data(cell):
            found = re.search(r"\d+", data["text/plain"]) or re.search(r"\w+", data["text/plain"])
            assert found, f"what cell {cell.id} shows has no word"
            old = found[0]
            new = str(int(old) + 1) if old.isdecimal() else old[::-1] + "x"
            yield Mutation("sentence", cell.id, found.start(), found.end(), old, new)
            break  # `applied` changes the first one of the cell


def shown_data(cell: nbformat.NotebookNode) -> Iterator[dict]:
    """The data of each output with words to compare, those that hold a picture first."""
    found = [data for output in cell.outputs if (data := output.get("data", {})).get("text/plain")]
    yield from sorted(found, key=lambda data: not is_picture(data))


def is_picture(data: dict) -> bool:
    return any(kind.startswith("image/") for kind in data)


# ---- reading and changing code ---------------------------------------------------------------------------------------


def parsed(source: str) -> ast.Module:
    """Empty where it is no plain Python, as a magic is."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def literals(source: str) -> Iterator[tuple[ast.Constant, ast.Call, str]]:
    """Numbers that stand directly, or in plain arithmetic, among a call's arguments, with their innermost call."""
    for call in sorted((n for n in ast.walk(parsed(source)) if isinstance(n, ast.Call)), key=position):
        for keyword, value in [("", a) for a in call.args] + [(k.arg or "", k.value) for k in call.keywords]:
            for part in (value, *plain_parts(value)):
                if is_number(part):
                    yield part, call, keyword


def plain_parts(value: ast.AST) -> Iterator[ast.AST]:
    """What arithmetic, lists and tuples hold; neither subscripts nor further calls, nor the only element of a list:
    `[7] * 128` is a prompt in which nothing but the number of tokens counts."""
    if isinstance(value, ast.List) and len(value.elts) == 1:
        return
    if isinstance(value, ast.BinOp | ast.List | ast.Tuple | ast.UnaryOp):
        for part in ast.iter_child_nodes(value):
            yield part
            yield from plain_parts(part)


def position(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def called(call: ast.Call) -> str:
    """The last name of what is called: `ratio` of `Link.ratio(…)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def is_number(node: ast.AST | None) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def is_text(node: ast.AST | None) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(node.value)


def change(kind: str, cell: nbformat.NotebookNode, node: ast.Constant) -> Mutation:
    """The next whole number, half of a fraction or of a large round one, or the text turned round."""
    lines = cell.source.splitlines(keepends=True)
    ends = (node.lineno, node.col_offset), (known(node.end_lineno), known(node.end_col_offset))
    start, stop = (
        sum(len(text) for text in lines[: line - 1]) + len(lines[line - 1].encode()[:column].decode())
        for line, column in ends
    )
    value = node.value
    assert isinstance(value, str | int | float)  # as `is_number` or `is_text` found it
    if isinstance(value, str):
        new = repr(value[::-1] + "x")
    elif isinstance(value, int) and kind != "slider default":
        new = repr(value + 1)
    else:
        new = repr(value // 2 if isinstance(value, int) and value > 1 else value / 2 or 0.5)
    return Mutation(kind, cell.id, start, stop, cell.source[start:stop], new)
