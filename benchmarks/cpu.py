"""What two cores give: both workers at once, steps, whole runs, paging, bins, a latency target; and no leaks."""

import gc
import random
import statistics
import time
from collections.abc import Iterator

import psutil
import torch

from benchmarks import peers
from benchmarks.common import Say, known, median_s, ratio_row, spans_of
from benchmarks.fixed_works import work_c
from benchmarks.parity import Parity, continuations, forced
from benchmarks.robustness.engine_soak import together
from disagg.plan import events as ev
from disagg.plan.commands import Command
from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Job, Request
from disagg.run.engine import Engine
from disagg.run.model.layer_time import compute_of_a_layer
from disagg.run.model.model import Model, load_model
from disagg.show.example_prompts import long_tail, prompts
from disagg.show.plots.roofline import Sizes, measure_ceilings
from disagg.show.report import Row
from disagg.trace.spans import Span
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

CONTEXT, STEPS, ROUNDS = 256, 24, 3
BARS = {1: 1.1, 4: 0.9, 16: 1.1}  # decode step ÷ Hugging Face's, by rows
EVEN_TOKENS = 140  # context at which both arms cost the same by speeds measured alone; at work it is about half


def both_workers_row(say: Say, model: Model) -> list[Row]:
    """Prefill and decode rates together, as shares of the same alone."""
    say("prefill alone, decode alone, both")
    count, steps = 16, 120
    short = prompts(model, [128] * count + [256] * 8)
    prefills = [Request(prompt, 1, ignore_eos=True) for prompt in short[:count]]
    decodes = [Request(prompt, steps, ignore_eos=True) for prompt in short[count:]]
    kept: dict[str, list[float]] = {"prefill": [], "decode": []}
    with Engine(Config.preset("streamed", model=model.name, chunk_tokens=128), model=model) as engine:
        engine.serve(prefills[:2] + decodes[:2])
        for _ in range(3):
            pass_s = median_s(spans_of(engine.serve(prefills), "prefill"))
            step_s = median_s(spans_of(engine.serve(decodes), "decode", 8))
            both = engine.serve(decodes + prefills)
            steps_of_8 = spans_of(both, "decode", 8)
            alone = [span for span in spans_of(both, "prefill", 128) if len(span.requests) == 1]
            passes = within(alone, steps_of_8[0].start_ns, steps_of_8[-1].end_ns)
            beside = within(steps_of_8, passes[0].start_ns, passes[-1].end_ns)
            kept["prefill"].append(pass_s / median_s(passes))
            kept["decode"].append(step_s / median_s(beside))
    note = "rates of passes of 128 tokens and of steps of 8 rows"
    return [
        Row(f"both_workers_kept[{name}]", statistics.median(shares), "of alone", 0.85, len(shares), note, at_most=False)
        for name, shares in kept.items()
    ]


def within(spans: list[Span], start_ns: int, end_ns: int) -> list[Span]:
    return [span for span in spans if span.start_ns >= start_ns and span.end_ns <= end_ns]


def paging_link(model: Model) -> Link:
    """A link of this machine's proportions: shorter contexts are cheaper to compute again, longer ones to spill."""
    token_s = compute_of_a_layer(model) * model.layers / 128
    return Link(bandwidth=4 * model.shape.token_bytes / token_s, fixed_s=EVEN_TOKENS * token_s / 4)


def paged_rows(say: Say, model: Model, count: int = 64, new_tokens: int = 160) -> list[Row]:
    """A decode pool a quarter of what the work wants: K/V go to the host or are computed again, tokens stay."""
    lengths = [16 + (index * 29) % 48 + new_tokens for index in range(count)]
    say("paged: the reference's logits")
    torch.set_num_threads(1)
    answers = continuations(model.reference(), prompts(model, lengths), new_tokens)
    requests, link = forced(answers), paging_link(model)
    config = Config.preset("paged", model=model.name, link=link, layers_per_copy=model.layers, decode_blocks=1024)
    say("paged: unlimited")
    with Engine(config, model=model) as engine:
        run = engine.serve(requests)
        full_rate, peak = run.metrics().tokens_per_s, run.peak_blocks["decode 0"]
    say(f"paged: {peak // 4} of {peak} blocks")
    with Engine(config.replace(decode_blocks=peak // 4, host_blocks=peak // 4), model=model) as engine:
        run = engine.serve(requests)
    parity = Parity()
    for result, answer in zip(run.results, answers, strict=True):
        parity.add(torch.stack(result.logits), answer)
    rate, counts = run.metrics().tokens_per_s, run.counts
    rows = [
        Row("paged_parity[max_logit_diff]", parity.largest, "logits", 5e-4, parity.positions),
        Row("paged_parity[wrong_tokens]", parity.wrong, "tokens", 0, parity.positions),
        Row("paged_over_full", rate / full_rate, "×", 0.5, 1, f"{rate:.1f} against {full_rate:.1f} tokens/s; "
            f"{peak // 4} of {peak} blocks", at_most=False),
    ]  # fmt: skip
    lengths = sorted(choice.tokens for choice in run.choices)
    note = f"contexts preempted: {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"
    for name in ("spills", "fetches", "recomputes"):
        rows.append(Row(f"paged_{name}", counts.get(name, 0), "", 20, 1, note, at_most=False))
    return rows


def target_row(say: Say, model: Model, count: int = 48, new_tokens: int = 64) -> list[Row]:
    """A target for the gaps that a fixed batch misses: adaptive composition must hold it."""
    inputs = prompts(model, [32 + (index * 41) % 160 for index in range(count)])
    requests = [Request(prompt, new_tokens, ignore_eos=True) for prompt in inputs]
    say("a fixed batch of 32")
    with Engine(Config.preset("dynamic", model=model.name, itl_target_s=None), model=model) as engine:
        fixed = engine.serve(requests).metrics()
    fixed_p99 = known(fixed.itl_s.p99)
    target = 0.6 * fixed_p99
    say(f"adaptive, target {target * 1000:.0f} ms")
    with Engine(Config.preset("dynamic", model=model.name, itl_target_s=target), model=model) as engine:
        adaptive = engine.serve(requests).metrics()
    note = (
        f"target {target * 1000:.0f} ms; fixed batch of 32: p99 {fixed_p99 / target:.2f} of it at "
        f"{fixed.tokens_per_s:.1f} tokens/s, adaptive {adaptive.tokens_per_s:.1f}; second tokens' gaps pooled too"
    )
    gaps = count * (new_tokens - 1)
    return [
        Row("itl_p99_over_target", known(adaptive.itl_s.p99) / target, "of target", 1.1, gaps, note),
        Row("itl_p99_over_target[fixed batch]", fixed_p99 / target, "of target", None, gaps),
    ]


def bin_rows(say: Say) -> list[Row]:
    """Padding measured by the worker against the formula, and with bins against without (tiny model: counts only)."""
    model = load_model("tiny")
    lengths = long_tail(96, 1200)
    requests = [Request([(5 * i + k) % 250 for k in range(n)], 48, ignore_eos=True) for i, n in enumerate(lengths)]
    waste, mismatches = {}, 0
    for name, bins in (("one bin", ()), ("bins", (32, 64, 128, 256, 512, 1024))):
        say(f"long-tail lengths, {name}")
        with Engine(Config.preset("dynamic", model="tiny", bins=bins, itl_target_s=None), model=model) as engine:
            run = engine.serve(requests)
        waste[name] = run.padding.padded_slots - run.padding.used_slots
        mismatches += run.counts["padding_mismatches"]
    note = (
        f"slots read for nothing: {waste['bins']:,} against {waste['one bin']:,}; median length {sorted(lengths)[48]}"
    )
    return [
        Row("bin_waste_error", mismatches, "steps", 0, 2 * 96, "steps whose measured slots differ from the formula"),
        Row("bin_waste_over_unbinned", waste["bins"] / waste["one bin"], "×", 0.5, 96, note),
    ]


def leak_row(say: Say, count: int = 2000) -> Row:
    """Resident memory over many short requests with cancels, after a warm-up of as many."""
    draw, process = random.Random(0), psutil.Process()
    with Engine(Config.preset("paged", model="tiny", decode_blocks=64, host_blocks=32)) as engine:
        sizes = []
        for phase in ("warm-up", "measured"):
            say(f"{count} requests with cancels, {phase}")
            for _ in range(count // 20):
                together(engine, draw, 20, cancelled=0.3)
            gc.collect()
            sizes.append(process.memory_info().rss)
    growth = (sizes[1] - sizes[0]) / count
    return Row(
        "rss_growth_bytes_per_request", growth, "bytes", 1024, count, "30 % cancelled, after a warm-up of as many"
    )


def controller_row(say: Say, running: int = 256) -> Row:
    """Microseconds of the controller alone an event, in a virtual world with a full batch."""
    say(f"controller at {running} running")
    config = Config.preset("streamed", model="tiny", max_batch=running, decode_blocks=8192, prefill_blocks=4096)
    world = SimulatedEngine(config, Speeds(prefill_pass=100_000, prefill_token=10_000, step_row=100_000))
    at_full: list[tuple[int, bool]] = []
    handle = world.controller.handle

    def timed(event: ev.Event, now_ns: int) -> list[Command]:
        full = sum(len(worker.rows) for worker in world.controller.state.decodes) >= running * 0.95
        start = time.perf_counter_ns()
        commands = handle(event, now_ns)
        if full:
            at_full.append((time.perf_counter_ns() - start, isinstance(event, ev.Stepped)))
        return commands

    vars(world.controller)["handle"] = timed  # this world alone is timed
    for index in range(4 * running):
        world.submit(Job(index, (1,) * (64 + index % 64), 64 + index % 64, index * 2_000_000))
    world.run()
    steps = [ns for ns, stepped in at_full if stepped]
    note = f"with {running} running; events of decode steps alone {statistics.mean(steps) / 1000:.0f} µs"
    mean = statistics.mean(ns for ns, _ in at_full) / 1000
    return Row("controller_us_per_event", mean, "µs", 100, len(at_full), note)


def step_rows(say: Say, model: Model, module: torch.nn.Module) -> Iterator[Row]:
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
    return median_s(spans_of(run, "decode", len(asked)))


def batching_rows(say: Say, model: Model, module: torch.nn.Module) -> Iterator[Row]:
    """Work C against `generate_batch`, both on two cores: our batching alone, then the whole pipeline on the work four
    times over. `colocated` gets large passes, for all prompts are there at once: a step between two small passes would
    serve a part of the rows alone."""
    large = dict(threads=2, chunk_tokens=4096)
    for preset, times, rounds, bar, changes in (("colocated", 1, ROUNDS, 1.8, large), ("dynamic", 4, 2, 1.4, {})):
        requests, pairs = work_c(model, times), []
        for index in range(rounds):
            say(f"work C with {preset}, {index + 1} of {rounds}")
            theirs = peers.batched(module, requests)
            with Engine(Config.preset(preset, model=model.name, **changes), model=model) as engine:
                pairs.append((engine.serve(requests).metrics().tokens_per_s, theirs))
        what = f"work C, {len(requests)} requests, 2 threads"
        yield ratio_row(f"{preset}_over_generate_batch", pairs, bar, what)


def suite(say: Say, model_name: str = "smollm2") -> Iterator[Row]:
    """The rows as they are measured, the quick ones first."""
    model = load_model(model_name)
    yield controller_row(say)
    yield leak_row(say)
    yield from bin_rows(say)
    yield from both_workers_row(say, model)
    yield from target_row(say, model)
    yield from paged_rows(say, model)
    module = model.reference()
    yield from step_rows(say, model, module)
    yield from batching_rows(say, model, module)
