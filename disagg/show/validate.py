"""The twin's error: the same requests on the real engine and under the virtual clock, figure by figure.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model
from disagg.show.calibrate import calibrate
from disagg.show.report import Row
from disagg.trace.results import Run
from disagg.twin.calibration import Calibration
from disagg.twin.simulate import simulate
from disagg.twin.workloads import Lengths, bursts, poisson, requests_of

#: Figure → its value of a run, or None.
FIGURES: dict[str, Callable[[Run], float | None]] = {
    "ttft_p50": lambda run: run.metrics().ttft_s.p50,
    "ttft_p90": lambda run: run.metrics().ttft_s.p90,
    "tpot_p50": lambda run: run.metrics().tpot_s.p50,
    "tpot_p90": lambda run: run.metrics().tpot_s.p90,
    "tokens_per_s": lambda run: run.metrics().tokens_per_s,
    "H": lambda run: run.overlap().hidden,
}


@dataclass(frozen=True)
class HeldOut:
    """Requests that the calibration has not seen, and their config."""

    name: str
    preset: str
    changes: dict
    count: int
    arrivals: Callable  # of twin/workloads
    per_s: float
    prompt: Lengths
    new: Lengths
    seed: int

    def config(self, model: str) -> Config:
        return Config.preset(self.preset, model=model, **self.changes)

    def requests(self, vocab: int) -> list[Request]:
        return requests_of(self.arrivals(self.count, self.per_s, self.prompt, self.new, self.seed), vocab, self.seed)


#: For two cores and the embedded model: light and heavy load, each route, and one device.
_SLOW = {"link": Link.ratio(0.62), "layers_per_copy": 1}
_SHORT = Lengths(60, 0.8, 16, 400), Lengths(20, 0.5, 4, 50)
_LONG = Lengths(90, 0.6, 16, 400), Lengths(20, 0.4, 4, 60)
HELD_OUT = (
    HeldOut("readers", "streamed", {}, 14, poisson, 0.8, Lengths(120, 0.6, 16, 480), Lengths(24, 0.4, 4, 60), 11),
    HeldOut("slow wire", "streamed", _SLOW, 8, poisson, 0.4, Lengths(128), Lengths(12), 12),
    HeldOut("crowd", "dynamic", {}, 20, bursts, 2.0, *_SHORT, 13),
    HeldOut("one device", "colocated", {}, 14, poisson, 0.8, *_LONG, 14),
)


@dataclass(frozen=True)
class Compared:
    name: str
    real: Run
    twin: Run

    def figures(self) -> dict[str, tuple[float, float]]:
        """Figure → (measured, predicted), for figures that both runs have."""
        found = [(name, read(self.real), read(self.twin)) for name, read in FIGURES.items()]
        return {name: (real, twin) for name, real, twin in found if real is not None and twin is not None}

    def errors(self) -> dict[str, float]:
        """|predicted / measured - 1| in percent; for H, which may be 0, the difference in points."""
        return {
            name: 100 * (abs(twin - real) if name == "H" else abs(twin / real - 1))
            for name, (real, twin) in self.figures().items()
        }


def validate(
    calibration: Calibration, model: Model, held_out: Sequence[HeldOut] = HELD_OUT, say: Callable[[str], None] = print
) -> Iterator[Compared]:
    """Serves each workload on the engine and simulates it, one after the other."""
    for held in held_out:
        say(f"{held.name}: {held.count} requests on {held.preset}")
        requests = held.requests(model.vocab_size)
        with Engine(held.config(model.name), model=model) as engine:
            engine.serve(requests[:1])  # a warm-up
            real = engine.serve(requests)
        yield Compared(held.name, real, predicted(real, requests, calibration))


def predicted(real: Run, requests: Sequence[Request], calibration: Calibration) -> Run:
    """The same requests under the virtual clock; only memories and links come from the real run."""
    return simulate(real.config, requests, hardware=calibration.hardware)


BARS: dict[str, float] = {"median": 15, "worst": 25}  # per cent, on held-out workloads


def cpu_rows(
    say: Callable[[str], None],
    model: Model,
    calibration: Calibration | None = None,
    keep: Callable[["Compared"], None] = lambda compared: None,
) -> Iterator[Row]:
    """Calibrates, then gives each figure's error on held-out workloads. `keep` gets each pair of runs."""
    if calibration is None:
        say("calibrating")
        with Engine(Config.preset("streamed", model=model.name), model=model) as engine:
            calibration = calibrate(engine)
    yield Row("calibrate_s", calibration.seconds, "s", 60, 1, str(calibration))
    compared = []
    for each in validate(calibration, model, say=say):
        keep(each)
        compared.append(each)
    yield from error_rows("cpu_error_pct", compared, BARS)


def error_rows(name: str, compared: Sequence[Compared], bars: dict[str, float]) -> Iterator[Row]:
    """A row for each figure and workload, then the median and the worst of all."""
    found: list[float] = []
    for each in compared:
        errors = each.errors()
        found += errors.values()
        for figure, (real, twin) in each.figures().items():
            note, unit = f"measured {real:.4g}, predicted {twin:.4g}", "points" if figure == "H" else "%"
            yield Row(f"{name}[{each.name}: {figure}]", errors[figure], unit, note=note)
    for which, value in (("median", statistics.median(found)), ("worst", max(found))):
        yield Row(f"{name}[{which}]", value, "%", bars.get(which), len(found))
