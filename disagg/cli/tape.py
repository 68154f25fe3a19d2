"""A timeline as arrays that grow with it: what a live view draws from. Workers append to the timeline while it is read,
so whole lists are copied, which the interpreter does in one go.
"""

from array import array
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import TypeVar

import numpy as np

from disagg.plan.config import Config
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.show.plots.palette import COLOUR_OF, COLOURS, LEGEND
from disagg.show.plots.summaries import row_names
from disagg.trace.spans import Span
from disagg.trace.timeline import Kept, Timeline

T = TypeVar("T")


class Tape:
    """Spans by colour and marks by name, in ms since the origin. `follow` takes what is new."""

    def __init__(self, timeline: Timeline, rows: dict[str, str], origin_ns: int | None = None) -> None:
        self.timeline, self.rows = timeline, rows  # place → what a student reads
        self.origin_ns = timeline.start_ns if origin_ns is None else origin_ns
        self.end_ms = 0.0
        self._row = {place: row for row, place in enumerate(rows)}
        self._boxes = {kind: array("d") for kind in COLOURS}
        self._marks: dict[str, tuple[array, list]] = {}
        self._last: dict[str, object] = {}
        self.follow()

    def follow(self) -> None:
        for span in self._newer("spans", self.timeline.spans):
            if span.place in self._row and span.end_ns > self.origin_ns:
                start, end = self.ms(span.start_ns), self.ms(span.end_ns)
                self._boxes[COLOUR_OF[span.kind]].extend((start, end, self._row[span.place]))
                self.end_ms = max(self.end_ms, end)
        for mark in self._newer("marks", self.timeline.marks):
            times, values = self._marks.setdefault(mark.name, (array("d"), []))
            times.append(self.ms(mark.at_ns))
            values.append(mark.value)

    def _newer(self, name: str, entries: Kept[T]) -> list[T]:
        last = self._last.get(name)
        fresh = list(takewhile(lambda entry: entry is not last, reversed(entries.copy())))[::-1]
        if fresh:
            self._last[name] = fresh[-1]
        return fresh

    def ms(self, at_ns: int) -> float:
        return (at_ns - self.origin_ns) / 1e6

    def boxes(self, kind: str, low: float, high: float) -> np.ndarray:
        """[n, 3]: start, end and row of the spans of a colour that share time with [low, high)."""
        boxes = np.array(self._boxes[kind]).reshape(-1, 3)
        return boxes[(boxes[:, 1] > low) & (boxes[:, 0] < high)]

    def value(self, name: str, at_ms: float) -> int | str:
        """What was counted or named at an instant; 0 where nothing was marked before."""
        times, values = self._marks.get(name, (array("d"), []))
        index = np.searchsorted(np.array(times), at_ms, "right")
        return values[index - 1] if index else 0

    def most(self, name: str) -> int:
        """What a gauge's full height stands for: the pool's size, or the largest value seen, as a power of two."""
        if size := self.timeline.sizes.get(name.removeprefix("free ")):
            return size
        return 1 << max(0, max(self._marks.get(name, ((), [1]))[1], default=1) - 1).bit_length()


#: A kind of work → whose it is: the first words of places.
ROLES = {"prefill": {"prefill"}, "link": {"direct", "down", "up"}, "decode": {"decode"}, "paging": {"spill", "park"}}


def rows_of(config: Config) -> dict[str, str]:
    """The rows of a config before anything ran: its workers and lanes, with the names that pictures use."""
    workers = [f"prefill {i}" for i in range(config.prefill_workers)]
    workers += [f"decode {i}" for i in range(config.decode_workers)]
    kind = "prefill" if config.colocated else "decode"
    lanes = TransferScheduler(config, layers=1, token_bytes=1).lanes
    return row_names(Timeline([Span(kind, str(place), 0, 0, ()) for place in (*workers, *lanes)]))


def gauges_of(timeline: Timeline) -> list[str]:
    """What was counted: queues, batches, the ring, free blocks, in this order; gates are named, not counted."""
    return in_order({mark.name for mark in timeline.marks.copy() if not mark.name.startswith("gate ")})


def said(name: str) -> str:
    """A mark's name as a reader knows it."""
    if name.endswith(" landed"):
        return f"landed, waits{name.removeprefix('decode').removesuffix(' landed')}"
    return "needs blocks" if name == "wanting" else name


def kinds_of(rows: Mapping[str, str]) -> dict[str, str]:
    """The legend of what these rows can hold."""
    roles = {place.split()[0] for place in rows}
    roles |= {"prefill" for name in rows.values() if name.startswith("device")}  # a worker that does both
    return {kind: words for kind, words in LEGEND.items() if roles & ROLES[kind]}


def in_order(names: Iterable[str]) -> list[str]:
    words = ("queue", "wanting", "landed", "batch", "ring", "free")
    return sorted(names, key=lambda name: ([*(word in name for word in words), True].index(True), name))
