"""Recordings: how large a long one is, and how long it takes to load."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.show.report import Row
from disagg.trace.results import Run
from disagg.twin.simulate import Speeds, simulate

SPANS, REPEATS = 100_000, 5


def many_spans(count: int, seed: int = 0) -> Run:
    """A simulated run of `count` spans or somewhat more: a staged hand-off of one chunk takes two copies a layer."""
    draw, speeds = random.Random(seed), Speeds(prefill_token=397_001, step=6_100_003, step_row=610_007)
    requests = [
        Request([1] * draw.randint(32, 256), draw.randint(2, 4), arrival_s=draw.uniform(0.1, 0.2) * index)
        for index in range(-(-count // (2 * speeds.layers)))
    ]
    return simulate(Config.preset("staged", link=draw.uniform(0.2e9, 0.3e9)), requests, speeds)


def load_rows(say: Callable[[str], None], count: int = SPANS, repeats: int = REPEATS) -> Iterator[Row]:
    """Size of the packed recording, and seconds of a load; the quickest, because others share the machine."""
    say(f"saving a run of {count} spans, and loading it {repeats} times")
    run = many_spans(count)
    spans, marks = len(run.timeline.spans), len(run.timeline.marks)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl.gz"
        run.save(path)
        note = f"{spans} spans, {marks} marks, {len(run.timeline.moves)} moves"
        yield Row("file_100k_mb", path.stat().st_size / 1e6, "MB", 6, 1, note)
        seconds = min(_load_s(path) for _ in range(repeats))
    yield Row("load_100k_s", seconds, "s", 3, repeats, "Run.load, every line checked; quickest")


def _load_s(path: Path) -> float:
    start = time.perf_counter()
    Run.load(path)
    return time.perf_counter() - start
