"""Why a request waits: its gate, the requests that hold it, and for how long.

The engine's thread answers, so the work is bounded by LISTED and SEARCHED, and each queue and pool is read once.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from disagg.plan.blocks import BlockPool
from disagg.plan.gates import LISTED, NAMED, gate_in_words, gate_of, named, running
from disagg.plan.queues import BATCH_SLOT
from disagg.plan.request import Record, Stage
from disagg.plan.state import ControllerState

WORKING = {Stage.PREFILLING: "prefill", Stage.RUNNING: "decode"}
SEARCHED = 64  # requests that are searched for a cycle; the first LISTED get a line


def why(state: ControllerState, request: int, now_ns: int) -> str:
    """One request in words, then those it waits for, and theirs, and a cycle among them."""
    if request not in state.records:
        return f"request {request} is not open: it has ended, or never came"
    look, pending = _Look(state), [request]
    waits: dict[int, Wait] = {}
    while pending and len(waits) < SEARCHED:
        here = pending.pop(0)
        if here in state.records and here not in waits:
            waits[here] = look.wait(state.records[here], ahead=len(waits) < LISTED)
            pending += list(waits[here].holders)[:SEARCHED]
    lines = [look.in_words(wait, now_ns) for wait in list(waits.values())[:LISTED]]
    if len(waits) > LISTED:
        lines.append(f"and {len(waits) - LISTED} more that hold what these wait for")
    return "\n".join([*lines, *filter(None, [cycle_in_words(cycle_of(waits))])])


@dataclass(frozen=True)
class Wait:
    """Why one request waits."""

    request: int
    stage: str
    gate: str
    since_ns: int
    holds: Mapping[str, int] = field(default_factory=dict)  # pool → blocks
    holders: Mapping[int, int] = field(default_factory=dict)  # request → blocks of the gate's pool, or 1 batch slot
    free: int | None = None  # free blocks of the gate's pool
    ahead: tuple[int, ...] = ()  # the first few requests before it in its queue
    count_ahead: int = 0  # all requests before it

    def in_words(self, now_ns: int) -> str:
        age, what = (now_ns - self.since_ns) / 1e6, gate_in_words(self.gate, self.ahead, self.count_ahead)
        text = f"request {self.request} ({self.stage}) waits for {age:.1f} ms for {what}"
        if self.holds:
            text += ", holds " + ", ".join(f"{count} of {pool}" for pool, count in self.holds.items())
        if self.holders:
            text += f"; held by {named([f'request {r} ({count})' for r, count in self.holders.items()])}"
        return text if self.free is None else f"{text}; {self.free} free"


def cycle_of(waits: Mapping[int, Wait]) -> list[int]:
    """Requests each of which waits for what the next one holds, and the last for what the first holds; or []."""
    stuck = dict(waits)
    while gone := [r for r, wait in stuck.items() if not any(h != r and h in stuck for h in wait.holders)]:
        for request in gone:
            del stuck[request]
    if not stuck:
        return []
    path = [next(iter(stuck))]
    while True:
        here = path[-1]
        following = next(h for h in stuck[here].holders if h != here and h in stuck)
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def cycle_in_words(cycle: list[int]) -> str:
    return "cycle: " + " → ".join(f"request {request}" for request in [*cycle, cycle[0]]) if cycle else ""


class _Look:
    """A view of the state between two events, which reads each pool once."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._holders: dict[str, Counter[int]] = {}  # pool → request → blocks

    def wait(self, record: Record, ahead: bool = True) -> Wait:
        """`ahead`: with the requests before it in its queue."""
        gate, queue = gate_of(self._state, record, self._running)
        pool = next((pool for pool in self._state.pools() if pool.gate == gate), None)
        holders = dict(self._held(pool)) if pool else {}
        if gate == BATCH_SLOT:
            workers = self._state.decodes
            holders = {row: 1 for w in workers for row in w.rows if record.decode_worker in (None, w.name.index)}
        holders.pop(record.id, None)
        held: Counter[str] = Counter()
        for table in record.tables:
            held[table.pool.name] += len(table.blocks)
        first, count = queue.ahead_of(record, NAMED) if queue is not None and ahead else ((), 0)
        since, free = record.stages[-1][0], pool.available if pool else None
        gate = gate or ("" if count else record.gate)
        return Wait(record.id, record.stage.value, gate, since, held, holders, free, first, count)

    def in_words(self, wait: Wait, now_ns: int) -> str:
        record = self._state.records[wait.request]
        if record.id in self._running:
            age, work = (now_ns - wait.since_ns) / 1e6, WORKING.get(record.stage, "work")
            who = f"request {record.id} ({wait.stage}) waits for nobody"
            return f"{who}: its {work} is under way, {age:.1f} ms since it began"
        transfer, text = self._state.open_transfer(record), wait.in_words(now_ns)
        if transfer is None or transfer.target is None:
            return text
        landed = sum(bits.bit_count() for bits in transfer.landed.bits)
        return f"{text}; {landed} of {transfer.blocks * self._state.layers} (layer, block) pairs have landed"

    @cached_property
    def _running(self) -> set[int]:
        return running(self._state)

    def _held(self, pool: BlockPool) -> Counter[int]:
        if pool.name not in self._holders:
            held = self._holders[pool.name] = Counter()
            for (owner, _), blocks in pool.holdings().items():
                held[owner] += len(blocks)
        return self._holders[pool.name]
