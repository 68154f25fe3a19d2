"""The command line: `python -m disagg --help` lists the commands."""

import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from disagg.plan.errors import DisaggError, FileError

app = typer.Typer(help="A workbench for disaggregated LLM inference.", no_args_is_help=True, add_completion=False)
console = Console()
SUITES = ("cpu", "law", "see", "notebooks", "explorer")  # of `bench`, by module; the others take options of their own
TRACED = ("twin", "two-gpu")  # suites that serve or simulate traces
JsonFile = Annotated[Path | None, typer.Option("--json", help="also write the rows to this file")]


@app.command()
def setup():
    """Gets the embedded model ready: converts it once into the cache folder."""
    from disagg.run.weights import convert_smollm2

    with console.status("model smollm2: looking for it") as status:
        folder = convert_smollm2(lambda text: status.update(f"model smollm2: {text}"))
    console.print(f"model smollm2: ready ({sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.0f} MB)")


@app.command()
def doctor(json: JsonFile = None):
    """Says what was found on this machine: devices, attention, model."""
    from disagg.show import doctor as found

    table = Table(show_header=False, box=None)
    for what, finding in found.findings():
        table.add_row(f"[bold]{what}[/bold]", finding)
    console.print(table)
    _finish(found.rows(), json)


@app.command()
def demo(
    link_gb_s: Annotated[float, typer.Option(help="the emulated wire between the two workers, GB/s")] = 0.03,
    picture: Annotated[Path, typer.Option(help="the ladder's picture is written here")] = Path("build/demo.png"),
    json: JsonFile = None,
):
    """Climbs the ladder of presets on one workload: the same tokens, other times."""
    from disagg.plan.config import PRESETS
    from disagg.plan.files import whole
    from disagg.run.model import load_model
    from disagg.show import demo as ladder
    from disagg.show.ladder import Rung, ladder_picture

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("loading the model", total=len(PRESETS))
        model = load_model("smollm2")
        progress.update(task, description="the ladder")
        runs = ladder.climb(model, link_gb_s * 1e9, lambda name: progress.update(task, advance=1, description=name))
    table = Table(title=f"{len(ladder.LENGTHS)} requests, {ladder.NEW_TOKENS} tokens each, link {link_gb_s:g} GB/s")
    for column in ("preset", "TTFT p50", "second-token gap p50", "tokens/s", "H", "tokens equal"):
        table.add_column(column, justify="left" if column == "preset" else "right")
    for name, same in ladder.same_tokens(runs).items():
        rung = Rung.of(name, runs[name])
        hidden = "" if rung.hidden is None else f"{rung.hidden:.2f}"
        gap = f"{rung.second_token_gap_s * 1000:.0f} ms"
        table.add_row(name, f"{rung.ttft_s:.2f} s", gap, f"{rung.tokens_per_s:.1f}", hidden, "yes" if same else "NO")
    console.print(table)
    drawn = ladder_picture(runs)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with whole(picture) as out:
        out.write(drawn.png())
    _say_plainly(drawn.finding, f"written: {picture}")
    _finish(ladder.rows(runs), json)


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
    with console.status(f"model {model}: loading"):
        engine = Engine(config)
    with engine:
        terminal.watch(engine, asked, console)


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
    with _saying() as say:
        if fresh:
            say("a real run of seven questions")
            figures.record()
        for each in figures.FIGURES if name == "all" else (name,):
            say(f"figure {each}")
            _say_plainly(f"written: {figures.make(each)}")


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
        _say_plainly(table.one(only, json))
        return
    if json:
        _say_plainly(table.stored())
        return
    found = table.ledger.refresh() if refresh else table.ledger.problems()
    if not check:
        console.print(table.drawn())
    _say_plainly(*found, table.verdict(found))
    if found:
        raise typer.Exit(1)


@app.command()
def slides(
    notebooks: Annotated[list[Path], typer.Argument(help="notebooks with their stored outputs")],
    folder: Annotated[Path, typer.Option(help="where the decks go")] = Path("build/slides"),
):
    """Turns notebooks into reveal.js decks, each one file that needs no network; cells tagged `live` are left out."""
    from disagg.plan.files import whole
    from disagg.show.deck import deck

    folder.mkdir(parents=True, exist_ok=True)
    for notebook in notebooks:
        path = folder / f"{notebook.stem}.html"
        with whole(path) as out:
            out.write(deck(notebook).encode())
        _say_plainly(f"written: {path}")


@app.command()
def site(
    folder: Annotated[Path, typer.Option(help="written anew, for any static host")] = Path("build/site"),
    cache: Annotated[Path, typer.Option(help="where Pyodide is kept; npm fetches it once")] = Path("build/cache"),
):
    """Builds the explorer: a page on which the twin runs in the browser, with no Python installed."""
    from disagg.show.explorer.site import build

    with console.status("site: the page, and Pyodide (npm fetches 5 MB once)"):
        build(folder, cache)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _say_plainly(f"written: {folder} ({size / 1e6:.0f} MB)")


@app.command()
def timeline(
    file: Annotated[Path, typer.Argument(help="a recording: what run.save(...) wrote")],
    perfetto: Annotated[Path | None, typer.Option(help="also write trace events for ui.perfetto.dev here")] = None,
    png: Annotated[Path | None, typer.Option(help="also write the picture here")] = None,
    receipts: Annotated[bool, typer.Option("--receipts", help="also say where the milliseconds went")] = False,
):
    """Reads a saved run: a sentence, what each device and link did, and on demand its picture, trace and receipts."""
    from disagg.plan.files import whole
    from disagg.plan.results import Run
    from disagg.show import facts

    run = Run.load(file)
    for out in (perfetto, png):
        if out is not None and out.resolve() == file.resolve():
            raise typer.BadParameter(f"{out} is the recording itself; name another file")
    if run.timeline.end_ns <= run.timeline.start_ns:
        raise FileError(f"{file} holds {facts.plural(len(run.results), 'request')}, but no time was recorded")
    _say_plainly(facts.sentence(run), f"Recorded on {run.machine or 'a machine without a name'}.")
    console.print(_table(("", "busy", "spans", "moved"), facts.places(run.timeline)))
    if receipts:
        rows = [(name, f"{1e3 * seconds:.1f} ms") for name, seconds in run.receipts().items()]
        console.print(_table(("a request, on average", "time"), rows))
    if perfetto is not None:
        run.timeline.to_perfetto(perfetto)
        _say_plainly(f"written: {perfetto}")
    if png is not None:
        from disagg.show.plots import timeline_picture

        with whole(png) as out:
            out.write(timeline_picture(run).png())
        _say_plainly(f"written: {png}")


def _table(columns: tuple[str, ...], rows) -> Table:
    table = Table(box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _say_plainly(*lines: str):
    """Text from a file, in which nothing is markup."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)  # a path is copied whole


@app.command()
def parity(
    json: JsonFile = None,
    prompts: Annotated[int, typer.Option(help="prompts for the embedded model")] = 64,
    new_tokens: Annotated[int, typer.Option(help="tokens of each answer")] = 32,
):
    """Compares every preset's logits with the untouched Hugging Face model's."""
    from disagg.show.bench import parity as bench

    _measure(lambda say: bench.suite(say, prompts, new_tokens), "parity", json)


@app.command()
def buglab(
    json: JsonFile = None,
    seeds: Annotated[
        int | None, typer.Option(help="of the shipped code; left out: as many as fit into a minute", min=1)
    ] = None,
):
    """Puts ten real bugs back, one at a time: each must be caught by its own detector, and the shipped code by none."""
    from disagg.show.bench import buglab as bench

    _measure(lambda say: bench.suite(say, seeds), "buglab", json)


@app.command()
def bench(
    suite: Annotated[str, typer.Option(help="cpu, law, see, notebooks, twin, explorer, gpu or two-gpu")] = "cpu",
    json: JsonFile = None,
    shape: Annotated[
        str | None, typer.Option(help="gpu: llama3-8b, qwen3-8b, qwen3-0.6b (random weights), tiny, or a folder")
    ] = None,
    only: Annotated[str | None, typer.Option(help="gpu: rows or groups of them, comma between")] = None,
    sm_split: Annotated[int | None, typer.Option(help="gpu: SMs for decode where prefill shares its GPU")] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(help="two-gpu, twin: Azure's .csv or Mooncake's .jsonl; may be repeated"),
    ] = None,
):
    """Measures what the workbench claims about this machine; takes minutes, best with nothing else running."""
    on_gpus = suite in ("gpu", "two-gpu")
    if suite not in (*SUITES, "twin") and not on_gpus:
        known = ", ".join((*SUITES, "twin", "gpu", "two-gpu"))
        raise typer.BadParameter(f"{suite!r} is unknown; known: {known}", param_hint="--suite")
    if not on_gpus and (shape, only) != (None, None):
        raise typer.BadParameter("--shape and --only belong to --suite gpu and two-gpu")
    if (suite != "gpu" and sm_split is not None) or (suite not in TRACED and trace):
        raise typer.BadParameter("--sm-split belongs to --suite gpu, and --trace to --suite twin and two-gpu")
    if on_gpus:
        from disagg.show.bench.gpu import suite as gpu

        shape, sms = shape or "llama3-8b", 32 if sm_split is None else sm_split
        rows = partial(gpu.one, sm_split=sms) if suite == "gpu" else partial(gpu.two, traces=trace or ())
        _measure(lambda say: rows(say, shape, only), f"bench, suite {suite}, shape {shape}", json)
        return
    # each by itself: they need packages that a machine for another one may lack
    rows = import_module(f"disagg.show.bench.{suite}").suite
    _measure(partial(rows, traces=trace or ()) if suite == "twin" else rows, f"bench, suite {suite}", json)


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="the calibration is written here")] = Path("calibration.json"),
    preset: Annotated[str, typer.Option(help="which arrangement of workers is measured")] = "streamed",
    model: Annotated[str, typer.Option(help="smollm2, or a folder that holds a model")] = "smollm2",
):
    """Fits the twin's cost model to this machine: a minute of designed work, with nothing else running."""
    from disagg.plan.config import Config
    from disagg.run.engine import Engine
    from disagg.show import calibrate as bench

    with _saying() as say:
        say("a designed run")
        with Engine(Config.preset(preset, model=model)) as engine:
            found = bench.calibrate(engine)
    found.save(out)
    _say_plainly(str(found), f"written: {out}")


@app.command()
def validate(
    json: JsonFile = None,
    calibration: Annotated[Path | None, typer.Option(help="a file that `calibrate` wrote; else it runs first")] = None,
    picture: Annotated[Path | None, typer.Option(help="a folder for pictures, one a workload")] = None,
):
    """Serves requests for real and under the virtual clock: how far off is the twin on this machine?"""
    from disagg.plan.calibration import Calibration
    from disagg.run.model import load_model
    from disagg.show.bench import twin

    fitted = None if calibration is None else Calibration.load(calibration)
    _measure(lambda say: twin.cpu_rows(say, load_model("smollm2"), fitted, picture), "validate", json)


@app.command()
def tune(
    ttft: Annotated[float, typer.Option(help="limit on the time to first token, s")],
    tpot: Annotated[float, typer.Option(help="limit on the time per output token, s")],
    hardware: Annotated[str, typer.Option(help="up to these devices: 4xH100, 2xL4, H100+L4")] = "2xH100",
    model: Annotated[str, typer.Option(help="smollm2, or a shape as random-llama3-8b")] = "random-llama3-8b",
    share: Annotated[float, typer.Option(help="of the requests that must meet both limits")] = 0.9,
    trace: Annotated[Path | None, typer.Option(help="arrivals: Azure's .csv or Mooncake's .jsonl")] = None,
    lengths: Annotated[float, typer.Option(help="factor on all lengths of the trace")] = 1.0,
    requests: Annotated[int, typer.Option(help="how many: drawn, or the trace's first", min=2)] = 200,
    prompt: Annotated[int, typer.Option(help="drawn prompts: median tokens, with a long tail", min=1)] = 800,
    new: Annotated[int, typer.Option(help="drawn answers: median tokens", min=1)] = 100,
    price: Annotated[float | None, typer.Option(help="of a device-hour; left out: devices are counted")] = None,
    seed: Annotated[int, typer.Option(help="of what is drawn")] = 0,
    png: Annotated[Path | None, typer.Option(help="also write the picture here")] = None,
    json: JsonFile = None,
):
    """Finds on the twin who should prefill and who decode, with which budgets, for the highest goodput; minutes."""
    from disagg.plan.files import whole
    from disagg.plan.goodput import Slo
    from disagg.plan.tuning import tune as search
    from disagg.show import fronts

    asked = {"trace": trace, "lengths": lengths, "count": requests, "prompt": prompt, "new": new, "seed": seed}
    with _saying() as say:
        found = search(
            fronts.workload(**asked), hardware, Slo(ttft, tpot, share), model, prices=price, seed=seed, say=say
        )
    console.print(_table(fronts.COLUMNS, fronts.front_rows(found)))
    _say_plainly(fronts.front_in_words(found), fronts.effort(found))
    for path, content in (
        (png, lambda: fronts.front_picture(found).png()),
        (json, lambda: fronts.as_json(found, asked)),
    ):
        if path is not None:
            with whole(path) as out:
                out.write(content())
            _say_plainly(f"written: {path}")


@app.command()
def fuzz(
    reader: Annotated[str, typer.Option(help="which reader of files, or all")] = "all",
    minutes: Annotated[float, typer.Option(help="for each reader", min=0)] = 10.0,
    seed: Annotated[int, typer.Option(help="the same seed makes the same files")] = 0,
    input: Annotated[Path | None, typer.Option(help="read this one file again, and show what comes back")] = None,
    json: JsonFile = None,
):
    """Reads files made wrong at random: whatever is not refused in words is kept in build/fuzz, and counted."""
    from disagg.show.bench import fuzz as bench

    if reader not in (*bench.READERS, "all") or (input is not None and reader == "all"):
        raise typer.BadParameter(f"{reader!r} is unknown; known: {', '.join(bench.READERS)}", param_hint="--reader")
    if input is not None:
        found = bench.READERS[reader].read(input)
        _say_plainly(f"{input} was taken: {type(found).__name__}")
        return
    _measure(lambda say: bench.suite(say, reader, minutes, seed), "fuzz", json)


@app.command()
def soak(
    json: JsonFile = None,
    seeds: Annotated[int, typer.Option(help="simulated worlds", min=1)] = 10_000,
    requests: Annotated[int, typer.Option(help="requests of the real engine", min=1)] = 10_000,
    seed: Annotated[int | None, typer.Option(help="only this world, with what it did", min=0)] = None,
):
    """Simulated worlds with faults under every detector, a small world in every order, and the real engine likewise."""
    if seed is None:
        from disagg.show.bench import soak as bench

        _measure(lambda say: bench.suite(say, seeds, requests), "soak", json)
        return
    from disagg.plan.drawn import SeedFailed, simulate_seed

    try:
        world = simulate_seed(seed)
    except SeedFailed as failure:
        _say_plainly(str(failure))
        raise typer.Exit(1) from None
    happened = ", ".join(f"{name} {count}" for name, count in sorted(world.happened.items()) if count)
    _say_plainly(f"seed {seed}: {len(world.jobs)} requests, {len(world.log)} events, all ended well: {happened}")


@app.command(name="record-gpu")
def record_gpu(
    shape: Annotated[
        str, typer.Option(help="llama3-8b, llama3-1b, qwen3-8b, qwen3-0.6b: random weights")
    ] = "llama3-8b",
    out: Annotated[Path, typer.Option(help="the folder of the recordings")] = Path("figures/data"),
    only: Annotated[
        str | None, typer.Option(help="steps, timelines, staged; of two GPUs crowd, routes, paged; comma between")
    ] = None,
    sm_split: Annotated[int, typer.Option(help="SMs for decode where prefill shares its GPU", min=1)] = 32,
    two: Annotated[bool, typer.Option("--two", help="two GPUs, prefill on the one and decode on the other")] = False,
):
    """Records one GPU for notebook 07 (steps, ways to share it, the staged route), or two for 02 to 04; minutes."""
    import torch

    from disagg.run.shapes import SHAPES
    from disagg.show.bench.gpu import record
    from disagg.show.bench.rows import LeftOut

    if shape not in SHAPES:  # a folder's name would stand in the files
        raise typer.BadParameter(f"{shape!r} is unknown; known: {', '.join(SHAPES)}", param_hint="--shape")
    if not torch.cuda.is_available():
        raise typer.BadParameter(
            f"a recording needs an NVIDIA GPU that torch can use, and torch {torch.__version__} finds none here; "
            "bench --suite gpu --shape tiny measures in the same way, in small sizes, on any machine"
        )
    left_out = []
    with _saying() as say:
        for done in record.record(record.make_stand(shape, say, sm_split, two), out, only):
            if isinstance(done, LeftOut):
                left_out.append(done)
            else:
                _say_plainly(f"written: {done} ({done.stat().st_size / 1e3:.0f} kB)")
    for part in left_out:
        _say_plainly(f"left out: {part.name}: {part.reason}")
    if left_out:
        raise typer.Exit(1)


def _measure(suite, title: str, json: Path | None):
    """Runs a suite and shows its rows; the file is written after each, so that an interrupt loses nothing."""
    from disagg.show.bench.rows import show, write

    rows = []
    with _saying() as say:
        for row in suite(say):
            rows.append(row)
            if json is not None:
                write(json, rows)
    show(rows, console, title)
    if json is not None:
        console.print(f"written: {json}")


class _saying:
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


def _finish(rows, json: Path | None):
    from disagg.show.bench.rows import write

    if json is not None:
        write(json, rows)
        console.print(f"written: {json}")


def main():
    """An error that a user can cause is a sentence here, not a traceback."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded at run time
    try:
        app(standalone_mode=True)
    except DisaggError as error:
        console.print(f"[bold]{type(error).__name__}[/bold]: {escape(str(error))}", highlight=False)
        raise SystemExit(1) from None
