"""A decode step against the bytes it must read, and what the host adds between two tokens."""

import statistics
from collections.abc import Iterator

from disagg.plan.results import Run
from disagg.plan.timeline import Span
from disagg.show.bench.gpu.stand import Stand
from disagg.show.bench.rows import Row
from disagg.show.roofline import step_work


def full_steps(run: Run, rows: int) -> list[Span]:
    """The steps that all rows share, by start."""
    steps = [span for span in run.timeline.spans if span.kind == "decode" and span.count == rows]
    return sorted(steps, key=lambda span: span.start_ns)


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


def rows(stand: Stand) -> Iterator[Row]:
    """Batch by batch, through `engine.serve`, one worker that prefills and decodes."""
    scale, model, copy = stand.scale, stand.model, stand.limits.copy
    most = max(scale.batches)
    passes = -(-most * scale.context // scale.chunk)
    engine = stand.engine("colocated", [scale.context + scale.steps + passes] * most, max_batch=most)
    for batch in scale.batches:
        new = scale.steps + 2 * (-(-batch * scale.context // scale.chunk)) + 2  # the first rows wait for the last
        over, took, between, read = [], [], [], []
        for index in range(1 + scale.rounds):
            stand.say(f"steps of {batch} rows, round {index} of {scale.rounds}")
            run = engine.serve(stand.requests([scale.context - new // 2] * batch, new, seed=index))
            if index == 0:
                continue
            steps = full_steps(run, batch)
            for step in steps:
                lengths = contexts(run, step)
                seconds = (step.end_ns - step.start_ns) / 1e9
                over.append(seconds / (step_work(stand.sizes, lengths).nbytes / copy))
                took.append(seconds)
                read.append(statistics.mean(lengths))
            between += gaps_ns(run, steps)
        step_s, gap_s = statistics.median(took), statistics.median(between) / 1e9
        note = (
            f"{1e3 * step_s:.2f} ms, mean context {statistics.mean(read):.0f}, model {model.name}; {stand.limits.words}"
        )
        yield Row(f"step_over_floor[{batch}]", statistics.median(over), "×", 1.35, len(over), note)
        note = f"{1e3 * gap_s:.2f} ms between tokens, {1e3 * step_s:.2f} ms a step on the device"
        yield Row(f"gap_over_graph[{batch}]", gap_s / step_s, "×", 1.05, len(between), note)
