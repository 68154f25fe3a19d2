"""How fast two cores are: a step against its floor and Hugging Face's own, whole runs against what people install."""

import statistics
from collections.abc import Callable, Iterator

from benchmarks import peers
from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model
from disagg.show.example_prompts import prompts, work_c
from disagg.show.plots.roofline import Sizes, measure_ceilings
from disagg.show.report import Row

Say = Callable[[str], None]
CONTEXT, STEPS, ROUNDS = 256, 24, 3
BARS = {1: 1.1, 4: 0.9, 16: 1.1}  # decode step ÷ Hugging Face's, by rows


def suite(say: Say, model: Model) -> Iterator[Row]:
    """The rows as they are measured."""
    module = model.reference()
    yield from step_rows(say, model, module)
    yield colocated_row(say, model, module)
    yield dynamic_row(say, model, module)


def step_rows(say: Say, model: Model, module) -> Iterator[Row]:
    """A decode step on one thread: the engine's, in turn with that of the untouched module with its own cache."""
    weight_bytes, over_floor = Sizes.of(model).weight_bytes, []
    for rows, bar in BARS.items():
        asked, ratios, ours, theirs = prompts(model, [CONTEXT] * rows), [], [], []
        for index in range(ROUNDS):
            say(f"a step of {rows} rows, {index + 1} of {ROUNDS}")
            theirs.append(peers.step_s(module, asked, STEPS))
            ours.append(engine_step_s(model, asked))
            ratios.append(ours[-1] / theirs[-1])
            if rows == 1:
                over_floor.append(ours[-1] / (weight_bytes / measure_ceilings(threads=1).bytes_per_s))
        note = f"context {CONTEXT}, 1 thread: {1e3 * statistics.median(ours):.0f} against "
        note += f"{1e3 * statistics.median(theirs):.0f} ms"
        yield Row(f"step_over_hf[{rows}]", statistics.median(ratios), "×", bar, ROUNDS, note)
    note = f"{weight_bytes / 1e6:.0f} MB of weights at the matrix-vector rate measured beside each step"
    yield Row("step_over_floor_b1", statistics.median(over_floor), "×", 2.3, ROUNDS, note)


def engine_step_s(model: Model, asked: list[list[int]]) -> float:
    """Median seconds of the steps that all rows share."""
    requests = [Request(prompt, STEPS + len(asked), ignore_eos=True) for prompt in asked]
    with Engine(Config.preset("colocated", model=model.name, threads=1, chunk_tokens=4096), model=model) as engine:
        run = engine.serve(requests)
    steps = [s for s in run.timeline.spans if s.kind == "decode" and s.count == len(asked)]
    return statistics.median(s.end_ns - s.start_ns for s in steps) / 1e9


def colocated_row(say: Say, model: Model, module) -> Row:
    """Work C on two threads: our batching against `generate_batch`. All prompts are there at once, so passes are large:
    each step between two small ones would serve a part of the rows alone."""
    requests, pairs = work_c(model), []
    config = Config.preset("colocated", model=model.name, threads=2, chunk_tokens=4096)
    for index in range(ROUNDS):
        say(f"work C on two threads, {index + 1} of {ROUNDS}")
        theirs = peers.batched(module, requests)
        with Engine(config, model=model) as engine:
            pairs.append((engine.serve(requests).metrics().tokens_per_s, theirs))
    return ratio_row("colocated_over_generate_batch", pairs, 1.8, "work C, 2 threads, passes of up to 4,096 tokens")


def dynamic_row(say: Say, model: Model, module) -> Row:
    """Work C four times over, a core each: the whole pipeline against `generate_batch` on both cores."""
    requests, pairs = work_c(model, times=4), []
    for index in range(2):
        say(f"work C four times over, {index + 1} of 2")
        theirs = peers.batched(module, requests)
        with Engine(Config.preset("dynamic", model=model.name), model=model) as engine:
            pairs.append((engine.serve(requests).metrics().tokens_per_s, theirs))
    return ratio_row("dynamic_over_generate_batch", pairs, 1.4, "64 requests")


def ratio_row(name: str, pairs: list[tuple[float, float]], bar: float, what: str) -> Row:
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    note = f"{what}: {ours:.1f} against {theirs:.1f} new tokens/s"
    return Row(name, statistics.median(a / b for a, b in pairs), "×", bar, len(pairs), note, at_most=False)
