"""Keeps what happens around one controller: spans, marks, moves of blocks, the log of events, and what a run counts.

The last entries are kept at all times, for requests that belong to no run; a run that is recorded has a recording of
its own beside them. Everything but `span` is called on the controller's thread.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from disagg.plan.batching import Padding
from disagg.plan.commands import Placed
from disagg.plan.config import Config
from disagg.plan.events import Event, Probed
from disagg.plan.preemption import Choice
from disagg.plan.state import ControllerState
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.trace.results import Result, Run
from disagg.trace.spans import BlockMove, Mark, Span
from disagg.trace.timeline import Kept, Timeline

BETWEEN_RUNS = 10_000  # entries of each kind kept for requests that belong to no run


class OpenRecording:
    """A timeline, the log of events and the choices made, from one instant on; the last `most` of each, or all."""

    def __init__(self, most: int | None, start_ns: int, devices: dict[str, str], sizes: dict[str, int]) -> None:
        make: Callable[[], Kept[Any]] = list if most is None else partial(deque, maxlen=most)
        self.most = most
        self.log, self.choices, self.moves, self.placements = make(), make(), make(), make()
        self.timeline = Timeline(make(), start_ns, make(), self.moves, devices, sizes)


class Recorder:
    def __init__(
        self, state: ControllerState, transfers: TransferScheduler, machine: str = "", last: int = BETWEEN_RUNS
    ) -> None:
        """`last`: entries of each kind that are kept at all times; 0 where every request belongs to a run."""
        self.state, self.transfers, self.machine = state, transfers, machine
        self._gauges = gauges(state)
        transfers.on_ring = self._ring
        self._now_ns = 0  # of the event in hand
        self.probed: list[tuple[int, Event]] = []  # what was measured before the first run: a replay needs it
        state.on_move.append(self._moved)
        self._always = self._open(last, 0)
        self.between_runs()

    def begin(self, start_ns: int, record: bool = True, beside: bool = False) -> None:
        """A run starts: from here on everything is kept. With `record=False` nothing but the counts is; the last
        entries only where there are requests `beside` the run, which may want them."""
        run = self._open(None, start_ns)
        run.log.extend(self.probed if record else ())
        always = (self._always,) if (record or beside) and self._always.most else ()
        self._use(run, (run, *always) if record else always)
        for pool in self.state.pools():
            pool.peak = pool.held
            for (owner, state), blocks in pool.holdings().items() if record else ():
                run.moves.append(BlockMove(start_ns, pool.name, state, owner, tuple(blocks)))

    def between_runs(self) -> None:
        """No run is under way: only the last entries are kept."""
        self._use(self._always, (self._always,))

    def _open(self, most: int | None, start_ns: int) -> OpenRecording:
        sizes = {pool.name: pool.total for pool in (*self.state.pools(), self.transfers.ring) if pool.total}
        return OpenRecording(most, start_ns, devices(self.state.config), sizes)

    def _use(self, run: OpenRecording, kept: tuple[OpenRecording, ...]) -> None:
        """`run` is what counts from now on, and `kept` is written to."""
        state = self.state
        self._run, self._kept = run, kept
        self._last: list[int | str | None] = [None] * len(self._gauges)
        self._counts, self._padding = Counter(state.counts), replace(state.padding)

    @property
    def on(self) -> bool:
        return bool(self._kept)

    @property
    def timeline(self) -> Timeline:
        """Of the run that is under way, or else the last entries."""
        return self._run.timeline

    def timeline_of(self, run: bool) -> Timeline | None:
        """Where a request that begins now will find its spans; None where they are not kept."""
        kept = self._run if run else self._always
        return kept.timeline if kept in self._kept else None

    def span(self, span: Span) -> None:
        """Called by workers and lanes, from their threads."""
        for recording in self._kept:
            recording.timeline.spans.append(span)

    def hear(self, now_ns: int, event: Event) -> None:
        """Logs an event before the controller takes it; the moves of blocks that follow get its time."""
        self._now_ns = now_ns
        if isinstance(event, Probed):
            self.probed = [(now_ns, event)]
        for recording in self._kept:
            recording.log.append((now_ns, event))

    def _moved(self, pool: str, state: str, owner: int | None, blocks: tuple[int, ...]) -> None:
        if self._kept:
            move = BlockMove(self._now_ns, pool, state, owner, blocks)
            for recording in self._kept:
                recording.moves.append(move)

    def choose(self, choice: Choice) -> None:
        for recording in self._kept:
            recording.choices.append(choice)

    def place(self, placed: Placed) -> None:
        for recording in self._kept:
            recording.placements.append(placed)

    def note(self, now_ns: int) -> None:
        if not self._kept:
            return
        last = self._last
        for index, (name, read) in enumerate(self._gauges):
            value = read()
            if value != last[index]:
                last[index] = value
                self._mark(Mark(now_ns, name, value))

    def _ring(self, at_ns: int, held: int) -> None:
        self._mark(Mark(at_ns, "ring", held))

    def _mark(self, mark: Mark) -> None:
        for recording in self._kept:
            recording.timeline.marks.append(mark)

    def run(self, config: Config, results: list[Result], interrupted: bool = False) -> Run:
        """What was recorded since `begin`."""
        state, recording, timeline = self.state, self._run, self._run.timeline
        if recording.most is not None:  # workers go on appending to it
            lists = {name: list(entries) for name, entries in timeline.records().items()}
            spans, marks, moves = lists.values()
            timeline = replace(timeline, spans=spans, marks=marks, moves=moves, _index=None)
        used, padded = self._padding.used_slots, self._padding.padded_slots
        padding = Padding(state.padding.used_slots - used, state.padding.padded_slots - padded)
        counts = {name: state.counts[name] - self._counts[name] for name in state.counts}
        peaks, kept = {pool.name: pool.peak for pool in state.pools()}, (list(recording.choices), list(recording.log))
        return Run(
            config,
            results,
            timeline,
            counts,
            padding,
            peaks,
            *kept,
            interrupted,
            self.machine,
            list(recording.placements),
        )


def gauges(state: ControllerState) -> list[tuple[str, Callable[[], int | str]]]:
    """(name, how to read it): lengths of queues, what gates them, free blocks, rows of each batch."""
    found: list[tuple[str, Callable[[], int | str]]] = []
    queues = {id(worker.queue): (f"{worker.name} queue", worker.queue) for worker in reversed(state.prefills)}
    queues |= {id(worker.landed): (f"{worker.name} landed", worker.landed) for worker in state.decodes}
    queues[id(state.wanting)] = ("wanting", state.wanting)
    for name, queue in queues.values():
        found += [(name, partial(len, queue)), (f"gate {name}", partial(getattr, queue, "gate"))]
    found += [(f"free {pool.name}", partial(getattr, pool, "available")) for pool in state.pools() if pool.total]
    return found + [(f"batch {worker.name.index}", partial(len, worker.rows)) for worker in state.decodes]


def devices(config: Config) -> dict[str, str]:
    """Worker, lane or memory → the device, link or memory it stands on."""
    counts = {"prefill": config.prefill_workers, "decode": config.decode_workers}
    found = {f"{role} {i}": config.device_of(role, i) for role, count in counts.items() for i in range(count)}
    first, second = ("link to host", "link to decode") if config.route == "staged" else ("link", "link to decode")
    found |= {f"{name} {i}": first for name in ("direct", "down") for i in range(config.sender[1])}
    found |= {f"up {i}": second for i in range(config.decode_workers)}
    found |= {f"spill {i}": "link to host" for i in range(config.decode_workers)}
    found |= {f"park {i}": "host memory" for i in range(config.sender[1])}
    return {**found, "host": "host memory"}
