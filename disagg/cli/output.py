"""What the commands share: the application, the console, and ways to show and store what they find."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from disagg.show import tables
from disagg.trace.files import check_writable, whole
from disagg.trace.files import folder as made

app = typer.Typer(help="A workbench for disaggregated LLM inference.", no_args_is_help=True, add_completion=False)
console = Console()


def out_file(words: str, name: str | None = None) -> Any:
    """An option that names a file to write, which is refused before any work is done for it."""
    return typer.Option(*([name] if name else []), help=words, callback=_writable)


def out_folder(words: str) -> Any:
    """An option that names a folder to write to, which is made before any work is done for it."""
    return typer.Option(help=words, callback=lambda path: None if path is None else made(path))


def _writable(path: Path | None) -> Path | None:
    if path is not None:
        if path.parts[:1] == ("build",):  # ours, in the checkout
            made(path.parent)
        check_writable(path)
    return path


JsonFile = Annotated[Path | None, out_file("also write the rows to this file", "--json")]


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], title: str = "") -> None:
    say_as_it_is(*([title] if title else []), *tables.table(columns, rows, console.width))


def say_plainly(*texts: str) -> None:
    """Sentences, in which nothing is markup, broken between words."""
    say_as_it_is(*(line for text in texts for line in tables.wrapped(text, console.width)))


def say_as_it_is(*lines: str) -> None:
    """Text that may be copied or read by a program."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and names it."""
    with whole(path) as out:
        out.write(content)
    say_as_it_is(f"written: {path}")


def measure(suite: Callable[[Callable[[str], None]], Iterable], title: str, json: Path | None) -> None:
    """Runs a suite and shows its rows; the file is written after each, so that an interrupt loses nothing."""
    from disagg.show.report import show, write

    rows: list = []
    with saying() as say:
        for row in suite(say):
            rows.append(row)
            if json is not None:
                write(json, rows)
    show(rows, console, title)
    finish(rows, json)


def end(shortfalls: Iterable[str]) -> None:
    """Ends a command that measures or records: where something fell short, in a line that names it, and exit code 1."""
    if words := "; ".join(shortfalls):
        say_as_it_is(words)
        raise typer.Exit(1)


@contextmanager
def saying() -> Iterator[Callable[[str], None]]:
    """A spinner with the step in hand; one line a step where there is no terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def say(text: str) -> None:
            progress.update(task, description=text)
            if not console.is_terminal:
                say_plainly(f"· {text}")

        yield say


def finish(rows: Sequence[Any], json: Path | None) -> None:
    """Writes the rows where a file is wanted, whatever they say, and ends as they say."""
    from disagg.show.report import shortfalls, write

    if json is not None:
        write(json, rows)
        say_as_it_is(f"written: {json}")
    end(shortfalls(rows))
