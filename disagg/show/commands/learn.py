"""Commands for whoever sets up, looks and shows."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from disagg.plan.errors import FileError
from disagg.show.commands import told
from disagg.show.commands.told import JsonFile, app, out_file


@app.command()
def setup():
    """Gets the embedded model ready: converts it once into the cache folder."""
    from disagg.run.weights import convert_smollm2

    with told.console.status("model smollm2: looking for it") as status:
        folder = convert_smollm2(lambda text: status.update(f"model smollm2: {text}"))
    told.console.print(f"model smollm2: ready ({sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.0f} MB)")


@app.command()
def doctor(json: JsonFile = None):
    """Says what was found on this machine: devices, attention, model."""
    from disagg.show import doctor as found

    told.table(("", ""), found.findings())
    told.finish(found.rows(), json)


@app.command()
def demo(
    link_gb_s: Annotated[float, typer.Option(help="the emulated wire between the two workers, GB/s")] = 0.03,
    picture: Annotated[Path, out_file("the ladder's picture is written here")] = Path("build/demo.png"),
    json: JsonFile = None,
):
    """Climbs the ladder of presets on one workload: the same tokens, other times."""
    from disagg.plan.config import PRESETS
    from disagg.run.model import load_model
    from disagg.show import demo as ladder
    from disagg.show.ladder import ladder_picture

    columns, quiet = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()), not told.console.is_terminal
    with Progress(*columns, console=told.console, disable=quiet) as progress:
        task = progress.add_task("loading the model", total=len(PRESETS))
        model = load_model("smollm2")
        progress.update(task, description="the ladder")
        runs = ladder.climb(model, link_gb_s * 1e9, lambda name: progress.update(task, advance=1, description=name))
    title = f"{len(ladder.LENGTHS)} requests, {ladder.NEW_TOKENS} tokens each, link {link_gb_s:g} GB/s"
    told.table(("preset", "TTFT", "gap 2", "tokens/s", "H", "tokens equal"), ladder.cells(runs), title)
    drawn = ladder_picture(runs)
    drawn.save(picture)
    told.say_plainly(drawn.finding)
    told.say_as_it_is(f"written: {picture}")
    told.finish(ladder.rows(runs), json)


@app.command()
def watch(
    preset: Annotated[str, typer.Option(help="a rung of the ladder")] = "streamed",
    model: Annotated[str, typer.Option(help="smollm2, tiny, or a folder")] = "smollm2",
    link_gb_s: Annotated[float, typer.Option(help="the emulated wire between the two workers, GB/s")] = 0.03,
    requests: Annotated[int, typer.Option(help="how many questions", min=1)] = 6,
    new_tokens: Annotated[int, typer.Option(help="tokens of each answer", min=1)] = 32,
):
    """Serves questions and draws the timeline in the terminal meanwhile; Ctrl-C ends what is open."""
    from disagg import Config, Engine, Request
    from disagg.show import terminal
    from disagg.show.figures import QUESTIONS

    config = Config.preset(preset, model=model, link=link_gb_s * 1e9)
    asked = [Request(QUESTIONS[i % len(QUESTIONS)], new_tokens, 0.2 * i) for i in range(requests)]
    with told.console.status(f"model {model}: loading"):
        engine = Engine(config)
    with engine:
        terminal.watch(engine, asked, told.console)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="which picture of figures/, or all")] = "all",
    fresh: Annotated[bool, typer.Option("--fresh", help="first serve the seven questions of the film again")] = False,
):
    """Draws pictures of figures/ again, from recordings, measured rows and the twin: the same data, the same bytes."""
    from disagg.show import figures

    if name not in (*figures.FIGURES, "all"):
        known = ", ".join(figures.FIGURES)
        raise typer.BadParameter(f"{name!r} is unknown; known: {known}, and all", param_hint="NAME")
    with told.saying() as say:
        if fresh:
            say("a real run of seven questions")
            figures.record()
        for each in figures.FIGURES if name == "all" else (name,):
            say(f"figure {each}")
            told.say_as_it_is(f"written: {figures.make(each)}")


@app.command()
def claims(
    check: Annotated[bool, typer.Option("--check", help="only what is stale or unbacked")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="work out the ledger anew, and README's numbers")] = False,
    only: Annotated[str | None, typer.Option(help="one claim, by its id, computed anew")] = None,
    json: Annotated[bool, typer.Option("--json", help="the ledger as it is stored, or the one claim")] = False,
):
    """Every number of README and notebooks: what backs it, how to get it again, and whether it still holds."""
    from disagg.show.claims import table

    if only is not None:
        (told.say_as_it_is if json else told.say_plainly)(table.one(only, json))
        return
    if json:
        told.say_as_it_is(table.stored())
        return
    found = table.ledger.refresh() if refresh else table.ledger.problems()
    if not check:
        told.table(table.COLUMNS, table.rows())
    told.say_plainly(*found)
    told.end([table.verdict(found)] if found else ())
    told.say_plainly(table.verdict(found))


@app.command()
def slides(
    notebooks: Annotated[list[Path], typer.Argument(help="notebooks with their stored outputs")],
    folder: Annotated[Path, typer.Option(help="where the decks go")] = Path("build/slides"),
):
    """Turns notebooks into reveal.js decks, each one file that needs no network; cells tagged `live` are left out."""
    from disagg.plan.files import folder as made
    from disagg.plan.files import whole
    from disagg.show.deck import deck

    for notebook in notebooks:
        path, content = folder / f"{notebook.stem}.html", deck(notebook).encode()
        made(folder)
        with whole(path) as out:
            out.write(content)
        told.say_as_it_is(f"written: {path}")


@app.command()
def site(
    folder: Annotated[Path, typer.Option(help="written anew, for any static host")] = Path("build/site"),
    cache: Annotated[Path, typer.Option(help="where Pyodide is kept; npm fetches it once")] = Path("build/cache"),
):
    """Builds the explorer: a page on which the twin runs in the browser, with no Python installed."""
    from disagg.show.explorer.site import build

    with told.console.status("site: the page, and Pyodide (npm fetches 5 MB once)"):
        build(folder, cache)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    told.say_as_it_is(f"written: {folder} ({size / 1e6:.0f} MB)")


@app.command()
def timeline(
    file: Annotated[Path, typer.Argument(help="a recording: what run.save(...) wrote")],
    perfetto: Annotated[Path | None, out_file("also write trace events for ui.perfetto.dev here")] = None,
    png: Annotated[Path | None, out_file("also write the picture here")] = None,
    receipts: Annotated[bool, typer.Option("--receipts", help="also say where the milliseconds went")] = False,
):
    """Reads a saved run: a sentence, what each device and link did, and on demand its picture, trace and receipts."""
    from disagg.plan.results import Run
    from disagg.show import facts

    run = Run.load(file)
    for out in (perfetto, png):
        if out is not None and out.resolve() == file.resolve():
            raise typer.BadParameter(f"{out} is the recording itself; name another file")
    if run.timeline.end_ns <= run.timeline.start_ns:
        raise FileError(f"{file} holds {facts.plural(len(run.results), 'request')}, but no time was recorded")
    told.say_plainly(facts.sentence(run), f"Recorded on {run.machine or 'a machine without a name'}.")
    told.table(("", "busy", "spans", "moved"), facts.places(run.timeline))
    if receipts:
        rows = [(name, f"{1e3 * seconds:.1f} ms") for name, seconds in run.receipts().items()]
        told.table(("a request, on average", "time"), rows)
    if perfetto is not None:
        run.timeline.to_perfetto(perfetto)
        told.say_as_it_is(f"written: {perfetto}")
    if png is not None:
        from disagg.show.plots import timeline_picture

        timeline_picture(run).save(png)
        told.say_as_it_is(f"written: {png}")
