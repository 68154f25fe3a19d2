"""A timeline as columns of whole numbers, which canvas.js reads: a column is its length, then the differences between
neighbours, each a variable-length integer (7 bits a byte, the lowest first; the sign in bit 0).
"""

from collections.abc import Iterable, Sequence

from disagg.show.plots.palette import COLOUR_OF, COLOURS, HATCHES, LEGEND, REQUESTS
from disagg.show.plots.summaries import row_names, runs_of
from disagg.trace.flow import GONE, HOST, QUEUE, Flow
from disagg.trace.results import Run
from disagg.trace.spans import BlockMove, Span
from disagg.trace.timeline import Timeline

KINDS = tuple(COLOUR_OF)
STATES = ("free", "in_flight", "used", "quarantined")


def pack(columns: Iterable[Sequence[int]]) -> bytes:
    out = bytearray()
    for column in columns:
        last = 0
        _put(out, len(column))
        for value in column:
            step, last = value - last, value
            _put(out, step << 1 if step >= 0 else ~(step << 1))
    return bytes(out)


def _put(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def look() -> list[dict[str, str]]:
    return [
        {"kind": kind, "name": name, "colour": COLOURS[name], "hatch": HATCHES[name], "words": LEGEND[name]}
        for kind, name in COLOUR_OF.items()
    ]


class SpanColumns:
    """Spans of one timeline as columns, with times in ns since the start. `numbers`: the shown number of a request, if
    it is not the id."""

    def __init__(self, start_ns: int = 0, numbers: dict[int, int] | None = None) -> None:
        self.spans: list[Span] = []
        self._start_ns, self._numbers = start_ns, numbers or {}
        self._kinds: dict[tuple[str, str], Span] = {}  # one span of each place and kind, to name the rows
        self.rows: dict[str, str] = {}  # place → its shown name, from the top

    def add(self, spans: Iterable[Span]) -> int:
        """Returns the index of the first one added."""
        first = len(self.spans)
        self.spans.extend(spans)
        for span in self.spans[first:]:
            self._kinds.setdefault((span.kind, span.place), span)
        self.rows = row_names(Timeline(list(self._kinds.values())))
        return first

    def chunk(self, first: int = 0) -> tuple[dict, bytes]:
        """(header, columns) of all spans from `first` on, for canvas.js."""
        return {"first": first, "rows": list(self.rows.items())}, pack(self._columns(self.spans[first:]))

    def _columns(self, spans: list[Span]) -> Iterable[list[int]]:
        """Each group of requests once, then a column for each property of a span."""
        place = {name: index for index, name in enumerate(self.rows)}
        groups: dict[tuple[int, ...], int] = {}
        group = [groups.setdefault(span.requests, len(groups)) for span in spans]
        yield [len(requests) for requests in groups]
        yield [self._numbers.get(request, request) for requests in groups for request in requests]
        yield group
        yield [KINDS.index(span.kind) for span in spans]
        yield [place[span.place] for span in spans]
        yield [span.start_ns - self._start_ns for span in spans]
        yield [span.end_ns - span.start_ns for span in spans]
        yield [span.index for span in spans]
        yield [span.count for span in spans]
        yield [span.nbytes for span in spans]
        yield [span.start_ns - (span.ready_ns or span.start_ns) for span in spans]
        yield [len(span.hand_offs_ns) for span in spans]
        yield [at_ns - self._start_ns for span in spans for at_ns in span.hand_offs_ns]


def move_columns(moves: Sequence[BlockMove], pools: list[str], start_ns: int, numbers: dict[int, int]) -> bytes:
    """Moves of blocks as columns; a free block's owner is -1. Adjacent blocks are one run."""
    runs = [runs_of(move.blocks) for move in moves]
    return pack([
        [move.at_ns - start_ns for move in moves],
        [pools.index(move.pool) for move in moves],
        [STATES.index(move.state) for move in moves],
        [-1 if move.owner is None else numbers.get(move.owner, move.owner) for move in moves],
        [len(found) for found in runs],
        [first for found in runs for first, _ in found],
        [count for found in runs for _, count in found],
    ])  # fmt: skip


def flow_columns(run: Run) -> tuple[dict, list[bytes]]:
    """What flow.js draws beside the spans: (names and sizes, [columns of requests and ring, columns of blocks])."""
    flow, start_ns, sizes = Flow(run), run.timeline.start_ns, run.timeline.sizes
    places = [QUEUE, *flow.workers, HOST, GONE]
    stays = [visit for visits in flow.visits for visit in visits]
    pools = sorted(({*sizes} | {move.pool for move in run.timeline.moves}) - {"ring"}, key=_way)
    packed = pack([
        [len(visits) for visits in flow.visits],
        [visit.at_ns - start_ns for visit in stays],
        [places.index(visit.place) for visit in stays],
        [len(result.token_times_ns) for result in run.results],
        [at_ns - start_ns for result in run.results for at_ns in result.token_times_ns],
        [at_ns - start_ns for at_ns, _ in flow.ring],
        [held for _, held in flow.ring],
    ])  # fmt: skip
    header = {
        "places": places,
        "workers": flow.workers,
        "lanes": list(flow.lanes),
        "layers": flow.layers,
        "ring": sizes.get("ring", 0),
        "pools": [[pool, sizes.get(pool, 0)] for pool in pools],
        "requests": list(REQUESTS),
    }
    moves = sorted(run.timeline.moves, key=lambda move: move.at_ns)
    return header, [packed, move_columns(moves, pools, start_ns, flow.numbers)]


def _way(pool: str) -> tuple[int, str]:
    """Memories in the order in which K/V pass them."""
    role = pool.split(" ")[0]
    return {"prefill": 0, "host": 1, "decode": 2}.get(role, 3), pool
