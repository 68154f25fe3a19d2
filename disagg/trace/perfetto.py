"""A timeline as trace events, the JSON that https://ui.perfetto.dev and chrome://tracing open.

A process is a device or a link, a thread a worker or a lane. A slice is a pass, a layer of it, a step, or the time for
which a copy kept its link busy; an arrow leads from a layer's slice over the copies of its K/V.
"""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

from disagg.trace.files import whole
from disagg.trace.index import Index, places_of
from disagg.trace.spans import Span

Event = dict[str, Any]  # of the trace, as JSON holds it
QUEUES = "queues and memory"  # the process of counters and gates


def export(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes the trace, whole or not at all; packed where the name ends in .gz. FileError where it can't."""
    with whole(path) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        for number, event in enumerate(Trace(index).events()):
            text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            file.write((",\n" * (number > 0) + text).encode("utf-8", "replace"))
        file.write(b"\n]}\n")


def microseconds(ns: int) -> float:
    """The µs that a reader who multiplies by 1000 and cuts off takes back to the same ns."""
    found = ns / 1000
    return found if int(found * 1000.0) == ns else math.nextafter(found, math.inf)


class Trace:
    """Numbers processes and threads, and turns what was recorded into events."""

    def __init__(self, index: Index) -> None:
        self.spans, self.marks, self.devices = index.spans, index.marks, index.devices
        starts = [span.start_ns for span in self.spans] + [mark.at_ns for mark in self.marks]
        self.origin_ns = min(starts, default=index.start_ns)
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[str, str], int] = {}
        self._tracks = self._lay_out()

    def events(self) -> Iterator[Event]:
        body = [*self._slices(), *self._arrows(), *self._gates(), *self._counters()]
        yield from self._names()
        yield from sorted(body, key=lambda event: event["ts"])

    def _lay_out(self) -> dict[int, tuple[int, int]]:
        """(pid, tid) of each span by its rank; one that overlaps another of its place gets a second thread."""
        found: dict[int, tuple[int, int]] = {}
        spans = sorted(enumerate(self.spans), key=lambda pair: (pair[1].start_ns, pair[0]))
        for place in places_of(self.spans):
            self._thread(self._process_of(place), place)
            ends: list[int] = []
            for rank, span in (pair for pair in spans if pair[1].place == place):
                track = next((i for i, end in enumerate(ends) if end <= span.start_ns), len(ends))
                ends[track : track + 1] = [_end_ns(span)]
                name = place if track == 0 else f"{place} ({track + 1})"
                found[rank] = self._thread(self._process_of(place), name)
        return found

    def _process_of(self, place: str) -> str:
        device, role = self.devices.get(place, place), place.split()[0]
        return f"{role} on {device}" if role in ("prefill", "decode") else device

    def _thread(self, process: str, thread: str) -> tuple[int, int]:
        """Their numbers. A thread is never numbered as its process: that one would count as the main thread."""
        pid = self._processes.setdefault(process, len(self._processes) + 1)
        return pid, self._threads.setdefault((process, thread), 1001 + len(self._threads))

    def _names(self) -> Iterator[Event]:
        for process, pid in self._processes.items():
            yield _about("process_name", pid, 0, name=process)
            yield _about("process_sort_index", pid, 0, sort_index=pid)
        for (process, thread), tid in self._threads.items():
            pid = self._processes[process]
            yield _about("thread_name", pid, tid, name=thread)
            yield _about("thread_sort_index", pid, tid, sort_index=tid)

    def _at(self, ns: int) -> float:
        return microseconds(ns - self.origin_ns)

    def _slice(self, name: str, kind: str, where: tuple[int, int], start_ns: int, end_ns: int, **args: object) -> Event:
        pid, tid = where
        times = {"ts": self._at(start_ns), "dur": microseconds(end_ns - start_ns)}
        return {"ph": "X", "name": name, "cat": kind, **times, "pid": pid, "tid": tid, "args": args}

    def _slices(self) -> Iterator[Event]:
        for rank, span in enumerate(self.spans):
            where, (name, args) = self._tracks[rank], _named(span)
            yield self._slice(name, span.kind, where, span.start_ns, _end_ns(span), **args)
            for layer, start, end in _layers(span):
                yield self._slice(f"layer {layer}", "layer", where, start, end)

    def _gates(self) -> Iterator[Event]:
        """A slice for as long as a queue was held up by something named."""
        ends = [span.end_ns for span in self.spans] + [mark.at_ns for mark in self.marks]
        last = max(ends, default=self.origin_ns)
        named = sorted((m for m in self.marks if isinstance(m.value, str)), key=lambda m: (m.name, m.at_ns))
        for name, group in groupby(named, key=lambda mark: mark.name):
            marks = list(group)
            where = self._thread(QUEUES, name)
            for mark, until in zip(marks, [*(m.at_ns for m in marks[1:]), last], strict=True):
                if mark.value and until > mark.at_ns:
                    yield self._slice(str(mark.value), "gate", where, mark.at_ns, until)

    def _counters(self) -> Iterator[Event]:
        for mark in self.marks:
            if isinstance(mark.value, int):
                pid, tid = self._thread(QUEUES, "counters")
                at = {"ts": self._at(mark.at_ns), "pid": pid, "tid": tid}
                yield {"ph": "C", "name": mark.name, **at, "args": {"value": mark.value}}

    def _arrows(self) -> Iterator[Event]:
        """From a layer's slice to each copy of its K/V; both ends in the last ns of their slice."""
        number = 0
        for rank, layer, hops in self._hand_offs():
            _, start, end = list(_layers(self.spans[rank]))[layer]
            ends = [(rank, start, end)]
            ends += [(hop, self.spans[hop].start_ns, _end_ns(self.spans[hop])) for hop in hops]
            if any(start >= end for _, start, end in ends):
                continue  # nothing can point at a slice without length
            number += 1
            for index, (rank, _, end) in enumerate(ends):
                pid, tid = self._tracks[rank]
                phase = "s" if index == 0 else "f" if index == len(hops) else "t"
                at = {"ts": self._at(end - 1), "pid": pid, "tid": tid}
                yield {"ph": phase, "name": "hand-off", "cat": "hand-off", "id": number, **at, "bp": "e"}

    def _hand_offs(self) -> Iterator[tuple[int, int, list[int]]]:
        """(rank of a pass, its layer, ranks of the copies of that K/V, hop by hop)."""
        passes: dict[tuple[int, int], list[tuple[int, int]]] = {}  # request, layer → (hand-off, rank)
        copies: dict[tuple[int, int], dict[int, list[int]]] = {}  # request, last layer → transfer → ranks
        for rank, span in sorted(enumerate(self.spans), key=lambda pair: (pair[1].start_ns, pair[0])):
            if span.kind == "prefill":
                for layer, at in enumerate(span.hand_offs_ns):
                    for request in span.requests:
                        passes.setdefault((request, layer), []).append((at, rank))
            elif span.kind == "copy" and span.requests:
                key = span.requests[0], span.index + span.count - 1
                copies.setdefault(key, {}).setdefault(span.transfer, []).append(rank)
        for key, transfers in copies.items():
            chains = [hops for ranks in transfers.values() for hops in self._hops(ranks)]
            for rank, hops in self._sources(passes.get(key, []), chains):
                yield rank, key[1], hops

    def _sources(self, hand_offs: list[tuple[int, int]], chains: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """The n-th pass for the n-th copy; for other counts the last pass before the copy was ready."""
        each = len(hand_offs) == len(chains)
        for index, hops in enumerate(chains):
            ready = self.spans[hops[0]].ready_ns
            before = index + 1 if each else bisect_right(hand_offs, (ready, math.inf))
            if before:
                yield hand_offs[before - 1][1], hops

    def _hops(self, ranks: list[int]) -> Iterator[list[int]]:
        """Copies of the same layers, hop by hop: copies keep their order on every link."""
        second = [rank for rank in ranks if self.spans[rank].place.startswith("up")]
        for index, rank in enumerate(rank for rank in ranks if rank not in second):
            yield [rank, *second[index : index + 1]]


def _about(what: str, pid: int, tid: int, **args: object) -> Event:
    return {"ph": "M", "name": what, "ts": 0, "pid": pid, "tid": tid, "args": args}


def _end_ns(span: Span) -> int:
    """A copy ends here when its link is free again: it may land later, while the next one is on the link."""
    return min(span.busy_end_ns, span.end_ns)


def _layers(span: Span) -> Iterator[tuple[int, int, int]]:
    """(layer, start, end) of a pass: each lasts from the hand-off before it to its own."""
    for layer, (start, end) in enumerate(pairwise((span.start_ns, *span.hand_offs_ns))):
        yield layer, start, end


def _named(span: Span) -> tuple[str, dict[str, object]]:
    """The slice's name, and what a click on it shows."""
    found: dict[str, object] = {"requests": list(span.requests)}
    match span.kind:
        case "prefill":
            name = f"pass {span.index}"
            found |= {"tokens": span.count, "blocks": span.blocks, "first tokens of": list(span.firsts)}
        case "decode":
            name = f"step {span.index}"
            found |= {"rows": span.count, "rows by bin": list(span.groups)}
        case _:
            last = span.index + span.count - 1
            layers = f"layer {last}" if span.count == 1 else f"layers {span.index}–{last}"
            name = layers if span.kind == "copy" else f"{span.kind} {layers}"
            found |= {"layers": span.count, "bytes": span.nbytes, "blocks": span.blocks, "transfer": span.transfer}
            found |= {"landed after (µs)": microseconds(span.end_ns - span.start_ns)}
    if span.ready_ns:
        found["waited (µs)"] = microseconds(max(0, span.start_ns - span.ready_ns))
    return name, found
