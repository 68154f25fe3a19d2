"""The law of layer-wise streaming on real prefill, and how exactly the dialled link delays copies."""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.common import Say, compute_of, known, one_pass, seconds, spans_of
from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model, load_model
from disagg.show.example_prompts import prompts
from disagg.show.report import Row
from disagg.trace.law import Law
from disagg.trace.metrics import percentile

TOKENS = 128  # one prompt, one chunk, whole blocks
RATIOS = (0.25, 0.5, 1.0, 1.6, 4.0)  # x/c: transfer of a layer over its compute
SHORTEST_S = 0.008  # the dial is measured on copies of about a layer's compute, as the lessons use them
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 0.5)  # GB/s


class LawErrors(NamedTuple):
    """One x/c on one route; of each repetition: H as measured, its distance from the law in points, with c of a pass
    without a transfer and of the same pass, and how much longer the pass took with its transfer (0.1 is 10 %)."""

    hidden: list[float]
    with_reference: list[float]
    with_same_pass: list[float]
    slowed: list[float]


def law_errors(engine: Engine, without: Request, moving: Request, x: float, hops: int, repeats: int) -> LawErrors:
    """Passes with a transfer and without one in turn; `x` is the seconds of a layer's copy on one hop."""
    found = LawErrors([], [], [], [])
    ring, layers = engine.config.ring_slots if hops == 2 else None, engine.model.layers
    for _ in range(repeats):
        off, on = one_pass(engine.serve([without])), engine.serve([moving])
        found.hidden.append(measured := known(on.overlap(0).hidden))
        for span, errors in ((off, found.with_reference), (one_pass(on), found.with_same_pass)):
            c, tail = compute_of(span)
            errors.append(abs(measured - Law(layers, c, (x,) * hops, tail, ring_slots=ring).hidden) * 100)
        found.slowed.append(seconds(one_pass(on)) / seconds(off) - 1)
    return found


def law_rows(say: Say, model: Model, repeats: int = 7) -> list[Row]:
    """Measured H against the law, for each x/c and for one hop and two; c once from runs without a transfer."""
    rows, slowed = [], []
    for preset, hops in (("streamed", 1), ("staged", 2)):
        with Engine(Config.preset(preset, model=model.name), model=model) as engine:
            prompt = prompts(model, [TOKENS])[0]
            without, moving = Request(prompt, 1, ignore_eos=True), Request(prompt, 2, ignore_eos=True)
            for _ in range(3):
                engine.serve([moving])
            c = statistics.median(compute_of(one_pass(engine.serve([without])))[0] for _ in range(repeats))
            for ratio in RATIOS:
                say(f"{preset}: x/c = {ratio}")
                x = ratio * c
                engine.retune(link=model.shape.layer_token_bytes * TOKENS / x)
                found = law_errors(engine, without, moving, x, hops, repeats)
                slowed += found.slowed if ratio == 4.0 else []
                where = f"[{ratio:g}, {hops} hop{'s' * (hops > 1)}]"
                reference, same = found.with_reference, found.with_same_pass
                note = f"H measured {statistics.median(found.hidden):.3f}; hand-off before attention; median of runs"
                rows.append(Row(f"law_error_points{where}", statistics.median(reference), "points", 5, repeats, note))
                note = f"worst {max(same):.2f}; worst with c of a run without transfer {max(reference):.2f}"
                name = f"law_error_points_same_run{where}"
                rows.append(Row(name, statistics.median(same), "points", 3, repeats, note))
    note = "pass with against without streaming, x/c = 4, both routes, alternating"
    rows.append(Row("streaming_slows_prefill_pct", statistics.median(slowed) * 100, "%", 5, len(slowed), note))
    return rows


def first_layer_row(say: Say, model: Model, count: int = 32) -> Row:
    """Does the first layer land before the last one is computed?"""
    say(f"{count} streamed requests")
    with Engine(Config.preset("streamed", model=model.name), model=model) as engine:
        inputs = prompts(model, [64 + (index * 29) % 130 for index in range(count)])
        run = engine.serve([Request(prompt, 4, ignore_eos=True) for prompt in inputs])
    passes = {request: span for span in spans_of(run, "prefill") for request in span.firsts}
    early = 0
    for result in run.results:
        landed = min(span.end_ns for span in run.timeline.hand_off(result.request) if span.index == 0)
        early += landed < passes[result.request].hand_offs_ns[-1]
    note = "landing of layer 0 against the hand-off of the last layer, undialled"
    return Row("first_layer_lands_before_last_computes", early, f"of {count}", count, count, note, at_most=False)


def link_rows(say: Say, model: Model) -> Iterator[Row]:
    """(landing - deadline) / x where x ≥ 2 ms, with both workers busy and pauses between copies."""
    for rate in RATES:
        say(f"link {rate} GB/s, both workers busy")
        layer_bytes = TOKENS * model.shape.layer_token_bytes
        group = min(model.layers, -(-round(rate * 1e9 * SHORTEST_S) // layer_bytes))
        link = Link(bandwidth=rate * 1e9)
        busy = 1.5 * max(model.layers * layer_bytes / link.bandwidth, 0.3)
        count = 6 if busy > 1 else 60
        inputs = prompts(model, [TOKENS] * count + [128] * round(busy * count / 0.3) + [64] * 4)
        requests = [Request(p, 2, busy * i, ignore_eos=True) for i, p in enumerate(inputs[:count])]
        requests += [Request(p, 1, 0.3 * i, ignore_eos=True) for i, p in enumerate(inputs[count:-4])]  # prefill only
        steps = min(1500, round(busy * count / 0.06))
        requests += [Request(p, steps, 0.0, ignore_eos=True) for p in inputs[-4:]]  # decode
        config = Config.preset("streamed", model=model.name, link=link, layers_per_copy=group, chunk_tokens=128)
        with Engine(config, model=model) as engine:
            run = engine.serve(requests)
        copies = [span for span in spans_of(run, "copy") if span.occupied_ns >= 2_000_000]
        late = [100 * (span.end_ns - span.deadline_ns) / span.occupied_ns for span in copies]
        x_ms = statistics.median(span.occupied_ns for span in copies) / 1e6
        moved = sum(s.nbytes for s in copies) / sum(s.end_ns - s.start_ns for s in copies)
        note = f"p95; x = {x_ms:.2f} ms, p50 {percentile(late, 0.5):.2f} %, achieved {moved:.4g} GB/s"
        yield Row(f"link_error_pct[{rate:g}]", known(percentile(late, 0.95)), "% of x", 5, len(copies), note)


def suite(say: Say, model_name: str = "smollm2") -> Iterator[Row]:
    """The rows as they are measured."""
    model = load_model(model_name)
    yield first_layer_row(say, model)
    yield from link_rows(say, model)
    yield from law_rows(say, model)
