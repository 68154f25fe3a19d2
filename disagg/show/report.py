"""The form of all measured figures: rows with their bars, and a file with machine and versions."""

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from disagg.run.gpu.machine import machine
from disagg.show.tables import table
from disagg.trace.files import whole


@dataclass(frozen=True)
class Row:
    """A figure. `bar` is its limit, an upper one with `at_most`; without a bar it is only reported."""

    name: str
    value: float
    unit: str = ""
    bar: float | None = None
    n: int = 1
    note: str = ""
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    @property
    def bar_text(self) -> str:
        return "" if self.bar is None else f"{'≤' if self.at_most else '≥'} {self.bar:g}"

    def as_json(self) -> dict:
        fields = asdict(self)
        fields.pop("at_most")
        return {**fields, "bar": self.bar_text or None}


@dataclass(frozen=True)
class LeftOut:
    """A row that this machine can't measure, and the reason; it has no figure."""

    name: str
    reason: str


class Failed(LeftOut):
    """A row or a group of rows whose measurement raised an error."""

    @classmethod
    def of(cls, name: str, error: Exception, more: str = "") -> "Failed":
        return cls(name, f"{type(error).__name__}: {error}{more}")


def shortfalls(rows: Iterable[Row | LeftOut]) -> list[str]:
    """The reasons why these rows fail a suite; none if every row with a bar meets it."""
    rows = list(rows)
    missed = [row.name for row in rows if isinstance(row, Row) and row.met is False]
    failed = [row.name for row in rows if isinstance(row, Failed)]
    found = [f"{what}: {', '.join(names)}" for what, names in (("missed", missed), ("failed", failed)) if names]
    return found if any(isinstance(row, Row) for row in rows) else [*found, "nothing was measured"]


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def write(path: Path, rows: Iterable[Row | LeftOut]) -> None:
    """Writes the file whole or not at all."""
    rows = list(rows)
    measured = [row.as_json() for row in rows if isinstance(row, Row)]
    content = {"machine": machine(), "versions": versions(), "rows": measured}
    for key, kind in (("left_out", LeftOut), ("failed", Failed)):
        if reasons := {row.name: row.reason for row in rows if type(row) is kind}:
            content[key] = reasons
    with whole(path) as out:
        out.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def show(rows: Iterable[Row | LeftOut], console: Console, title: str) -> None:
    """Prints a table as wide as the console; notes without room stand below their rows."""
    cells = []
    for row in rows:
        if isinstance(row, LeftOut):
            mark = "failed" if isinstance(row, Failed) else "left out"
            cells.append((row.name, "", "", "", mark, "", row.reason))
            continue
        mark = {None: "", True: "met", False: "missed"}[row.met]
        cells.append((row.name, f"{row.value:.4g}", row.unit, row.bar_text, mark, str(row.n), row.note))
    columns = ("row", "value", "unit", "bar", "", "n", "note")
    for line in (title, *table(columns, cells, console.width)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
