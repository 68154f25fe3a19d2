"""The twin against arithmetic: a queue with one server, the law of layer-wise streaming, and Little's law."""

import math
import statistics
from collections.abc import Iterator

from benchmarks.common import known
from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request, Stage
from disagg.show.report import Row
from disagg.trace.results import Result
from disagg.trace.timeline import Timeline
from disagg.twin.simulate import simulate
from disagg.twin.simulated_engine import Speeds
from disagg.twin.workloads import Lengths, poisson, requests_of

QUEUE = Config.preset("baseline", prefill_blocks=4096, decode_blocks=4096, host_blocks=0, chunk_tokens=4096)
FAST = Speeds(layers=4, token_bytes=64, prefill_pass=0, prefill_token=10_000, step=100_000, step_row=0, step_token=0)
RATIOS = (0.25, 0.5, 1.0, 1.6, 4.0)  # x/c


def rows(count: int = 20_000) -> Iterator[Row]:
    """All of them; `count` requests pass the queue."""
    yield lindley_row(count)
    yield deterministic_row(count)
    yield from law_rows()
    yield little_row()


def lindley_row(count: int) -> Row:
    """Waits of a single server, request by request: W' = max(0, W + S - gap) (Lindley, 1952)."""
    arrivals = poisson(count, 100, Lengths(400, 0.8, 1, 4000), Lengths(10, 0.5, 1, 60), seed=5)
    run = simulate(QUEUE, requests_of(arrivals, vocab=100), FAST, record=False)
    waited = [_started_ns(result) - result.arrival_ns for result in run.results]
    expected, wait, last = [], 0, run.results[0]
    for result in run.results:
        wait = max(0, wait - (result.arrival_ns - last.arrival_ns)) if result is not last else 0
        expected.append(wait)
        wait, last = wait + _service_ns(result), result
    error = 100 * max(abs(a - b) for a, b in zip(waited, expected, strict=True)) / statistics.mean(expected)
    return Row("closed_form_error_pct[lindley]", error, "%", 1, count, "the worst wait, of the mean one")


def deterministic_row(count: int) -> Row:
    """The mean wait of M/D/1 at load 0.7, service D: 0.7 · D / (2 · 0.3) (Pollaczek, Khinchine)."""
    one = simulate(QUEUE, [Request([1] * 100, 1)], FAST).results[0]
    service = (one.ended_ns - one.arrival_ns) / 1e9
    arrivals = poisson(count, 0.7 / service, Lengths(100), Lengths(1), seed=6)
    run = simulate(QUEUE, requests_of(arrivals, vocab=100), FAST, record=False)
    waits = [(_started_ns(result) - result.arrival_ns) / 1e9 for result in run.results]
    batches = [statistics.mean(waits[i : i + count // 20]) for i in range(0, count - count % 20, count // 20)]
    formula, error = 0.7 * service / (2 * 0.3), statistics.stdev(batches) / math.sqrt(len(batches))
    off = abs(statistics.mean(waits) - formula) / error
    note = f"mean wait {1e3 * statistics.mean(waits):.2f} ms, by the formula {1e3 * formula:.2f}; errors by 20 batches"
    return Row("closed_form_standard_errors[M/D/1]", off, "", 3, count, note)


def law_rows() -> Iterator[Row]:
    """H of one prompt over one hop and over two, against the law, in points."""
    for preset, hops in (("streamed", 1), ("staged", 2)):
        errors = []
        for ratio in RATIOS:
            config = Config.preset(preset, link=Link.ratio(1 / ratio), layers_per_copy=1, chunk_tokens=4096)
            run = simulate(config, [Request([1] * 128, 2)], hardware="CPU")
            errors.append(100 * abs(known(run.overlap(0).hidden) - known(run.law(0)).hidden))
        note = f"{hops} hop{'s' * (hops > 1)}, x/c {', '.join(map(str, RATIOS))}; points"
        yield Row(f"closed_form_error_pct[law, {hops}]", max(errors), "%", 1, len(RATIOS), note)


def little_row() -> Row:
    """In every preset: rows in the batch over time, by the marks, and how long requests ran, by their own stages."""
    errors = []
    for preset in ("colocated", "split", "streamed", "staged", "paged", "dynamic"):
        config = Config.preset(preset, max_batch=8)
        run = simulate(config, requests_of(poisson(60, 2.0, Lengths(60, 0.5), Lengths(20, 0.5), 7), vocab=100))
        ran = sum(_in_stage_ns(result, Stage.RUNNING) for result in run.results)
        errors.append(100 * abs(_area(run.timeline, "batch 0") / ran - 1))
    note = "L = λW of the decode batch, six presets, the worst"
    return Row("closed_form_error_pct[little]", max(errors), "%", 1, len(errors), note)


def _started_ns(result: Result) -> int:
    return next(at for at, stage in result.stages if stage is Stage.PREFILLING)


def _service_ns(result: Result) -> int:
    """By the speeds alone: a pass, and a step for every token but the first."""
    layers = FAST.layers * (result.prompt_tokens * FAST.prefill_token // FAST.layers)
    return layers + FAST.tail + (len(result.token_ids) - 1) * FAST.step


def _in_stage_ns(result: Result, wanted: Stage) -> int:
    pairs = zip(result.stages, result.stages[1:], strict=False)
    return sum(until - at for (at, stage), (until, _) in pairs if stage is wanted)


def _area(timeline: Timeline, name: str) -> int:
    """A mark's value, summed over time."""
    marks = [mark for mark in timeline.marks if mark.name == name]
    pairs = zip(marks, marks[1:], strict=False)
    return sum(int(mark.value) * (after.at_ns - mark.at_ns) for mark, after in pairs)
