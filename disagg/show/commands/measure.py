"""Commands for whoever measures: benches, the twin, and everything that breaks things on purpose."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from disagg.show.commands import told
from disagg.show.commands.told import JsonFile, app, out_file

SUITES = ("cpu", "law", "see", "notebooks", "explorer")  # of `bench`, by module; the others take options of their own
TRACED = ("twin", "two-gpu")  # suites that serve or simulate traces


@app.command()
def parity(
    json: JsonFile = None,
    prompts: Annotated[int, typer.Option(help="prompts for the embedded model")] = 64,
    new_tokens: Annotated[int, typer.Option(help="tokens of each answer")] = 32,
):
    """Compares every preset's logits with the untouched Hugging Face model's."""
    from disagg.show.bench import parity as bench

    told.measure(lambda say: bench.suite(say, prompts, new_tokens), "parity", json)


@app.command()
def buglab(
    json: JsonFile = None,
    seeds: Annotated[
        int | None, typer.Option(help="of the shipped code; left out: as many as fit into a minute", min=1)
    ] = None,
):
    """Puts ten real bugs back, one at a time: each must be caught by its own detector, and the shipped code by none."""
    from disagg.show.bench import buglab as bench

    told.measure(lambda say: bench.suite(say, seeds), "buglab", json)


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
        told.measure(lambda say: rows(say, shape, only), f"bench, suite {suite}, shape {shape}", json)
        return
    # each by itself: they need packages that a machine for another one may lack
    rows = import_module(f"disagg.show.bench.{suite}").suite
    told.measure(partial(rows, traces=trace or ()) if suite == "twin" else rows, f"bench, suite {suite}", json)


@app.command()
def calibrate(
    out: Annotated[Path, out_file("the calibration is written here")] = Path("calibration.json"),
    preset: Annotated[str, typer.Option(help="which arrangement of workers is measured")] = "streamed",
    model: Annotated[str, typer.Option(help="smollm2, or a folder that holds a model")] = "smollm2",
):
    """Fits the twin's cost model to this machine: a minute of designed work, with nothing else running."""
    from disagg.plan.config import Config
    from disagg.run.engine import Engine
    from disagg.show import calibrate as bench

    with told.saying() as say:
        say("a designed run")
        with Engine(Config.preset(preset, model=model)) as engine:
            found = bench.calibrate(engine)
    found.save(out)
    told.say_plainly(str(found))
    told.say_as_it_is(f"written: {out}")


@app.command()
def validate(
    json: JsonFile = None,
    calibration: Annotated[Path | None, typer.Option(help="a file that `calibrate` wrote; else it runs first")] = None,
    picture: Annotated[Path | None, told.out_folder("a folder for pictures, one a workload")] = None,
):
    """Serves requests for real and under the virtual clock: how far off is the twin on this machine?"""
    from disagg.plan.calibration import Calibration
    from disagg.run.model import load_model
    from disagg.show.bench import twin

    fitted = None if calibration is None else Calibration.load(calibration)
    told.measure(lambda say: twin.cpu_rows(say, load_model("smollm2"), fitted, picture), "validate", json)


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
    png: Annotated[Path | None, out_file("also write the picture here")] = None,
    json: JsonFile = None,
):
    """Finds on the twin who should prefill and who decode, with which budgets, for the highest goodput; minutes."""
    from disagg.plan.files import whole
    from disagg.plan.goodput import Slo
    from disagg.plan.tuning import tune as search
    from disagg.show import fronts

    asked = {"trace": trace, "lengths": lengths, "count": requests, "prompt": prompt, "new": new, "seed": seed}
    with told.saying() as say:
        found = search(
            fronts.workload(**asked), hardware, Slo(ttft, tpot, share), model, prices=price, seed=seed, say=say
        )
    told.table(fronts.COLUMNS, fronts.front_rows(found))
    told.say_plainly(fronts.front_in_words(found), fronts.effort(found))
    for path, content in (
        (png, lambda: fronts.front_picture(found).png()),
        (json, lambda: fronts.as_json(found, asked)),
    ):
        if path is not None:
            with whole(path) as out:
                out.write(content())
            told.say_as_it_is(f"written: {path}")


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
        told.say_plainly(f"{input} was taken: {type(found).__name__}")
        return
    told.measure(lambda say: bench.suite(say, reader, minutes, seed), "fuzz", json)


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

        told.measure(lambda say: bench.suite(say, seeds, requests), "soak", json)
        return
    from disagg.plan.drawn import SeedFailed, simulate_seed

    try:
        world = simulate_seed(seed)
    except SeedFailed as failure:
        told.say_as_it_is(*str(failure).splitlines()[:-1])  # a log, line by line
        told.end(str(failure).splitlines()[-1:])
    happened = ", ".join(f"{name} {count}" for name, count in sorted(world.happened.items()) if count)
    told.say_plainly(f"seed {seed}: {len(world.jobs)} requests, {len(world.log)} events, all ended well: {happened}")


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
    with told.saying() as say:
        for done in record.record(record.make_stand(shape, say, sm_split, two), out, only):
            if isinstance(done, LeftOut):
                left_out.append(done)
            else:
                told.say_as_it_is(f"written: {done} ({done.stat().st_size / 1e3:.0f} kB)")
    told.end(f"left out: {part.name}: {part.reason}" for part in left_out)
