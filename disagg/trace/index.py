"""What was recorded, for those who ask often: by request, by place and by mark."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from disagg.trace.spans import Mark, Span

ORDER = ("prefill", "down", "park", "direct", "up", "decode", "spill")  # of workers and lanes, as a request passes them


def places_of(spans: Iterable[Span]) -> list[str]:
    """Workers and lanes that did something, in the order in which a request passes them."""
    return sorted({span.place for span in spans}, key=lambda name: (ORDER.index(name.split()[0]), name))


class Index:
    """Spans and marks of an instant. `devices`: worker, lane or memory → what it stands on; `sizes`: memory or ring →
    its blocks or slots."""

    def __init__(
        self, spans: list[Span], marks: list[Mark], devices: dict[str, str], sizes: dict[str, int], start_ns: int
    ) -> None:
        self.spans, self.marks, self.devices, self.sizes, self.start_ns = spans, marks, devices, sizes, start_ns
        self._requests: dict[int, list[Span]] = {}
        self._places: dict[str, list[Span]] = {}
        self._marks: dict[str, list[Mark]] = {}
        for span in sorted(spans, key=lambda span: span.start_ns):
            self._places.setdefault(span.place, []).append(span)
            for request in dict.fromkeys(span.requests):
                self._requests.setdefault(request, []).append(span)
        for mark in sorted(marks, key=lambda mark: mark.at_ns):
            self._marks.setdefault(mark.name, []).append(mark)

    def of_request(self, request: int) -> list[Span]:
        return self._requests.get(request, [])

    def on_place(self, place: str, start_ns: int, end_ns: int) -> list[Span]:
        """Spans of a worker or lane that share time with [start, end), by start."""
        spans = self._places.get(place, [])
        if start_ns >= end_ns:
            return []
        first = bisect_right(spans, start_ns, key=lambda span: span.start_ns)
        while first and spans[first - 1].end_ns > start_ns:
            first -= 1  # a place does one thing after the other; only a link's latency lets two spans overlap
        return spans[first : bisect_left(spans, end_ns, key=lambda span: span.start_ns)]

    def lanes(self, hand_off: bool) -> list[str]:
        """The links of hand-offs, or those of paging."""
        roles = ("direct", "down", "up", "park") if hand_off else ("spill", "up")
        return [place for place in self._places if place.split()[0] in roles]

    def has(self, name: str) -> bool:
        return name in self._marks

    def values(self, name: str, start_ns: int, end_ns: int) -> Iterator[tuple[int, int, int | str]]:
        """(from, until, value) of a mark's values within [start, end)."""
        marks = self._marks.get(name, [])
        first = max(0, bisect_right(marks, start_ns, key=lambda mark: mark.at_ns) - 1)
        for index in range(first, len(marks)):
            until = marks[index + 1].at_ns if index + 1 < len(marks) else end_ns
            low, high = max(start_ns, marks[index].at_ns), min(end_ns, until)
            if low < high:
                yield low, high, marks[index].value
            if until >= end_ns:
                return
