"""What the detectors take that are always on: seconds inside them, over the seconds of a run of the embedded model.

It is the most that they can cost in throughput: as if nothing else went on meanwhile. The clock's own cost is in it.
"""

import time
from collections.abc import Callable, Iterator

from benchmarks.common import Say
from benchmarks.fixed_works import work_c
from disagg.monitor.monitor import Monitor
from disagg.plan.config import Config
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import Row

CALLS = ("hear", "obey", "settle", "moved", "watchdog")


class Timed:
    """A detector whose calls are timed. They do not call each other."""

    def __init__(self, watch: Monitor) -> None:
        self.seconds = 0.0
        for name in CALLS:
            setattr(watch, name, self._timed(getattr(watch, name)))

    def _timed(self, call: Callable) -> Callable:
        def timed(*args: object) -> None:
            began = time.perf_counter()
            call(*args)
            self.seconds += time.perf_counter() - began

        return timed


def rows(say: Say, model_name: str = "smollm2") -> Iterator[Row]:
    """Work C on `dynamic`, the second of two runs."""
    say(f"detectors, {model_name}")
    model = load_model(model_name)
    with Engine(Config.preset("dynamic", model=model_name), model) as engine:
        engine.serve(work_c(model))
        timed = Timed(engine.detectors)
        engine.controller.state.on_move[0] = engine.detectors.moved  # the timed one
        run = engine.serve(work_c(model))
    metrics = run.metrics()
    note = f"{timed.seconds:.3f} of {metrics.seconds:.1f} s, {metrics.new_tokens} tokens, {model_name}, preset dynamic"
    yield Row("detectors_cost_pct", 100 * timed.seconds / metrics.seconds, "%", 3, metrics.requests, note)
