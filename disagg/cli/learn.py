"""Commands that set up, look and show."""

from pathlib import Path
from typing import Annotated

import typer

from disagg.cli import output
from disagg.cli.output import JsonFile, app, out_file
from disagg.plan.errors import FileError


@app.command()
def setup() -> None:
    """Gets the embedded model ready: converts it once into the cache folder."""
    from disagg.run.model.weights import convert_smollm2

    with output.console.status("model smollm2: looking for it") as status:
        folder = convert_smollm2(lambda text: status.update(f"model smollm2: {text}"))
    output.console.print(f"model smollm2: ready ({sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.0f} MB)")


@app.command()
def doctor(json: JsonFile = None) -> None:
    """Says what was found on this machine: devices, attention, model."""
    from disagg.cli import doctor as found

    output.table(("", ""), found.findings())
    output.finish(found.rows(), json)


@app.command()
def demo(
    link_gb_s: Annotated[float, typer.Option(help="the emulated link between the two workers, GB/s")] = 0.03,
    picture: Annotated[Path, out_file("the ladder's picture is written here")] = Path("build/demo.png"),
    json: JsonFile = None,
) -> None:
    """Climbs the ladder of presets on one workload: the same tokens, other times."""
    from disagg.cli import demo as ladder
    from disagg.run.model.model import load_model
    from disagg.show.plots.preset_plot import ladder_picture

    title = f"{len(ladder.LENGTHS)} requests, {ladder.NEW_TOKENS} tokens each, link {link_gb_s:g} GB/s"
    with output.saying() as say:
        say("loading the model")
        model = load_model("smollm2")
        output.say_as_it_is(title, ladder.HEAD)
        say("the ladder: each preset serves the same requests")
        runs = ladder.climb(model, link_gb_s * 1e9, lambda runs: output.say_as_it_is(ladder.last_rung(runs)))
    drawn = ladder_picture(runs)
    drawn.save(picture)
    output.say_plainly(drawn.finding)
    output.say_as_it_is(f"written: {picture}")
    output.finish(ladder.rows(runs), json)


@app.command()
def watch(
    preset: Annotated[str, typer.Option(help="a rung of the ladder")] = "streamed",
    model: Annotated[str, typer.Option(help="smollm2, tiny, or a folder")] = "smollm2",
    link_gb_s: Annotated[float, typer.Option(help="the emulated link between the two workers, GB/s")] = 0.03,
    requests: Annotated[int, typer.Option(help="how many questions", min=1)] = 6,
    new_tokens: Annotated[int, typer.Option(help="tokens of each answer", min=1)] = 32,
) -> None:
    """Serves questions and draws the timeline in the terminal meanwhile; Ctrl-C ends what is open."""
    from disagg import Config, Engine, Request
    from disagg.cli import terminal
    from disagg.show.example_prompts import QUESTIONS

    config = Config.preset(preset, model=model, link=link_gb_s * 1e9)
    asked = [Request(QUESTIONS[i % len(QUESTIONS)], new_tokens, 0.2 * i) for i in range(requests)]
    with output.console.status(f"model {model}: loading"):
        engine = Engine(config)
    with engine:
        terminal.watch(engine, asked, output.console)


@app.command()
def serve(
    preset: Annotated[str, typer.Option(help="a rung of the ladder")] = "streamed",
    model: Annotated[str, typer.Option(help="smollm2, tiny, or a folder")] = "smollm2",
    port: Annotated[int, typer.Option(help="of 127.0.0.1; 0: any that is free", min=0, max=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="DISAGG_TOKEN", help="clients send it; else one is made")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="a page that may ask from a browser")] = None,
) -> None:
    """Serves OpenAI's interface on this machine to any client of it, until Ctrl-C. Needs the extra `serve`."""
    from disagg import Config, Engine
    from disagg.serve import serve as opened

    config = Config.preset(preset, model=model)
    with output.console.status(f"model {model}: loading"):
        engine = Engine(config)
    with engine, opened(engine, port, token, origin or []) as server:
        output.say_as_it_is(
            f"serving {model}, preset {preset}; Ctrl-C ends it. For a client of OpenAI's interface:",
            f"  export OPENAI_BASE_URL={server.url} OPENAI_API_KEY={server.token}",
            f"  curl -s {server.url}/completions -H 'Authorization: Bearer {server.token}' "
            """-d '{"prompt": "The sky is", "temperature": 0}'""",
            f"metrics for Prometheus, with the same token: {server.url.removesuffix('/v1')}/metrics",
        )
        server.wait()


@app.command()
def slides(
    notebooks: Annotated[list[Path], typer.Argument(help="notebooks with their stored outputs")],
    folder: Annotated[Path, typer.Option(help="where the decks go")] = Path("build/slides"),
) -> None:
    """Turns notebooks into reveal.js decks, each one file that needs no network; cells tagged `live` are left out."""
    from disagg.cli.deck import deck
    from disagg.trace.files import folder as made

    for notebook in notebooks:
        content = deck(notebook).encode()
        output.write(made(folder) / f"{notebook.stem}.html", content)


@app.command()
def site(
    folder: Annotated[Path, typer.Option(help="written anew, for any static host")] = Path("build/site"),
    cache: Annotated[Path, typer.Option(help="where Pyodide is kept; npm fetches it once")] = Path("build/cache"),
) -> None:
    """Builds the explorer: a page on which the twin runs in the browser, with no Python installed."""
    from disagg.explorer.site import build

    with output.console.status("site: the page, and Pyodide (npm fetches 5 MB once)"):
        build(folder, cache)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    output.say_as_it_is(f"written: {folder} ({size / 1e6:.0f} MB)")


@app.command()
def timeline(
    file: Annotated[Path, typer.Argument(help="a recording: what run.save(...) wrote")],
    perfetto: Annotated[Path | None, out_file("also write trace events for ui.perfetto.dev here")] = None,
    png: Annotated[Path | None, out_file("also write the picture here")] = None,
    receipts: Annotated[bool, typer.Option("--receipts", help="also say where the milliseconds went")] = False,
) -> None:
    """Reads a saved run: a sentence, what each device and link did, and on demand its picture, trace and receipts."""
    from disagg.show.plots import summaries
    from disagg.trace.results import Run

    run = Run.load(file)
    for out in (perfetto, png):
        if out is not None and out.resolve() == file.resolve():
            raise typer.BadParameter(f"{out} is the recording itself; name another file")
    if run.timeline.end_ns <= run.timeline.start_ns:
        raise FileError(f"{file} holds {summaries.plural(len(run.results), 'request')}, but no time was recorded")
    output.say_plainly(summaries.sentence(run), f"Recorded on {run.machine or 'a machine without a name'}.")
    output.table(("", "busy", "spans", "moved"), summaries.places(run.timeline))
    if receipts:
        rows = [(name, f"{1e3 * seconds:.1f} ms") for name, seconds in run.receipts().items()]
        output.table(("a request, on average", "time"), rows)
    if perfetto is not None:
        run.timeline.to_perfetto(perfetto)
        output.say_as_it_is(f"written: {perfetto}")
    if png is not None:
        from disagg.show.plots.timeline_plot import timeline_picture

        timeline_picture(run).save(png)
        output.say_as_it_is(f"written: {png}")
