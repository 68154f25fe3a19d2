"""What a decode worker does next: which rows grow, move to another bin, join, or make room for an older request.

Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from disagg.plan.commands import Decode
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.queues import BATCH_SLOT
from disagg.plan.request import Record, Stage
from disagg.plan.state import ControllerState
from disagg.plan.worker_state import DecodeWorkerState, Step


class DecodeScheduler:
    def __init__(self, state: ControllerState, movement: KVTransfers) -> None:
        self.state, self.movement = state, movement

    def step(self, seat: DecodeWorkerState) -> bool:
        """Composes and issues the next step; True where there was a row to run."""
        if len(seat.steps) >= self.state.steps_in_flight or (seat.steps and seat.short_of_blocks()):
            return False
        self._keep_rows(seat)
        self._join(seat)
        if not seat.rows:
            return False
        alone = not any(prefill.passing for prefill in self.state.prefills)
        command: Decode = seat.issue(self.state.new_id(), self.state.now_ns, alone)
        self.state.deadline(seat.steps[-1].id, "step", seat)
        self.state.out.append(command)
        return True

    def finish(self, seat: DecodeWorkerState) -> Step:
        """Closes the oldest step in flight: tables that only it still touched are freed."""
        step = seat.steps.popleft()
        self.state.settle(step.id)
        for table in step.pinned:
            table.unpin(step.id)
        return step

    def _keep_rows(self, seat: DecodeWorkerState) -> None:
        """Rows of which something is due: a new block, another bin, or no further step."""
        for row in seat.due():
            record = row.record
            if seat.rows.get(record.id) is not row:
                continue  # preempted for a row before it
            if seat.next_step > row.last_step:
                seat.leave(record)
            elif seat.needs_block(row) and not self._grow(seat, record):
                seat.leave(record)  # it sits out until there is a block
                self.state.arrive(record)
            else:
                seat.rebin(row)
                seat.plan(row)

    def _join(self, seat: DecodeWorkerState) -> None:
        """Takes landed requests into the batch while there is a place, and a block for their next token."""
        seat.landed.gate = ""
        if seat.landed.peek() is None:
            return
        limit = seat.room(self.state.config.max_batch)
        while (record := seat.landed.peek()) is not None:
            if len(seat.rows) >= limit:
                record.gate = BATCH_SLOT
                self.state.because("join: no slot", request=record.id, rows=len(seat.rows), limit=limit)
            elif not seat.is_full(record) or self._grow(seat, record):
                seat.landed.remove(record)
                self.state.move(record, Stage.RUNNING)
                seat.join(record)
                self.state.because("join", request=record.id, rows=len(seat.rows), limit=limit)
                continue
            seat.landed.gate = record.gate
            return

    def _grow(self, seat: DecodeWorkerState, record: Record) -> bool:
        """One more block, taken from a younger request where the pool is full; False where it must wait."""
        available, why = seat.pool.available, {"request": record.id, "pool": seat.pool.name, "context": record.context}
        while (blocks := record.decode_table.grow()) is None:
            coming = any(r.stage is Stage.SPILLING and r.seat == record.seat for r in self.state.records.values())
            victim = self._victim(seat, record)
            if coming or seat.steps or victim is None:
                record.gate = seat.pool.gate
                self.state.because("grow: no block", **why)
                return False
            self.state.because("preempt", request=record.id, victim=victim.id, policy=self.state.config.policy)
            self.movement.preempt(seat, victim)
        self.state.because("grow", available=available, **why)
        if record.id in seat.rows:
            seat.grown.append((record.id, blocks[0]))
        return True

    def _victim(self, seat: DecodeWorkerState, record: Record) -> Record | None:
        """The last by policy that holds blocks of this seat and comes after `record`."""
        key = seat.landed.key
        holders = [row.record for row in seat.rows.values()] + list(seat.landed)
        last = max(holders, key=key, default=record)
        return last if key(last) > key(record) else None
