"""One form for every measured figure: a row with its bar, and a file that names machine and versions."""

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from disagg.run.machine import machine


@dataclass(frozen=True)
class Row:
    """A figure. `bar` is its limit and `at_most` says which way it counts; without a bar it is only reported."""

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


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def write(path: Path, rows: Iterable[Row]):
    """Writes the file whole or not at all."""
    content = {"machine": machine(), "versions": versions(), "rows": [row.as_json() for row in rows]}
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    draft.replace(path)


def show(rows: Iterable[Row], console: Console, title: str):
    table = Table(title=title, title_justify="left")
    for column, justify in (("row", "left"), ("value", "right"), ("unit", "left"), ("bar", "right"), ("", "left"),
                            ("n", "right"), ("note", "left")):  # fmt: skip
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        mark = {None: "", True: "met", False: "[bold]missed[/bold]"}[row.met]
        table.add_row(row.name, f"{row.value:.4g}", row.unit, row.bar_text, mark, str(row.n), row.note)
    console.print(table)
