"""Why does a request wait? The gate that holds it, who holds that gate, and for how long; read from the state.

print(why(engine.controller.state, 3, now_ns))

The engine's thread answers, so the work is bounded: a few requests are told in full, a few dozen are searched for a
cycle, and each queue and pool is gone through once.
"""

from functools import cached_property

from disagg.plan.blocks import BlockPool
from disagg.plan.queues import BATCH_SLOT
from disagg.plan.request import Record, Stage
from disagg.plan.state import ControllerState
from disagg.plan.waiting import NAMED, Wait, cycle_in_words, cycle_of

WORKING = {Stage.PREFILLING: "prefill", Stage.RUNNING: "decode"}
TOLD, SEARCHED = 8, 64  # requests of a chain that get a line, and that are searched for a cycle


def why(state: ControllerState, request: int, now_ns: int) -> str:
    """One request in words, then whoever it waits for in turn, and the cycle where they wait for one another."""
    if request not in state.records:
        return f"request {request} is not open: it has ended, or never came"
    look, waits, following = _Look(state), {}, [request]
    while following and len(waits) < SEARCHED:
        here = following.pop(0)
        if here in state.records and here not in waits:
            waits[here] = look.wait(state.records[here], ahead=len(waits) < TOLD)
            following += list(waits[here].holders)[:SEARCHED]
    lines = [look.in_words(wait, now_ns) for wait in list(waits.values())[:TOLD]]
    if len(waits) > TOLD:
        lines.append(f"and {len(waits) - TOLD} more that hold what these wait for")
    return "\n".join([*lines, *filter(None, [cycle_in_words(cycle_of(waits))])])


def open_in_words(state: ControllerState) -> str:
    """The open requests in a few words, the first ones: their stage, and what they wait for."""
    look, first = _Look(state), list(state.records.values())[:TOLD]
    told = [f"request {w.request} ({w.stage}) for {w.what}" for w in map(look.wait, first)]
    more = len(state.records) - len(first)
    return "; ".join([*told, *([f"and {more:,} more"] if more else [])])


class _Look:
    """One look at a state between two events; what several requests wait for is gone through once."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state
        self._holders: dict[str, dict[int, int]] = {}  # pool → request → blocks

    def wait(self, record: Record, ahead: bool = True) -> Wait:
        """What it waits for, and who holds that; `ahead` counts who stands before it in its queue, too."""
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
        transfer = self._state.transfers.get(record.transfer)
        text = wait.in_words(now_ns)
        if transfer is not None and transfer.target is not None:
            landed = sum(bits.bit_count() for bits in transfer.landed.bits)
            text += f"; {landed} of {transfer.blocks * self._state.layers} (layer, block) pairs have landed"
        return text

    def _gate(self, record: Record):
        """The gate's name, and the queue it stands in: behind the head one waits for what the head waits for."""
        if record.id in self._running:
            return "", None
        transfer = self._state.transfers.get(record.transfer)
        if transfer is not None and transfer.target is not None:
            return f"{transfer.route} transfer", None
        queue = next((queue for queue in self._state.queues() if record in queue), None)
        return (record.gate, None) if queue is None else (queue.gate, queue)

    @cached_property
    def _running(self) -> set[int]:
        """Those that a pass or a step is at right now."""
        passes = [worker.passing for worker in self._state.prefills if worker.passing]
        steps = [step for worker in self._state.decodes for step in worker.steps]
        return {item.id for done in passes for item, _ in done.items}.union(*(step.requests for step in steps))

    def _held(self, pool: BlockPool) -> dict[int, int]:
        if pool.name not in self._holders:
            held = self._holders[pool.name] = {}
            for (owner, _), blocks in pool.holdings().items():
                held[owner] = held.get(owner, 0) + len(blocks)
        return self._holders[pool.name]
