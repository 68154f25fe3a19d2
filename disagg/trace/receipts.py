"""Receipts: where every millisecond of a request went, as named waits and works that never overlap.

Each line is an interval that was measured. Where several cover an instant, works come first; what no line covers is
`unaccounted_s`, never a line.

    waits   submission (arrival → controller), queue (a worker is busy with others), batch-slot, no-block,
            step-boundary (the running step has to end first), device-busy (one device: others' prefill or decode),
            link-busy, ring-full, spilled, parked (in host memory, no block to go to), dispatch (command → start),
            notice (end → the controller's next act on it)
    works   prefill (a chunk), recompute, transfer (what is exposed of it: after the first token, and where a pass
            stands still in a hand-off that blocks), spill, fetch, decode (whole steps)
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import NamedTuple, Protocol

from disagg.plan.queues import BATCH_SLOT
from disagg.plan.request import Stage
from disagg.trace.index import Index
from disagg.trace.intervals import Interval, length, union
from disagg.trace.spans import Span

WORKS = ("prefill", "recompute", "transfer", "spill", "fetch", "decode")
#: All names, in the order of a request's life.
NAMES = (
    *("submission", "queue", "batch-slot", "no-block", "prefill", "recompute", "link-busy", "ring-full", "transfer"),
    *("step-boundary", "device-busy", "decode", "spill", "spilled", "parked", "fetch", "dispatch", "notice"),
)


class Line(NamedTuple):
    """One stretch of a request's time. Times in ns on the engine's clock."""

    name: str
    start_ns: int
    end_ns: int
    what: str = ""  # which chunk, step, queue or lane

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class Receipt:
    """The lines of one request between two instants, in order."""

    request: int
    start_ns: int
    end_ns: int
    lines: tuple[Line, ...]

    @property
    def total_s(self) -> float:
        """The measured time that the lines have to explain."""
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def unaccounted_s(self) -> float:
        """Time that no line covers, and time that two do."""
        covered = sum(line.end_ns - line.start_ns for line in self.lines)
        once = length((line.start_ns, line.end_ns) for line in self.lines)
        return (self.end_ns - self.start_ns - once + covered - once) / 1e9

    def totals(self) -> dict[str, float]:
        """Seconds by name, in the order of a request's life."""
        sums: dict[str, float] = {}
        for line in self.lines:
            sums[line.name] = sums.get(line.name, 0.0) + line.seconds
        return {name: sums[name] for name in NAMES if name in sums}

    def between(self, start_ns: int, end_ns: int) -> "Receipt":
        """The part of it between two instants."""
        cut = [
            line._replace(start_ns=max(line.start_ns, start_ns), end_ns=min(line.end_ns, end_ns))
            for line in self.lines
            if line.start_ns < end_ns and line.end_ns > start_ns
        ]
        return Receipt(self.request, start_ns, end_ns, tuple(cut))

    def __repr__(self) -> str:
        """As a table: name, milliseconds, share, how often."""
        counts = {name: sum(line.name == name for line in self.lines) for name in self.totals()}
        rows = [f"request {self.request}: {1e3 * self.total_s:.1f} ms"]
        for name, seconds in self.totals().items():
            share = seconds / self.total_s if self.total_s else 0.0
            kind = "work" if name in WORKS else "wait"
            rows.append(f"  {kind}  {name:<13} {1e3 * seconds:>9.1f} ms  {share:>4.0%}  ×{counts[name]}")
        return "\n".join([*rows, f"        unaccounted   {1e3 * self.unaccounted_s:>9.1f} ms"])


class Served(Protocol):
    """What a receipt asks of a request's result. Times in ns on the engine's clock."""

    request: int
    arrival_ns: int
    ended_ns: int
    token_times_ns: list[int]
    stages: tuple[tuple[int, Stage], ...]
    seat: int | None


def receipt(result: Served, index: Index) -> Receipt:
    """The receipt of a request that has ended, from its arrival to its end."""
    window = result.arrival_ns, max(result.arrival_ns, result.ended_ns)
    return Receipt(result.request, *window, tuple(_lay(window, _claims(result, index))))


def _lay(window: Interval, claims: Iterable[Line]) -> Iterator[Line]:
    """Disjoint lines: each instant goes to the first claim that covers it."""
    low, high = window
    cut = [c._replace(start_ns=max(low, c.start_ns), end_ns=min(high, c.end_ns)) for c in claims]
    cut = [c for c in cut if c.start_ns < c.end_ns]
    coming = sorted(range(len(cut)), key=lambda rank: cut[rank].start_ns, reverse=True)
    active: list[int] = []  # ranks of claims that have begun, the strongest on top
    last: Line | None = None
    for start, end in pairwise(sorted({t for c in cut for t in (c.start_ns, c.end_ns)})):
        while coming and cut[coming[-1]].start_ns <= start:
            heappush(active, coming.pop())
        while active and cut[active[0]].end_ns <= start:
            heappop(active)
        line = cut[active[0]]._replace(start_ns=start, end_ns=end) if active else None
        if last and line and last.end_ns == start and (last.name, last.what) == (line.name, line.what):
            last = last._replace(end_ns=end)
            continue
        if last:
            yield last
        last = line
    if last:
        yield last


# ---- who claims which stretch, the strongest claim first -------------------------------------------------------------


class Stay(NamedTuple):
    """How long a request was in a stage."""

    stage: Stage
    start_ns: int
    end_ns: int


def _claims(result: Served, index: Index) -> Iterator[Line]:
    own = index.of_request(result.request)
    first_token = result.token_times_ns[0] if result.token_times_ns else result.ended_ns
    times = [at for at, _ in result.stages]
    stays = [Stay(stage, at, end) for (at, stage), end in zip(result.stages, times[1:], strict=False)]
    yield from _works(own, first_token)
    yield Line("submission", result.arrival_ns, times[0] if times else result.ended_ns, "engine")
    for stay in stays:
        yield from _waits(stay, own, index, f"decode {result.seat or 0}")
    around = {span.place for span in own if span.kind in ("prefill", "decode")}
    near = [s for place in around for s in index.on_place(place, result.arrival_ns, result.ended_ns)]
    for span in own + near:
        if span.kind in ("prefill", "decode") or span.end_ns > first_token:
            yield Line("dispatch", span.ready_ns or span.start_ns, span.start_ns, span.place)
    yield from _notices(sorted(own + near, key=lambda span: span.end_ns), times)


def _works(own: list[Span], first_token: int) -> Iterator[Line]:
    prefilled = False
    for span in own:
        match span.kind:
            case "prefill":
                name, what = "recompute" if prefilled else "prefill", f"pass {span.index}"
                yield from (Line(name, start, end, what) for start, end in span.computing)
                stops = zip(span.hand_offs_ns, span.waits_ns, strict=False)
                yield from (Line("transfer", at, at + wait, what) for at, wait in stops)
                prefilled = prefilled or span.end_ns >= first_token
            case "decode":
                yield Line("decode", span.start_ns, span.end_ns, f"step {span.index}")
            case "copy":
                yield Line("transfer", max(span.start_ns, first_token), span.end_ns, span.place)
            case "spill" | "fetch":
                yield Line(span.kind, span.start_ns, span.end_ns, span.place)


def _waits(stay: Stay, own: list[Span], index: Index, worker: str) -> Iterator[Line]:
    _, start, end = stay
    match stay.stage:
        case Stage.QUEUED:
            shared = "prefill 0 queue"
            yield from _gated(shared if index.has(shared) else f"{worker} queue", stay, index, "queue")
        case Stage.PREFILLING | Stage.RUNNING:
            mine = {s.place for s in own if s.kind in ("prefill", "decode") and s.start_ns < end and s.end_ns > start}
            for span in (s for place in mine for s in index.on_place(place, start, end)):
                name = "queue" if span.kind == "prefill" and stay.stage is Stage.PREFILLING else "device-busy"
                yield Line(name, max(start, span.start_ns), min(end, span.end_ns), span.place)
        case Stage.HANDING_OFF | Stage.SPILLING | Stage.FETCHING:
            yield from _link_waits(stay, own, index)
            if stay.stage is Stage.HANDING_OFF:
                yield from _gated("wanting", stay, index, "")
            else:
                first = next((s for s in own if s.kind in ("spill", "fetch") and s.ready_ns >= start), None)
                if first is not None:
                    yield Line("dispatch", start, min(end, first.ready_ns), first.place)
        case Stage.LANDED:
            place = next((s.place for s in own if s.kind == "decode" and s.start_ns >= start), worker)
            yield from _gated(f"{place} landed", stay, index, "step-boundary")
        case Stage.SPILLED | Stage.PARKED:
            yield Line(stay.stage.value, start, end, "host")


def _gated(queue: str, stay: Stay, index: Index, free: str) -> Iterator[Line]:
    """The stay by what gated its queue; `free` names the stretches without a gate."""
    for start, end, gate in index.values(f"gate {queue}", stay.start_ns, stay.end_ns):
        name = "batch-slot" if gate == BATCH_SLOT else "no-block" if gate else free
        if name:
            yield Line(name, start, end, str(gate or queue))


def _link_waits(stay: Stay, own: list[Span], index: Index) -> Iterator[Line]:
    """Pieces that wait: for others on their link, or for a slot of the ring. All that wait at once are one claim."""
    _, start, end = stay
    copies = [s for s in own if s.kind in ("copy", "spill", "fetch") and s.end_ns > start and s.ready_ns < end]
    waits = [(span.place, max(start, span.ready_ns), min(end, span.start_ns)) for span in copies]
    ends = max((span.end_ns for span in copies), default=start)
    waits += [(place, ends, end) for place in index.lanes(stay.stage is Stage.HANDING_OFF)]  # copies that never began
    waiting = {place: union((ready, begun) for at, ready, begun in waits if at == place) for place, _, _ in waits}
    for place, ready, begun in ((place, *stretch) for place, found in waiting.items() for stretch in found):
        for other in index.on_place(place, ready, begun):
            yield Line("link-busy", max(ready, other.start_ns), min(begun, other.busy_end_ns), place)
    for ready, begun in (stretch for place, found in waiting.items() if place.startswith("down") for stretch in found):
        for since, until, held in index.values("ring", ready, begun):
            if held == index.sizes.get("ring"):
                yield Line("ring-full", since, until, "ring")


def _notices(spans: list[Span], times: list[int]) -> Iterator[Line]:
    """From the end of a work to the instant at which the controller next did something about it."""
    acts = sorted({*times, *(span.ready_ns for span in spans if span.ready_ns)})
    for span in spans:
        at = bisect_left(acts, span.end_ns)
        if at < len(acts):
            yield Line("notice", span.end_ns, acts[at], span.place)
