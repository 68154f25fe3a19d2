"""What happened when: spans of passes, steps and copies, marks of queues and gates, and moves of blocks, on one clock.

H, hidden fraction: 1 - exposed / all transfer time, of one request's hand-off. W, wall overlap: the share of the
union of copies during which a prefill pass computed. E, exposed: from token 1 to the last layer landed, and what its
passes stood still for copies before.
"""

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from disagg.trace.index import Index, places_of
from disagg.trace.intervals import intersection, length, union
from disagg.trace.spans import BlockMove, Mark, Span

if TYPE_CHECKING:
    from disagg.trace.archive import Recording
    from disagg.trace.law import Law

T = TypeVar("T")
Kept = list[T] | deque[T]  # all entries, or the last of them


class Overlap(NamedTuple):
    """One request's hand-off, or a run's: seconds, and fractions (None where nothing was handed off)."""

    hidden: float | None
    wall: float | None
    exposed_s: float
    transfer_s: float

    @property
    def share(self) -> float | None:
        """H where it is a share of the copying: None also where more was left than was copied, for then the hand-off
        waited for something else, which receipts name."""
        return None if self.hidden is None or self.hidden < 0 else self.hidden


@dataclass
class Timeline:
    """What was recorded while requests were served; workers append, views read."""

    spans: Kept[Span] = field(default_factory=list)
    start_ns: int = 0
    marks: Kept[Mark] = field(default_factory=list)
    moves: Kept[BlockMove] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)  # worker, lane or memory → the device or link it stands on
    sizes: dict[str, int] = field(default_factory=dict)  # memory or ring → its blocks or slots
    _index: tuple[tuple[object, ...], Index] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        places = f" on {', '.join(self.places)}" if self.spans else ""
        return f"Timeline of {len(self.spans)} spans{places}"

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes a recording: JSON lines, packed where the name ends in .gz. Whole or not at all; FileError."""
        from disagg.trace import archive

        archive.save(path, self.header(), self.records(), overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str], within: str | os.PathLike[str] | None = None) -> "Timeline":
        """From a recording of a timeline or of a run; `within` is a folder that the path must not leave. FileError."""
        from disagg.trace import archive

        return cls.of(archive.load(path, within))

    @classmethod
    def of(cls, found: "Recording") -> "Timeline":
        header = found.header
        return cls(found.spans, header["start_ns"], found.marks, found.moves, header["devices"], header["sizes"])

    def header(self) -> dict[str, Any]:
        """What the first line of a recording holds of a timeline."""
        return {"start_ns": self.start_ns, "devices": self.devices, "sizes": self.sizes}

    def records(self) -> dict[str, list[Any]]:
        """The records of a recording by the kind of their line, as they are now."""
        return {"span": list(self.spans), "mark": list(self.marks), "move": list(self.moves)}

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Writes trace events for https://ui.perfetto.dev, packed where the name ends in .gz."""
        from disagg.trace import perfetto

        perfetto.export(self.index(), path)

    def index(self) -> Index:
        """Spans and marks as they are now, by request, place and name; kept until more are recorded."""
        spans, marks = list(self.spans), list(self.marks)  # at once: others may be appending
        now = len(spans), len(marks), *spans[-1:], *marks[-1:]  # where only the last are kept, their number stays
        if self._index is None or self._index[0] != now:
            self._index = now, Index(spans, marks, self.devices, self.sizes, self.start_ns)
        return self._index[1]

    def reaches(self, at_ns: int) -> bool:
        """Is everything from that instant on still here? Where only the last entries are kept, earlier ones go."""
        spans, marks = self.spans, self.marks
        ends: list[tuple[Sequence[object], int]] = [(spans, spans[0].end_ns)] if spans else []
        ends += [(marks, marks[0].at_ns)] if marks else []
        return not any(len(kept) == getattr(kept, "maxlen", None) and first > at_ns for kept, first in ends)

    @property
    def places(self) -> list[str]:
        """Workers and lanes, in the order in which a request passes them."""
        return places_of(self.spans)

    @property
    def end_ns(self) -> int:
        return max((span.end_ns for span in self.spans), default=self.start_ns)

    def busy(self, place: str) -> int:
        return length((s.start_ns, s.end_ns) for s in self.spans if s.place == place)

    def hand_off(self, request: int) -> list[Span]:
        """The copies of a request's first hand-off."""
        return _first([s for s in self.spans if s.kind == "copy" and s.requests == (request,)])

    def prefill_end_ns(self, request: int) -> int | None:
        """When the request's token 1 existed."""
        return min((s.end_ns for s in self.spans if request in s.firsts), default=None)

    def law(self, request: int, ring_slots: int | None = None) -> "Law | None":
        """The law with this request's own c, x and tail; None where it does not hold: chunked, packed, blocking, or
        in one copy after prefill."""
        copies = self.hand_off(request)
        passes = [s for s in self.spans if s.kind == "prefill" and request in s.requests]
        layers = len(passes[0].hand_offs_ns) if passes else 0
        group = max((s.count for s in copies), default=layers)
        if len(passes) != 1 or len(passes[0].requests) != 1 or layers < 2 or not copies:
            return None
        if passes[0].waits_ns:  # the law's prefill never waits
            return None
        if group == layers and copies[0].start_ns >= passes[0].end_ns:
            return None
        marks = passes[0].hand_offs_ns
        lanes = sorted({s.place for s in copies})
        hops = tuple(sum(s.occupied_ns for s in copies if s.place == lane) / 1e9 / layers for lane in lanes)
        compute, tail = (marks[-1] - marks[0]) / 1e9 / (layers - 1), (passes[0].end_ns - marks[-1]) / 1e9
        flying = [[s.deadline_ns - s.busy_end_ns for s in copies if s.place == lane] for lane in lanes]
        latency = sum(max(0, min(times)) for times in flying) / 1e9
        from disagg.trace.law import Law

        return Law(layers, compute, hops, tail, group, ring_slots if len(hops) > 1 else None, latency)

    def overlap(self, request: int | None = None) -> Overlap:
        """H, W and E of one request's hand-off; or of the run: transfer-weighted H, and the sum of E."""
        hand_offs: dict[int, list[Span]] = {}
        ends: dict[int, int] = {}  # when token 1 existed
        for span in self.spans:
            if span.kind == "copy":
                hand_offs.setdefault(span.requests[0], []).append(span)
            for one in span.firsts:
                ends[one] = min(ends.get(one, span.end_ns), span.end_ns)
        if request is not None:
            hand_offs = {request: copies} if request in ends and (copies := self.hand_off(request)) else {}
        passes, moved = [s for s in self.spans if s.kind == "prefill"], hand_offs.keys() & ends.keys()
        total_ns, exposed_ns = 0, sum(sum(s.waits_ns) for s in passes if not moved.isdisjoint(s.requests))
        for one in moved:
            copies = _first(hand_offs[one])
            total_ns += sum(s.occupied_ns for s in copies)
            exposed_ns += max(0, max(s.end_ns for s in copies) - ends[one])
        moving = union((s.start_ns, s.end_ns) for copies in hand_offs.values() for s in copies)
        computing = [interval for s in passes for interval in s.computing]
        wall = length(intersection(moving, computing)) / length(moving) if moving else None
        return Overlap(1 - exposed_ns / total_ns if total_ns else None, wall, exposed_ns / 1e9, total_ns / 1e9)


def _first(copies: list[Span]) -> list[Span]:
    first = min((s.transfer for s in copies), default=0)
    return [s for s in copies if s.transfer == first]
