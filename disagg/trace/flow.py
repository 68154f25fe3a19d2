"""The whole system at an instant of a run: who waits where, which layers are computed, which travel, who shares a step.

Everything is read off the timeline, whether it was recorded or simulated; nothing is replayed. show/flow.js shows the
same moving, and show/plots/flow_plot.py as a picture.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from disagg.plan.request import Stage
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span

WORKS = ("prefill", "decode")
QUEUE, HOST, GONE = "queue", "host", "gone"
IN_HOST = (Stage.SPILLING, Stage.SPILLED, Stage.PARKED, Stage.FETCHING)


class Whereabouts(NamedTuple):
    """From this instant on the request is at a place: the queue, a worker, host memory, or gone."""

    at_ns: int
    place: str


class PassNow(NamedTuple):
    """A prefill pass under way; `done` of its layers are computed (0 where the run has no marks of layers)."""

    requests: tuple[int, ...]
    done: int


class Flight(NamedTuple):
    """A copy under way: `share` of its time is over."""

    request: int
    layer: int
    layers: int
    share: float


@dataclass(frozen=True)
class Instant:
    """Requests by their place among the results; workers, lanes and memories by name."""

    at_ns: int
    here: dict[str, list[int]]  # place → requests
    passes: dict[str, PassNow]
    steps: dict[str, tuple[int, ...]]
    flights: dict[str, Flight]  # lane → its latest copy under way
    ready: dict[str, int]  # lane → layers that wait for it
    ring: int  # slots held
    tokens: list[int]  # a request's so far


class Flow:
    """A run as it flows; `at(ns)` is a moment of it, in ns on the engine's clock."""

    def __init__(self, run: Run) -> None:
        self.run, self.timeline = run, run.timeline
        self.numbers = {result.request: index for index, result in enumerate(run.results)}
        own: dict[int, list[Span]] = {result.request: [] for result in run.results}
        for span in sorted(run.timeline.spans, key=lambda span: span.start_ns):
            if span.kind in WORKS:
                for request in span.requests:
                    own.setdefault(request, []).append(span)
        self.visits = [list(visits(result, own[result.request])) for result in run.results]
        self._prefills = {span.place for span in run.timeline.spans if span.kind == "prefill"}
        self.ring = [(mark.at_ns, int(mark.value)) for mark in run.timeline.marks if mark.name == "ring"]
        self.layers = max((len(span.hand_offs_ns) for span in run.timeline.spans), default=0)

    @property
    def workers(self) -> list[str]:
        """Prefill workers before decode workers."""
        config = self.run.config
        prefills = [] if config.colocated else [f"prefill {i}" for i in range(config.prefill_workers)]
        return prefills + [f"decode {i}" for i in range(config.decode_workers)]

    def prefills(self, worker: str) -> bool:
        return worker in self._prefills

    @property
    def lanes(self) -> list[str]:
        return list(dict.fromkeys(span.place for span in self.timeline.spans if span.place not in self.workers))

    def at(self, at_ns: int) -> Instant:
        here: dict[str, list[int]] = {}
        for index, stays in enumerate(self.visits):
            before = bisect_right(stays, at_ns, key=lambda visit: visit.at_ns)
            if before and stays[before - 1].place != GONE:
                here.setdefault(stays[before - 1].place, []).append(index)
        passes: dict[str, PassNow] = {}
        steps: dict[str, tuple[int, ...]] = {}
        flights: dict[str, Flight] = {}
        ready: dict[str, int] = {}
        for span in self.timeline.spans:
            if span.kind not in WORKS and 0 < span.ready_ns <= at_ns < span.start_ns:
                ready[span.place] = ready.get(span.place, 0) + span.count
            if not span.start_ns <= at_ns < span.end_ns:
                continue
            requests = tuple(self.numbers.get(request, request) for request in span.requests)
            if span.kind == "prefill":
                passes[span.place] = PassNow(requests, bisect_right(span.hand_offs_ns, at_ns))
            elif span.kind == "decode":
                steps[span.place] = requests
            else:
                share = (at_ns - span.start_ns) / (span.end_ns - span.start_ns)
                flights[span.place] = Flight(requests[0], span.index, span.count, share)
        held = bisect_right(self.ring, at_ns, key=lambda mark: mark[0])
        tokens = [bisect_right(result.token_times_ns, at_ns) for result in self.run.results]
        ring = self.ring[held - 1][1] if held else 0
        return Instant(at_ns, here, passes, steps, flights, ready, ring, tokens)


def visits(result: Result, own: list[Span]) -> Iterator[Whereabouts]:
    """Where a request is from when on, by its own passes and steps; a place that it keeps is told once."""
    stays = [Whereabouts(at_ns, _place(stage, at_ns, result, own)) for at_ns, stage in result.stages]
    for _, same in groupby(stays, key=lambda visit: visit.place):
        yield next(same)


def _place(stage: Stage, at_ns: int, result: Result, own: list[Span]) -> str:
    match stage:
        case Stage.QUEUED:
            return QUEUE
        case Stage.ENDED:
            return GONE
        case Stage.PREFILLING:
            return next((s.place for s in own if s.kind == "prefill" and s.end_ns > at_ns), QUEUE)
        case Stage.HANDING_OFF:  # its K/V are still where they were computed
            return next((s.place for s in reversed(own) if s.kind == "prefill" and s.start_ns <= at_ns), QUEUE)
        case _ if stage in IN_HOST:
            return HOST
        case _:
            steps = (s.place for s in own if s.kind == "decode" and s.end_ns > at_ns)
            return next(steps, f"decode {result.seat or 0}")
