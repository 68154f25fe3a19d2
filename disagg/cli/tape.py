"""A timeline as it is now, for views that draw in letters. Workers append to the timeline while it is read, so whole
lists are copied, which the interpreter does in one go.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from disagg.plan.config import Config
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.show.plots.palette import COLOUR_OF, LEGEND
from disagg.show.plots.summaries import row_names
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline


class Tape:
    """Spans by colour and marks by name, in ms since the start; `rows` are places with what a student reads."""

    def __init__(self, timeline: Timeline, rows: dict[str, str]) -> None:
        self.timeline, self.rows, self.origin_ns = timeline, rows, timeline.start_ns
        self._spans = [s for s in timeline.spans.copy() if s.place in rows and s.end_ns > self.origin_ns]
        self._marks: dict[str, tuple[list[float], list]] = {}
        for mark in timeline.marks.copy():
            times, values = self._marks.setdefault(mark.name, ([], []))
            times.append(self.ms(mark.at_ns))
            values.append(mark.value)

    @property
    def end_ms(self) -> float:
        return max((self.ms(span.end_ns) for span in self._spans), default=0.0)

    def ms(self, at_ns: int) -> float:
        return (at_ns - self.origin_ns) / 1e6

    def boxes(self, kind: str, low: float, high: float) -> Iterator[tuple[float, float, int]]:
        """Start, end and row of the spans of a colour that share time with [low, high)."""
        row = {place: index for index, place in enumerate(self.rows)}
        for span in self._spans:
            start, end = self.ms(span.start_ns), self.ms(span.end_ns)
            if COLOUR_OF[span.kind] == kind and end > low and start < high:
                yield start, end, row[span.place]

    def value(self, name: str, at_ms: float) -> int | str:
        """What was counted or named at an instant; 0 where nothing was marked before."""
        times, values = self._marks.get(name, ((), ()))
        index = bisect_right(times, at_ms)
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
