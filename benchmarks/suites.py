"""`python -m benchmarks`: what measures this machine, breaks things on purpose, and checks what the documents say."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from disagg.cli import output
from disagg.cli.main import run
from disagg.cli.output import JsonFile

app = typer.Typer(help="Measurements and soaks of the workbench.", no_args_is_help=True, add_completion=False)
main = partial(run, app)

#: Suites without options of their own: the module, and what it measures.
SUITES = {
    "cpu": ("cpu", "The engine on this machine's CPU: start, steps, batches, paging, padding."),
    "law": ("overlap_law", "How much of a hand-off hides behind prefill, against the law."),
    "ablation": ("ablation", "Each switch of a hand-off, off one at a time: prefill, H, second token, decode's gaps."),
    "house": (
        "house",
        "The shape of the code: its lines, its imports, what is too long or has one name twice, its types.",
    ),
    "scale": (
        "scale",
        "One controller of many workers; the door for clients under load; a load generator's word on it.",
    ),
    "explorer": ("explorer", "The explorer's twin in a browser against the one here."),
}
Shape = Annotated[str, typer.Option(help="llama3-8b, qwen3-8b, qwen3-0.6b (random weights), tiny, or a folder")]
Only = Annotated[str | None, typer.Option(help="rows or groups of them, comma between")]
Traces = Annotated[
    list[Path] | None, typer.Option("--trace", help="Azure's .csv or Mooncake's .jsonl; may be repeated")
]


def _suite(name: str, module: str) -> Callable:
    def measure(json: JsonFile = None) -> None:
        # each is imported by itself: it may need packages that a machine for another one lacks
        output.measure(import_module(f"benchmarks.{module}").suite, name, json)

    return measure


for _name, (_module, _help) in SUITES.items():
    app.command(name=_name, help=_help)(_suite(_name, _module))


@app.command()
def notebooks(
    only: Annotated[str | None, typer.Option(help="form, seconds, mine, green, bite, browser; comma between")] = None,
    json: JsonFile = None,
) -> None:
    """Every notebook: words, seconds, strict comparison four times over, the bite test, its widgets in a browser."""
    from benchmarks.robustness import notebooks as bench

    output.measure(lambda say: bench.suite(say, only), "notebooks", json)


@app.command()
def twin(trace: Traces = None, json: JsonFile = None) -> None:
    """The simulator against recorded decisions, closed forms, real runs, and a day of requests."""
    from benchmarks import twin_accuracy

    output.measure(partial(twin_accuracy.suite, traces=trace or ()), "twin", json)


@app.command()
def gpu(
    shape: Shape = "llama3-8b",
    only: Only = None,
    sm_split: Annotated[int, typer.Option(help="SMs for decode where prefill shares its GPU")] = 32,
    json: JsonFile = None,
) -> None:
    """One GPU that plays both devices, against what its hardware allows and against other engines."""
    from benchmarks.gpu import suite

    output.measure(lambda say: suite.one(say, shape, only, sm_split), f"gpu, shape {shape}", json)


@app.command(name="two-gpu")
def two_gpu(shape: Shape = "llama3-8b", only: Only = None, trace: Traces = None, json: JsonFile = None) -> None:
    """Two GPUs of one host, prefill on the one and decode on the other."""
    from benchmarks.gpu import suite

    output.measure(lambda say: suite.two(say, shape, only, trace or ()), f"two-gpu, shape {shape}", json)


@app.command()
def policy(only: Only = None, trace: Traces = None, json: JsonFile = None) -> None:
    """The scheduler: its decisions' time, parking, mixed passes, split or stay, chosen arms, a limit on gaps."""
    from benchmarks.policy import suite

    output.measure(lambda say: suite.suite(say, only, trace or ()), "policy", json)


@app.command()
def report(
    shape: Annotated[
        str | None, typer.Option(help="llama3-8b, qwen3-0.6b, smollm2, tiny; by itself, what fits")
    ] = None,
    json: JsonFile = None,
) -> None:
    """The report's 60 and 96 %, 20x and 4x: ran here, recorded or by the twin, each beside its rivals; 3 minutes."""
    from benchmarks.report.here import here
    from benchmarks.report.table import cells, lines
    from disagg.show.report import Failed, write

    with output.saying() as say:
        rows = list(cells(here(say, shape)))
    output.say_as_it_is(*lines(rows))
    if json is not None:
        write(json, rows)
        output.say_as_it_is(f"written: {json}")
    output.end(f"{row.name}: {row.reason}" for row in rows if isinstance(row, Failed))


@app.command()
def parity(
    json: JsonFile = None,
    prompts: Annotated[int, typer.Option(help="prompts for the embedded model")] = 64,
    new_tokens: Annotated[int, typer.Option(help="tokens of each answer")] = 32,
) -> None:
    """Compares every preset's logits with the untouched Hugging Face model's."""
    from benchmarks import parity as bench

    output.measure(lambda say: bench.suite(say, prompts, new_tokens), "parity", json)


@app.command()
def buglab(
    json: JsonFile = None,
    seeds: Annotated[
        int | None, typer.Option(help="of the shipped code; left out: as many as fit into a minute", min=1)
    ] = None,
) -> None:
    """Puts ten real bugs back, one at a time: each must be caught by its own detector, and the shipped code by none."""
    from benchmarks.robustness import buglab as bench

    output.measure(lambda say: bench.suite(say, seeds), "buglab", json)


@app.command()
def fuzz(
    reader: Annotated[str, typer.Option(help="which reader of files, or all")] = "all",
    minutes: Annotated[float, typer.Option(help="for each reader", min=0)] = 10.0,
    seed: Annotated[int, typer.Option(help="the same seed makes the same files")] = 0,
    input: Annotated[Path | None, typer.Option(help="read this one file again, and show what comes back")] = None,
    json: JsonFile = None,
) -> None:
    """Reads files made wrong at random: whatever is not refused in words is kept in build/fuzz, and counted."""
    from benchmarks.robustness import fuzz as bench

    if reader not in (*bench.READERS, "all") or (input is not None and reader == "all"):
        raise typer.BadParameter(f"{reader!r} is unknown; known: {', '.join(bench.READERS)}", param_hint="--reader")
    if input is not None:
        found = bench.READERS[reader].read(input)
        output.say_plainly(f"{input} was taken: {type(found).__name__}")
        return
    output.measure(lambda say: bench.suite(say, reader, minutes, seed), "fuzz", json)


@app.command()
def soak(
    json: JsonFile = None,
    seeds: Annotated[int, typer.Option(help="simulated worlds", min=1)] = 10_000,
    requests: Annotated[int, typer.Option(help="requests of the real engine", min=1)] = 10_000,
    seed: Annotated[int | None, typer.Option(help="only this world, with what it did", min=0)] = None,
) -> None:
    """Simulated worlds with faults under every detector, a small world in every order, and the real engine likewise."""
    if seed is None:
        from benchmarks.robustness import soak as bench

        output.measure(lambda say: bench.suite(say, seeds, requests), "soak", json)
        return
    from benchmarks.robustness.random_scenarios import SeedFailed, simulate_seed

    try:
        world = simulate_seed(seed)
    except SeedFailed as failure:
        output.say_as_it_is(*str(failure).splitlines()[:-1])  # a log, line by line
        output.end(str(failure).splitlines()[-1:])
    happened = ", ".join(f"{name} {count}" for name, count in sorted(world.happened.items()) if count)
    output.say_plainly(f"seed {seed}: {len(world.jobs)} requests, {len(world.log)} events, all ended well: {happened}")


@app.command(name="record-gpu")
def record_gpu(
    shape: Annotated[
        str, typer.Option(help="llama3-8b, llama3-1b, qwen3-8b, qwen3-0.6b: random weights")
    ] = "llama3-8b",
    out: Annotated[Path, typer.Option(help="the folder of the recordings")] = Path("figures/data"),
    only: Annotated[
        str | None,
        typer.Option(
            help="steps, hand_off, timelines, splits, staged; of two GPUs crowd, routes, paged; comma between"
        ),
    ] = None,
    sm_split: Annotated[int, typer.Option(help="SMs for decode where prefill shares its GPU", min=1)] = 32,
    two: Annotated[bool, typer.Option("--two", help="two GPUs, prefill on the one and decode on the other")] = False,
) -> None:
    """Records one GPU for notebook 07 (steps, hand-offs, sharing, the staged route), or two for 02 to 04; minutes."""
    import torch

    from benchmarks.gpu import record
    from disagg.run.model.random_models import SHAPES
    from disagg.show.report import LeftOut

    if shape not in SHAPES:  # a folder's name would stand in the files
        raise typer.BadParameter(f"{shape!r} is unknown; known: {', '.join(SHAPES)}", param_hint="--shape")
    if not torch.cuda.is_available():
        raise typer.BadParameter(
            f"a recording needs an NVIDIA GPU that torch can use, and torch {torch.__version__} finds none here; "
            "python -m benchmarks gpu --shape tiny measures in the same way, in small sizes, on any machine"
        )
    left_out = []
    with output.saying() as say:
        for done in record.record(record.make_stand(shape, say, sm_split, two), out, only):
            if isinstance(done, LeftOut):
                left_out.append(done)
            else:
                output.say_as_it_is(f"written: {done} ({done.stat().st_size / 1e3:.0f} kB)")
    output.end(f"left out: {part.name}: {part.reason}" for part in left_out)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="which picture of figures/, or all")] = "all",
    fresh: Annotated[bool, typer.Option("--fresh", help="first serve the seven questions of the film again")] = False,
) -> None:
    """Draws pictures of figures/ again, from recordings, measured rows and the twin: the same data, the same bytes."""
    from benchmarks.claims import report_figures

    if name not in (*report_figures.FIGURES, "all"):
        known = ", ".join(report_figures.FIGURES)
        raise typer.BadParameter(f"{name!r} is unknown; known: {known}, and all", param_hint="NAME")
    with output.saying() as say:
        if fresh:
            say("a real run of seven questions")
            report_figures.record()
        for each in report_figures.FIGURES if name == "all" else (name,):
            say(f"figure {each}")
            output.say_as_it_is(f"written: {report_figures.make(each)}")


@app.command()
def claims(
    check: Annotated[bool, typer.Option("--check", help="only what is stale or unbacked")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="work out the ledger anew, and README's numbers")] = False,
    only: Annotated[str | None, typer.Option(help="one claim, by its id, computed anew")] = None,
    json: Annotated[bool, typer.Option("--json", help="the ledger as it is stored, or the one claim")] = False,
) -> None:
    """Every number of README and notebooks: what backs it, how to get it again, and whether it still holds."""
    from benchmarks.claims import ledger

    if json:
        shown = {"claims": list(ledger.kept().values())} if only is None else ledger.one(only)
        output.say_as_it_is(dumps(shown, indent=1, ensure_ascii=False))
        return
    if only is not None:
        entry = ledger.one(only)
        output.say_plainly("\n".join(f"{name}: {ledger.in_words(value)}" for name, value in entry.items() if value))
        return
    found = ledger.refresh() if refresh else ledger.problems()
    if not check:
        output.say_as_it_is(*ledger.listed())
    output.say_plainly(*found)
    output.end([ledger.conclusion(found)] if found else ())
    output.say_plainly(ledger.conclusion(found))
