"""What a live view costs, and whether it leaves anything behind."""

import gc
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import ipywidgets
import psutil

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.plan.spans import Span
from disagg.run.engine import Engine
from disagg.show.live import LINES, watch
from disagg.show.player import panel
from disagg.show.plots.live_arrays import Tape, rows_of
from disagg.show.plots.live_frame import Frame
from disagg.show.report import Row
from disagg.trace.timeline import Timeline

Say = Callable[[str], None]
VISIBLE, WINDOW_MS, GAUGES = 2000, 6000.0, ["prefill 0 queue", "batch 0", "free decode 0"]


def suite(say: Say) -> Iterator[Row]:
    yield update_cpu_row(say)
    yield lateness_row(say)
    yield from rerun_rows(say)


def update_cpu_row(say: Say, updates: int = 60) -> Row:
    """CPU of a frame that shows exactly so many spans; a turn of the page, once in three seconds, is told apart."""
    say("frames")
    rows, places = rows_of(Config.preset("streamed", model="tiny")), ("prefill 0", "direct 0", "decode 0")
    kinds, each = dict(zip(places, ("prefill", "copy", "decode"), strict=True)), 0.9e6 * WINDOW_MS / VISIBLE
    spans = [Span(kinds[places[i % 3]], places[i % 3], round(i * each), round((i + 2.5) * each), (0,))
             for i in range(VISIBLE)]  # fmt: skip
    tape, frame = Tape(Timeline(spans), rows), Frame(rows, GAUGES)
    at_ms, turn = 0.95 * WINDOW_MS, 0.0
    for _ in range(3):
        frame.png(tape, 0, 100)  # another window
        start = time.process_time()
        frame.png(tape, at_ms, WINDOW_MS, ("",) * LINES)
        turn = 1e3 * (time.process_time() - start)
    start = time.process_time()
    for index in range(updates):
        frame.png(tape, at_ms + 0.1 * index, WINDOW_MS, ("what a request has said so far " * 3,) * LINES)
    took = 1e3 * (time.process_time() - start) / updates
    note = f"{VISIBLE} visible spans, {LINES} lines of text; {turn:.0f} ms where the page turns"
    return Row("update_cpu_ms", took, "ms", 15, updates, note)


def lateness_row(say: Say, seconds: float = 10, rounds: int = 3) -> Row:
    """p99 lateness of a thread that wakes every 20 ms beside a watched engine, less that beside an unwatched one."""
    new = 1500
    requests = [Request([1] * 40, new, index, ignore_eos=True) for index in range(round(seconds))]
    found: dict[str, list[float]] = {"alone": [], "watched": []}
    with Engine(Config.preset("streamed", model="tiny")) as engine:
        works = {"alone": lambda: engine.serve(requests), "watched": lambda: watch(engine, requests)}
        for index in range(rounds):
            say(f"a ticker beside the engine, {index + 1} of {rounds}")
            for name, work in works.items():
                found[name].append(lateness_p99_ms(work))
    more = [watched - alone for watched, alone in zip(found["watched"], found["alone"], strict=True)]
    note = f"median of {', '.join(f'{ms:.2f}' for ms in more)}; alone {statistics.median(found['alone']):.2f} ms"
    return Row("view_lateness_p99_ms", statistics.median(more), "ms", 2, rounds, note)


def lateness_p99_ms(work: Callable[[], object], every_s: float = 0.02) -> float:
    late, over = [], threading.Event()

    def tick() -> None:
        due = time.perf_counter() + every_s
        while not over.wait(max(0.0, due - time.perf_counter())):
            late.append(1e3 * (time.perf_counter() - due))
            due = max(due + every_s, time.perf_counter())

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        work()
    finally:
        over.set()
        ticker.join()
    return sorted(late)[math.ceil(0.99 * len(late)) - 1]


def rerun_rows(say: Say, times: int = 50) -> Iterator[Row]:
    """The same cell again and again, every third one interrupted: a watch on one engine, a panel on another."""
    requests = [Request([1] * 20, 4, ignore_eos=True) for _ in range(2)]
    config = Config.preset("streamed", model="tiny", prefill_blocks=64, decode_blocks=64)
    with Engine(config) as one, Engine(config) as other:

        def cell(index: int):
            shown = panel(other, requests)
            shown.buttons[0].click()
            if index % 3 == 0:
                threading.Timer(0.005, one.interrupt).start()
            watch(one, requests, updates_per_s=50)
            return shown

        def left() -> tuple[int, int]:
            gc.collect()
            return threading.active_count(), len(ipywidgets.widgets.widget._instances)

        for index in range(times):  # allocators grow until every size was seen
            shown = cell(index)
        shown.close()
        before, memory = left(), psutil.Process().memory_info().rss
        for index in range(times):
            say(f"the same cell, {index + 1} of {times}")
            shown = cell(index)
        shown.close()
        after, grown = left(), psutil.Process().memory_info().rss - memory
    leaks = sum(abs(now - then) for now, then in zip(after, before, strict=True))
    yield Row("rerun_leaks", leaks, "threads and widgets", 0, times, "two engines at once, each third cell interrupted")
    yield Row("rerun_memory_mb", grown / 1e6, "MB", 20, times, "resident, after as many cells before")
