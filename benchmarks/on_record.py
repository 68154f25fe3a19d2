"""The twin against recordings of a GPU: the fit uses one colocated crowd and one prompt over the undialled staged
route; the twin predicts the other dials and the crowd as a run. Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import dataclasses
from pathlib import Path

from disagg.plan.request import Request
from disagg.show import recordings
from disagg.show.calibrate import calibration, fitted
from disagg.show.validate import Compared, predicted
from disagg.trace.results import Run
from disagg.twin.calibration import Calibration
from disagg.twin.hardware import device_named
from disagg.twin.model_shapes import sizes_of


def compared(folder: Path | None = None) -> list[Compared] | recordings.Missing:
    """Staged runs that the fit has not seen, from the fastest link on. A run's dial is x/c; its name says c/x."""
    dials, crowd = recordings.staged(folder), recordings.turns(folder)
    if isinstance(dials, recordings.Missing):
        return dials
    if isinstance(crowd, recordings.Missing):
        return crowd
    quiet = dials.pop(0.0)
    found = fit([crowd, quiet])
    twins = {dial: predicted(grouped(run), asked(run), found) for dial, run in dials.items()}
    return [Compared(f"At c/x {1 / dial:g}", run, twins[dial]) for dial, run in sorted(dials.items())]


def grouped(run: Run) -> Run:
    """The config with its recorded layers a copy, which the engine chose before its link was dialled."""
    copies = (span.count for span in run.timeline.spans if span.kind == "copy")
    return dataclasses.replace(run, config=run.config.replace(layers_per_copy=max(copies)))


def fit(runs: list[Run]) -> Calibration:
    """The hardware of the GPU in the recordings, by their machine."""
    config, machine = runs[0].config, runs[0].machine
    device = device_named(machine.split(",")[0].removeprefix("NVIDIA ").split()[0])
    sizes = sizes_of(config.model, config.dtype)
    return calibration(fitted(device, sizes, runs, pads=False), sizes, runs, config.model, False, 0.0)


def asked(run: Run) -> list[Request]:
    """Requests with the lengths and arrivals of a recorded run."""
    start = min(result.arrival_ns for result in run.results)
    return [
        Request([1] * r.prompt_tokens, len(r.token_ids), (r.arrival_ns - start) / 1e9, ignore_eos=True)
        for r in run.results
    ]
