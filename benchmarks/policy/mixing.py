"""Rows that decode in the passes of prompts, against passes and steps in turn; and the price of each chunk size."""

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.common import Say, known
from benchmarks.fixed_works import random_ids, work_c
from benchmarks.policy_loads import MODEL, VOCAB
from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import load_model
from disagg.show.report import LeftOut, Row
from disagg.trace.metrics import Metrics, percentile
from disagg.twin.goodput import Load
from disagg.twin.simulate import simulate, simulation_on
from disagg.twin.traces import read_trace
from disagg.twin.workloads import requests_of

ONE = "1xH100"
BUSY = 0.7  # of the rate at which the work is done when all of it is there at once
CHUNKS = (128, 256, 512, 1024, 2048, 4096, 8192)


def compared(name: str, new: Metrics, old: Metrics, what: str) -> Iterator[Row]:
    """p99 of the gaps, and throughput, with rows in the passes over without."""
    ours, theirs = known(new.itl_s.p99), known(old.itl_s.p99)
    note = f"{what}: {ours * 1e3:.1f} against {theirs * 1e3:.1f} ms"
    yield Row(f"mixed_passes_gap_p99[{name}]", ours / theirs, "×", 0.5, new.itl_s.count, note)
    note = f"{new.tokens_per_s:.1f} against {old.tokens_per_s:.1f} tokens/s"
    rate = new.tokens_per_s / old.tokens_per_s
    yield Row(f"mixed_passes_tokens_per_s[{name}]", rate, "×", 0.97, new.requests, note, at_most=False)


def trace_of(traces: Sequence[Path]) -> Path | None:
    """Azure's code trace among the given ones."""
    return next((path for path in traces if "code" in path.name), None)


def twin_rows(say: Say, traces: Sequence[Path], count: int = 300) -> Iterator[Row | LeftOut]:
    path = trace_of(traces)
    if path is None:
        reason = "no --trace with Azure's code requests (AzureLLMInferenceTrace_code.csv)"
        yield LeftOut("mixed_passes[twin]", reason)
        return
    load = Load.of(requests_of(read_trace(path)[:count], VOCAB))
    config = Config.preset("colocated", **MODEL)
    say("the code trace, all at once")
    at_once = simulate(config, load.at(1e6), hardware=ONE, record=False).metrics()
    rate = BUSY * at_once.requests / at_once.seconds
    say(f"the code trace at {rate:.2f} requests a second, mixed and in turn")
    new, old = (
        simulate(config.replace(mixed_passes=mixed), load.at(rate), hardware=ONE, record=False).metrics()
        for mixed in (True, False)
    )
    what = f"{count} requests at {rate:.2f} a second on {ONE}, chunks of {config.chunk_tokens}"
    yield from compared("twin", new, old, what)


def real_rows(say: Say, name: str = "smollm2", times: int = 1, rounds: int = 3) -> Iterator[Row]:
    """Work C on this machine, the round of the median gap for each side."""
    model = load_model(name)
    requests, found = work_c(model, times), dict[bool, list[Metrics]]()
    for index in range(rounds):
        for mixed in (True, False):
            say(f"work C, {'mixed' if mixed else 'in turn'}, {index + 1} of {rounds}")
            with Engine(Config.preset("colocated", model=name, mixed_passes=mixed), model=model) as engine:
                engine.serve(requests[:1])
                found.setdefault(mixed, []).append(engine.serve(requests).metrics())
    new, old = (sorted(found[mixed], key=lambda m: known(m.itl_s.p99))[rounds // 2] for mixed in (True, False))
    yield from compared("work C", new, old, f"work C, {len(requests)} requests with {name}, median of {rounds}")


def price_rows(say: Say, rows: int = 16, prompts: int = 24, length: int = 8000) -> Iterator[Row]:
    """Rows that decode beside a queue of long prompts: their gaps, and the prompts done a minute, by chunk budget."""
    for chunk in CHUNKS:
        say(f"the price of chunks of {chunk}")
        alone, beside, a_minute = price(chunk, rows, prompts, length)
        p99 = known(percentile(beside, 0.99))
        note = f"gaps p99 {p99 * 1e3:.1f} ms, alone {alone * 1e3:.1f}; prompts of {length:,} tokens, {rows} rows"
        yield Row(f"chunk_gap_p99[{chunk}]", p99 / alone, "× alone", None, len(beside), note)
        yield Row(f"chunk_prefills_a_minute[{chunk}]", a_minute, "", None, prompts)


def price(chunk: int, rows: int, prompts: int, length: int) -> tuple[float, list[float], float]:
    """A row's gap alone, its gaps while prompts are prefilled beside it, in seconds; and the prompts done a minute."""
    ids = random_ids([512] * rows + [length] * prompts, VOCAB, 0)
    start_s, size = 1.0, Config.preset("colocated", **MODEL).block_size
    residents = [Request(each, 20_000, ignore_eos=True) for each in ids[:rows]]
    requests = residents + [Request(each, 1, start_s, ignore_eos=True) for each in ids[rows:]]
    config = Config.preset("colocated", max_batch=rows + prompts, chunk_tokens=max(chunk, 2 * size), **MODEL)
    world = simulation_on(ONE, config, requests, record=False)
    done = [world.results[index] for index in range(rows, rows + prompts)]
    while not all(result.finish_reason for result in done):
        world.step()
    world.close()
    end_ns, start_ns = max(result.ended_ns for result in done), done[0].arrival_ns
    times = [world.results[index].token_times_ns for index in range(rows)]
    pairs = [(a, b) for each in times for a, b in pairwise(each)]
    quiet = [(b - a) / 1e9 for a, b in pairs if start_ns // 2 <= a and b <= start_ns]
    beside = [(b - a) / 1e9 for a, b in pairs if b > start_ns and b <= end_ns]
    return statistics.median(quiet), beside, 60e9 * prompts / (end_ns - start_ns)
