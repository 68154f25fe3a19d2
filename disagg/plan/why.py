"""Why does a request wait? The gate that holds it, which requests hold that gate, and for how long.

print(why(engine.controller.state, 3, now_ns))

The engine's thread answers, so the work is bounded: a few requests get a line, a few dozen are searched for a
cycle, and each queue and pool is gone through once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from disagg.plan.blocks import BlockPool
from disagg.plan.queues import BATCH_SLOT, Queue
from disagg.plan.request import Record, Stage
from disagg.plan.state import ControllerState

WORKING = {Stage.PREFILLING: "prefill", Stage.RUNNING: "decode"}
NAMED = 4  # requests that a sentence names
LISTED, SEARCHED = 8, 64  # requests of a chain that get a line, and that are searched for a cycle


def why(state: ControllerState, request: int, now_ns: int) -> str:
    """One request in words, then those it waits for in turn, and the cycle where they wait for one another."""
    if request not in state.records:
        return f"request {request} is not open: it has ended, or never came"
    look, following = _Look(state), [request]
    waits: dict[int, Wait] = {}
    while following and len(waits) < SEARCHED:
        here = following.pop(0)
        if here in state.records and here not in waits:
            waits[here] = look.wait(state.records[here], ahead=len(waits) < LISTED)
            following += list(waits[here].holders)[:SEARCHED]
    lines = [look.in_words(wait, now_ns) for wait in list(waits.values())[:LISTED]]
    if len(waits) > LISTED:
        lines.append(f"and {len(waits) - LISTED} more that hold what these wait for")
    return "\n".join([*lines, *filter(None, [cycle_in_words(cycle_of(waits))])])


def open_in_words(state: ControllerState) -> str:
    """The open requests in a few words, the first ones: their stage, and what they wait for."""
    look, first = _Look(state), list(state.records.values())[:LISTED]
    words = [f"request {w.request} ({w.stage}) for {w.what}" for w in map(look.wait, first)]
    more = len(state.records) - len(first)
    return "; ".join([*words, *([f"and {more:,} more"] if more else [])])


@dataclass(frozen=True)
class Wait:
    """A request, its gate and since when; what it holds itself, and which requests hold what it waits for."""

    request: int
    stage: str
    gate: str
    since_ns: int
    holds: Mapping[str, int] = field(default_factory=dict)  # pool → blocks
    holders: Mapping[int, int] = field(default_factory=dict)  # request → blocks of what the gate is about
    free: int | None = None  # blocks of it that are free; None where the gate is no pool
    ahead: tuple[int, ...] = ()  # the first few requests before it in its queue,
    count_ahead: int = 0  # and how many there are

    @property
    def what(self) -> str:
        """The gate, and the requests ahead: behind them a request waits for what holds the first."""
        behind = f" behind {_named(list(map(_request, self.ahead)), self.count_ahead)}" if self.ahead else ""
        return (self.gate or "its turn") + behind

    def in_words(self, now_ns: int) -> str:
        """The gate, its holders and the age, in one sentence without a stop."""
        age = f"for {(now_ns - self.since_ns) / 1e6:.1f} ms"
        text = f"request {self.request} ({self.stage}) waits {age} for {self.what}"
        if self.holds:
            text += ", holds " + ", ".join(f"{count} of {pool}" for pool, count in self.holds.items())
        if self.holders:
            text += f"; held by {_named([f'{_request(r)} ({count})' for r, count in self.holders.items()])}"
        return text if self.free is None else f"{text}; {self.free} free"


def _request(number: int) -> str:
    return f"request {number}"


def _named(parts: list[str], count: int | None = None) -> str:
    """The first few, and how many more of `count`, or of the parts."""
    more = (len(parts) if count is None else count) - NAMED
    return ", ".join(parts[:NAMED]) + (f" and {more} more" if more > 0 else "")


def cycle_of(waits: Mapping[int, Wait]) -> list[int]:
    """Requests each of which waits for blocks that the next one holds, the last for the first's; [] if none do."""
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
    """The cycle as arrows; nothing where there is none."""
    return "cycle: " + " → ".join(map(_request, [*cycle, cycle[0]])) if cycle else ""


class _Look:
    """One look at a state between two events; what several requests wait for is gone through once."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._holders: dict[str, dict[int, int]] = {}  # pool → request → blocks

    def wait(self, record: Record, ahead: bool = True) -> Wait:
        """What it waits for, and which requests hold that; `ahead`: also those before it in its queue."""
        gate, queue = self._gate(record)
        pool = next((pool for pool in self._state.pools() if pool.gate == gate), None)
        holders = dict(self._held(pool)) if pool else {}
        if gate == BATCH_SLOT:
            workers = self._state.decodes
            holders = {row: 1 for w in workers for row in w.rows if record.decode_worker in (None, w.name.index)}
        holders.pop(record.id, None)
        held: dict[str, int] = {}
        for table in record.tables:
            held[table.pool.name] = held.get(table.pool.name, 0) + len(table.blocks)
        first, count = queue.ahead_of(record, NAMED) if queue is not None and ahead else ((), 0)
        since, free = record.stages[-1][0], pool.available if pool else None
        gate = gate or ("" if count else record.gate)
        return Wait(record.id, record.stage.value, gate, since, held, holders, free, first, count)

    def in_words(self, wait: Wait, now_ns: int) -> str:
        record = self._state.records[wait.request]
        if record.id in self._running:
            age = f"{(now_ns - wait.since_ns) / 1e6:.1f} ms"
            work = WORKING.get(record.stage, "work")
            return f"request {record.id} ({wait.stage}) waits for nobody: its {work} is under way, {age} since it began"
        transfer = self._state.open_transfer(record)
        text = wait.in_words(now_ns)
        if transfer is not None and transfer.target is not None:
            landed = sum(bits.bit_count() for bits in transfer.landed.bits)
            text += f"; {landed} of {transfer.blocks * self._state.layers} (layer, block) pairs have landed"
        return text

    def _gate(self, record: Record) -> tuple[str, Queue | None]:
        """The gate's name, and the queue it stands in: behind the head a request waits for what the head waits for."""
        if record.id in self._running:
            return "", None
        transfer = self._state.open_transfer(record)
        if transfer is not None and transfer.target is not None:
            return f"{transfer.route} transfer", None
        queue = next((queue for queue in self._state.queues() if record in queue), None)
        return (record.gate, None) if queue is None else (queue.gate, queue)

    @cached_property
    def _running(self) -> set[int]:
        """Requests of the passes and steps under way."""
        passes = [worker.passing for worker in self._state.prefills if worker.passing]
        steps = [step for worker in self._state.decodes for step in worker.steps]
        return {item.id for done in passes for item, _ in done.items}.union(*(step.requests for step in steps))

    def _held(self, pool: BlockPool) -> dict[int, int]:
        if pool.name not in self._holders:
            held = self._holders[pool.name] = {}
            for (owner, _), blocks in pool.holdings().items():
                held[owner] = held.get(owner, 0) + len(blocks)
        return self._holders[pool.name]
