"""What is seen, measured: receipts that sum, stalls under their names, what recording and drawing cost, stepping."""

import random
import statistics
import time
from collections.abc import Callable, Iterator

from benchmarks import browser_views, recording_io, views
from benchmarks.robustness.stalls import names_rows
from disagg.plan.config import PRESETS, Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.model.model import Model, load_model
from disagg.show.example_prompts import prompts
from disagg.show.report import Row
from disagg.twin.stepper import Stepper

Say = Callable[[str], None]


def mixed(count: int, seed: int = 0) -> list[Request]:
    """Short and long prompts and answers on the tiny model, 10 ms apart."""
    draw = random.Random(seed)
    return [
        Request([draw.randrange(256) for _ in range(draw.randint(1, 300))], draw.randint(1, 40), 0.01 * index)
        for index in range(count)
    ]


def receipt_rows(say: Say, model: Model, count: int = 200) -> Iterator[Row]:
    """The worst receipt of each preset: time that no line covers, in units of what is allowed (1 ms, or 1 %)."""
    for preset in PRESETS:
        say(f"{count} receipts on {preset}")
        config = Config.preset(preset, model="tiny", link=0.02e9, decode_blocks=80, prefill_blocks=64)
        with Engine(config, model=model) as engine:
            bills = [result.receipt for result in engine.serve(mixed(count)).results]
        allowed = [bill.unaccounted_s / max(1e-3, 0.01 * bill.total_s) for bill in bills]
        largest = max(bills, key=lambda bill: bill.unaccounted_s)
        note = f"largest {1e3 * largest.unaccounted_s:.2f} ms of {1e3 * largest.total_s:.0f} ms"
        yield Row(f"receipt_remainder[{preset}]", max(allowed), "of 1 ms or 1 %", 1, count, note)


def recording_row(say: Say, model: Model, pairs: int = 12) -> Row:
    """Throughput without against with recording, the same requests, alternating."""
    inputs = prompts(model, [32 + 7 * index for index in range(16)])
    requests = [Request(prompt, 24, ignore_eos=True) for prompt in inputs]
    rates: dict[bool, list[float]] = {True: [], False: []}
    with Engine(Config.preset("staged", model=model.name), model=model) as engine:
        engine.serve(requests[:4])
        for index in range(pairs):
            say(f"recording on and off, {index + 1} of {pairs}")
            for record in (True, False) if index % 2 else (False, True):
                rates[record].append(engine.serve(requests, record=record).metrics().tokens_per_s)
    costs = [100 * (off / on - 1) for on, off in zip(rates[True], rates[False], strict=True)]
    note = f"{statistics.median(rates[True]):.1f} tokens/s with, {statistics.median(rates[False]):.1f} without; "
    return Row("recording_cost_pct", statistics.median(costs), "%", 2, pairs, note + f"worst pair {max(costs):.1f}")


def step_rows(say: Say, events: int = 1000) -> list[Row]:
    """Events forward and back on a busy paged world, and whether both ways give the same bytes."""
    say(f"stepping over {events} events")
    draw = random.Random(0)
    requests = [Request([1] * draw.randint(4, 200), draw.randint(1, 30), 0.2 * index) for index in range(30)]
    config = Config.preset("paged", link=0.05e9, decode_blocks=40, host_blocks=40, prefill_blocks=60, bins=(64, 128))
    stepper = Stepper(config, requests)
    forward, back, took = [], [], []
    for numbers, states in ((range(events), forward), (range(events - 1, -1, -1), back)):
        for number in numbers:
            start = time.process_time()
            states.append(stepper.go(number).to_bytes())
            took.append(1e3 * (time.process_time() - start))
    note = f"mean; worst {max(took):.1f} ms (a window of events is computed at once); {len(stepper)} events in the run"
    return [
        Row("step_ms", statistics.mean(took), "ms", 5, len(took), note),
        Row("step_states_equal", forward == back[::-1], "", 1, events, at_most=False),
    ]


def suite(say: Say, model_name: str = "smollm2") -> Iterator[Row]:
    """The rows as they are measured."""
    tiny = load_model("tiny")
    yield from step_rows(say)
    yield from recording_io.load_rows(say)
    yield from receipt_rows(say, tiny)
    yield from names_rows(say, tiny)
    yield from views.suite(say)
    yield from browser_views.suite(say)
    yield recording_row(say, load_model(model_name))
