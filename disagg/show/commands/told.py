"""What the commands share: the application, the console, and ways to show and store what they find."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(help="A workbench for disaggregated LLM inference.", no_args_is_help=True, add_completion=False)
console = Console()
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")]


def table(columns: tuple[str, ...], rows) -> Table:
    table = Table(box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def say_plainly(*lines: str):
    """Text from a file, in which nothing is markup."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)  # a path is copied whole


def measure(suite, title: str, json: Path | None):
    """Runs a suite and shows its rows; the file is written after each, so that an interrupt loses nothing."""
    from disagg.show.bench.rows import show, write

    rows = []
    with saying() as say:
        for row in suite(say):
            rows.append(row)
            if json is not None:
                write(json, rows)
    show(rows, console, title)
    finish(rows, json)


def end(shortfalls: Iterable[str]):
    """Of every command that measures or records: the last line names what fell short, and the exit code is 1 then."""
    if words := "; ".join(shortfalls):
        say_plainly(words)
        raise typer.Exit(1)


class saying:
    """A spinner with the step in hand; one line a step where there is no terminal."""

    def __enter__(self):
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()
        return self._say

    def _say(self, text: str):
        self._progress.update(self._task, description=text)
        if not console.is_terminal:
            console.print(f"· {text}")

    def __exit__(self, *exc):
        self._progress.stop()


def finish(rows, json: Path | None):
    """Writes the rows where a file is wanted, whatever they say, and ends as they say."""
    from disagg.show.bench.rows import shortfalls, write

    if json is not None:
        write(json, rows)
        say_plainly(f"written: {json}")
    end(shortfalls(rows))
