"""The commands of the twin: fit it to this machine, hold it against real runs, and search with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disagg.cli import output
from disagg.cli.output import JsonFile, app, out_file

if TYPE_CHECKING:
    from disagg.show.validate import Compared


@app.command()
def calibrate(
    out: Annotated[Path, out_file("the calibration is written here")] = Path("calibration.json"),
    preset: Annotated[str, typer.Option(help="which arrangement of workers is measured")] = "streamed",
    model: Annotated[str, typer.Option(help="smollm2, or a folder that holds a model")] = "smollm2",
) -> None:
    """Fits the twin's cost model to this machine: a minute of designed work, with nothing else running."""
    from disagg.plan.config import Config
    from disagg.run.engine import Engine
    from disagg.show import calibrate as bench

    with output.saying() as say:
        say("a designed run")
        with Engine(Config.preset(preset, model=model)) as engine:
            found = bench.calibrate(engine)
    found.save(out)
    output.say_plainly(str(found))
    output.say_as_it_is(f"written: {out}")


@app.command()
def validate(
    json: JsonFile = None,
    calibration: Annotated[Path | None, typer.Option(help="a file that `calibrate` wrote; else it runs first")] = None,
    picture: Annotated[Path | None, output.out_folder("a folder for pictures, one a workload")] = None,
) -> None:
    """Serves requests for real and under the virtual clock: how far off is the twin on this machine?"""
    from disagg.run.model.model import load_model
    from disagg.show.overlay import overlay_picture
    from disagg.show.validate import cpu_rows
    from disagg.twin.calibration import Calibration

    fitted = None if calibration is None else Calibration.load(calibration)

    def keep(compared: "Compared") -> None:
        if picture is not None:
            overlay_picture(compared).save(picture / f"{compared.name.replace(' ', '_')}.png")

    output.measure(lambda say: cpu_rows(say, load_model("smollm2"), fitted, keep), "validate", json)


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
) -> None:
    """Finds on the twin who should prefill and who decode, with which budgets, for the highest goodput; minutes."""
    from disagg.show.plots import pareto_plot
    from disagg.twin.goodput import Slo
    from disagg.twin.tuning import tune as search

    asked: dict[str, Any] = dict(trace=trace, lengths=lengths, count=requests, prompt=prompt, new=new, seed=seed)
    work, slo = pareto_plot.workload(**asked), Slo(ttft, tpot, share)
    with output.saying() as say:
        found = search(work, hardware, slo, model, prices=price, seed=seed, say=say)
    output.table(pareto_plot.COLUMNS, pareto_plot.front_rows(found))
    output.say_plainly(pareto_plot.front_in_words(found), pareto_plot.effort(found))
    if png is not None:
        output.write(png, pareto_plot.front_picture(found).png())
    if json is not None:
        output.write(json, pareto_plot.as_json(found, asked))
