"""The entries of a timeline: spans of work, marks of counters, and moves of blocks."""

from typing import NamedTuple

from disagg.plan.link import LaneRole
from disagg.plan.transfer_scheduler import Copy


class Span(NamedTuple):
    """One pass, step or copy, with times on the engine's clock."""

    kind: str  # the work: prefill (a pass), decode (a step), copy (of a hand-off), spill, fetch
    place: str  # the worker's or lane's name, such as "prefill 0" or "up 0"
    start_ns: int
    end_ns: int
    requests: tuple[int, ...]
    index: int = 0  # type: ignore[assignment]  # hides tuple.index: pass, step, or first layer
    count: int = 0  # type: ignore[assignment]  # hides tuple.count: tokens of a pass, rows of a step, layers of a copy
    nbytes: int = 0
    firsts: tuple[int, ...] = ()  # requests that got a token from this pass
    hand_offs_ns: tuple[int, ...] = ()  # when the pass handed off each layer
    deadline_ns: int = 0  # when the copy lands by its link's clock
    transfer: int = 0
    occupied_ns: int = 0  # how long the copy occupied its link
    ready_ns: int = 0  # when the command was given, or the copy joined its lane's queue
    blocks: int = 0  # blocks that it reads or writes
    groups: tuple[int, ...] = ()  # rows of a step, bin by bin
    waits_ns: tuple[int, ...] = ()  # how long a pass with blocking hand-offs stood still after each of them

    @property
    def computing(self) -> list[tuple[int, int]]:
        """The intervals in ns in which the pass or step computed: all of it, but for the waits after hand-offs."""
        starts = [at + wait for at, wait in zip(self.hand_offs_ns, self.waits_ns, strict=False)]
        ends = [*self.hand_offs_ns[: len(starts)], self.end_ns]
        return list(zip([self.start_ns, *starts], ends, strict=True))

    @property
    def busy_end_ns(self) -> int:
        """When its place was free again: a link is free before its copy has landed."""
        return self.start_ns + self.occupied_ns if self.occupied_ns else self.end_ns


class Mark(NamedTuple):
    """A queue's length, a pool's free blocks or a gate has this value from `at_ns` on."""

    at_ns: int
    name: str
    value: int | str


class BlockMove(NamedTuple):
    """Blocks of a memory change state; free ones have no owner."""

    at_ns: int
    pool: str
    state: str
    owner: int | None
    blocks: tuple[int, ...]


def span_of(copy: Copy, landed_ns: int) -> Span:
    """A copy that has landed."""
    spills, layers = copy.lane.role is LaneRole.SPILL, copy.layer_end - copy.layer
    kind = "spill" if spills else "fetch" if copy.source.role == "host" else "copy"
    work = kind, str(copy.lane), copy.start_ns, landed_ns, (copy.request,), copy.layer, layers, copy.nbytes
    return Span(
        *work,
        deadline_ns=copy.landing_ns,
        transfer=copy.transfer,
        occupied_ns=copy.busy_until_ns - copy.start_ns,
        ready_ns=copy.ready_ns,
        blocks=len(copy.blocks),
    )
