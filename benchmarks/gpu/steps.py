"""A decode step against the bytes it must read, and what the host adds between two tokens."""

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.common import seconds, spans_of
from benchmarks.gpu.fixture import Stand
from disagg.run.engine import Engine
from disagg.show.plots.roofline import step_work
from disagg.show.report import Row
from disagg.trace.results import Run
from disagg.trace.spans import Span

FLOORS = {1: 1.28, 16: 1.28, 64: 1.25}  # × the floor that a step may take, by rows
SMALL_FLOORS = {1: 3.2, 16: 1.9, 64: 1.35}  # of a small shape: launches and gaps between kernels weigh more


def contexts(run: Run, step: Span) -> list[int]:
    """Tokens that each row of a step reads, the new one included."""
    found = {result.request: result for result in run.results}
    return [
        found[request].prompt_tokens + sum(at <= step.start_ns for at in found[request].token_times_ns)
        for request in step.requests
    ]


def gaps_ns(run: Run, steps: list[Span]) -> list[int]:
    """Between the tokens that these steps gave to the first of their rows."""
    times = next(r.token_times_ns for r in run.results if r.request == steps[0].requests[0])
    inside = [at for at in times if steps[0].end_ns <= at <= steps[-1].end_ns + 1_000_000]
    return [b - a for a, b in zip(inside, inside[1:], strict=False)]


class Measured(NamedTuple):
    """Steps of so many rows, of all rounds but the first; a value a step."""

    seconds: list[float]  # on the device
    nbytes: list[int]  # read at least: each weight once, and K/V
    contexts: list[float]  # mean tokens that a row looks back on
    gaps_s: list[float]  # between two tokens, what the host adds included


def engine_of(stand: Stand, **changes: Any) -> Engine:
    """One worker that prefills and decodes, with room for the largest batch."""
    scale = stand.scale
    most = max(scale.batches)
    passes = -(-most * scale.context // scale.chunk)
    return stand.engine("colocated", [scale.context + scale.steps + passes] * most, max_batch=most, **changes)


def measure(stand: Stand, engine: Engine, batch: int) -> Measured:
    """Steps of `batch` rows through `engine.serve`, around the scale's context."""
    scale, found = stand.scale, Measured([], [], [], [])
    new = scale.steps + 2 * (-(-batch * scale.context // scale.chunk)) + 2  # the first rows wait for the last
    for index in range(1 + scale.rounds):
        stand.say(f"steps of {batch} rows, round {index} of {scale.rounds}")
        run = engine.serve(stand.requests([scale.context - new // 2] * batch, new, seed=index))
        if index == 0:
            continue
        steps = spans_of(run, "decode", batch)
        for step in steps:
            lengths = contexts(run, step)
            found.seconds.append(seconds(step))
            found.nbytes.append(step_work(stand.sizes, lengths).nbytes)
            found.contexts.append(statistics.mean(lengths))
        found.gaps_s.extend(gap / 1e9 for gap in gaps_ns(run, steps))
    return found


def rows(stand: Stand) -> Iterator[Row]:
    """Batch by batch, against the floor."""
    model, copy, engine = stand.model, stand.limits.copy, engine_of(stand)
    floors = SMALL_FLOORS if stand.shape == "qwen3-0.6b" else FLOORS
    for batch in stand.scale.batches:
        found = measure(stand, engine, batch)
        over = [took / (nbytes / copy) for took, nbytes in zip(found.seconds, found.nbytes, strict=True)]
        step_s, gap_s = statistics.median(found.seconds), statistics.median(found.gaps_s)
        note = (
            f"{1e3 * step_s:.2f} ms, mean context {statistics.mean(found.contexts):.0f}, model {model.name}; "
            f"{stand.limits.words}"
        )
        yield Row(f"step_over_floor[{batch}]", statistics.median(over), "×", floors.get(batch), len(over), note)
        note = f"{1e3 * gap_s:.2f} ms between tokens, {1e3 * step_s:.2f} ms a step on the device"
        yield Row(f"gap_over_graph[{batch}]", gap_s / step_s, "×", 1.05, len(found.gaps_s), note)
