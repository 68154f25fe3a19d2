"""Keeps what happens around one controller: spans, marks, moves of blocks, the log of events, and what a run counts.

Both clocks use it. Workers and lanes report spans; after each event `note` writes a mark for every queue, gate, pool
and batch that changed. Between two runs only the last entries are kept.
"""

from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from disagg.plan.batching import Padding
from disagg.plan.book import Book
from disagg.plan.config import Config
from disagg.plan.results import Result, Run
from disagg.plan.timeline import BlockMove, Mark, Span, Timeline
from disagg.plan.traffic import Traffic

BETWEEN_RUNS = 10_000  # entries of each kind kept while no run is recorded


class Recorder:
    def __init__(self, book: Book, traffic: Traffic, machine: str = ""):
        self.book, self.traffic, self.machine = book, traffic, machine
        self._gauges = gauges(book)
        traffic.on_ring = self._ring
        self.between_runs()

    def begin(self, start_ns: int, record: bool = True):
        """A run starts: from here on everything is kept; with `record=False` nothing but the counts is."""
        self._open(None if record else 0, start_ns)
        for pool in self.book.pools():
            pool.peak = pool.held
            for (owner, state), blocks in pool.holdings().items():
                self.timeline.moves.append(BlockMove(start_ns, pool.name, state, owner, tuple(blocks)))

    def between_runs(self):
        """No run is under way: only the last entries are kept."""
        self._open(BETWEEN_RUNS, 0)

    def _open(self, most: int | None, start_ns: int):
        make, book = list if most is None else partial(deque, maxlen=most), self.book
        self.on = most != 0
        self.log, self.choices = make(), make()
        self.timeline = Timeline(make(), start_ns, make(), make(), devices(book.config), self._sizes())
        self._last: list = [None] * len(self._gauges)
        self._counts, self._padding = Counter(book.counts), Padding(book.padding.used_slots, book.padding.padded_slots)
        book.moves = self.timeline.moves if self.on else None

    def _sizes(self) -> dict[str, int]:
        return {pool.name: pool.total for pool in (*self.book.pools(), self.traffic.ring) if pool.total}

    def span(self, span: Span):
        """Called by workers and lanes, from their threads."""
        self.timeline.spans.append(span)

    def hear(self, now_ns: int, event):
        """Logs an event before the controller takes it."""
        self.log.append((now_ns, event))

    def note(self, now_ns: int):
        """Marks what the event changed, after the controller took it."""
        if not self.on:
            return
        marks, last = self.timeline.marks, self._last
        for index, (name, read) in enumerate(self._gauges):
            value = read()
            if value != last[index]:
                last[index] = value
                marks.append(Mark(now_ns, name, value))

    def _ring(self, at_ns: int, held: int):
        if self.on:
            self.timeline.marks.append(Mark(at_ns, "ring", held))

    def run(self, config: Config, results: list[Result], interrupted: bool = False) -> Run:
        """What was recorded since `begin`."""
        book, timeline = self.book, self.timeline
        used, padded = self._padding.used_slots, self._padding.padded_slots
        return Run(
            config,
            results,
            timeline,
            {name: book.counts[name] - self._counts[name] for name in book.counts},
            Padding(book.padding.used_slots - used, book.padding.padded_slots - padded),
            {pool.name: pool.peak for pool in book.pools()},
            list(self.choices),
            list(self.log),
            interrupted,
            self.machine,
        )


def gauges(book: Book) -> list[tuple[str, Callable[[], int | str]]]:
    """(name, how to read it): lengths of queues, what gates them, free blocks, rows of each batch."""
    found: list[tuple[str, Callable]] = []
    queues = {id(seat.queue): (f"{seat.worker} queue", seat.queue) for seat in reversed(book.prefills)}
    queues |= {id(seat.landed): (f"{seat.worker} landed", seat.landed) for seat in book.decodes}
    queues[id(book.wanting)] = ("wanting", book.wanting)
    for name, queue in queues.values():
        found += [(name, partial(len, queue)), (f"gate {name}", partial(getattr, queue, "gate"))]
    found += [(f"free {pool.name}", partial(getattr, pool, "available")) for pool in book.pools() if pool.total]
    return found + [(f"batch {seat.worker.index}", partial(len, seat.rows)) for seat in book.decodes]


def devices(config: Config) -> dict[str, str]:
    """Worker, lane or memory → the device, link or memory it stands on."""
    counts = {"prefill": config.prefill_workers, "decode": config.decode_workers}
    found = {f"{role} {i}": config.device_of(role, i) for role, count in counts.items() for i in range(count)}
    first, second = ("link to host", "link to decode") if config.route == "staged" else ("link", "link to decode")
    found |= {f"{name} {i}": first for name in ("direct", "down") for i in range(config.prefill_workers)}
    found |= {f"up {i}": second for i in range(config.decode_workers)}
    found |= {f"spill {i}": "link to host" for i in range(config.decode_workers)}
    return {**found, "host": "host memory"}
