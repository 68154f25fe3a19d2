"""Seconds inside the detectors that are always on, over the seconds of a run: the most that they can cost."""

import time
from collections.abc import Callable, Iterator

from benchmarks.common import Say
from benchmarks.fixed_works import work_c
from disagg.plan.config import Config
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import Row

CALLS = ("hear", "obey", "settle", "moved", "watchdog")  # none calls another


def timed(call: Callable, spent_s: list[float]) -> Callable:
    """The call, whose seconds go into a list."""

    def timing(*args: object) -> None:
        began = time.perf_counter()
        call(*args)
        spent_s.append(time.perf_counter() - began)

    return timing


def rows(say: Say, model_name: str = "smollm2") -> Iterator[Row]:
    """Work C on `dynamic`, the second of two runs."""
    say(f"detectors, {model_name}")
    model = load_model(model_name)
    spent_s: list[float] = []
    with Engine(Config.preset("dynamic", model=model_name), model) as engine:
        engine.serve(work_c(model))
        for name in CALLS:
            setattr(engine.detectors, name, timed(getattr(engine.detectors, name), spent_s))
        engine.controller.state.on_move[0] = engine.detectors.moved  # the timed one
        run = engine.serve(work_c(model))
    metrics = run.metrics()
    note = f"{sum(spent_s):.3f} of {metrics.seconds:.1f} s, {metrics.new_tokens} tokens, {model_name}, preset dynamic"
    yield Row("detectors_cost_pct", 100 * sum(spent_s) / metrics.seconds, "%", 3, metrics.requests, note)
