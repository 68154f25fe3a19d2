"""The next step of a decode worker: rows that grow, change bins, join, or are preempted for an earlier request.

Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from disagg.plan import events as ev
from disagg.plan.checks import present
from disagg.plan.commands import Decode, Emit, Turn
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.queues import BATCH_SLOT, WINDOW
from disagg.plan.request import Finish, Record, Stage
from disagg.plan.state import ControllerState, beside
from disagg.plan.worker_state import DecodeWorkerState, Pass, PrefillWorkerState, Step


class DecodeScheduler:
    def __init__(self, state: ControllerState, kv_transfers: KVTransfers) -> None:
        self.state, self.kv_transfers = state, kv_transfers

    def fill(self, turn: Turn, worker: DecodeWorkerState) -> bool:
        """Issues steps up to `steps_in_flight`; True where one was issued."""
        issued = False
        while self.step(turn, worker):
            issued = True
        return issued

    def step(self, turn: Turn, worker: DecodeWorkerState) -> bool:
        """Composes and issues the next step; True where there was a row to run."""
        if not self.compose(turn, worker):
            return False
        alone = not any(prefill.passing for prefill in self.state.prefills)
        turn.commands.append(self.issue(turn, worker, alone))
        return True

    def compose(self, turn: Turn, worker: DecodeWorkerState) -> bool:
        """The rows of the next step; False where none can run now."""
        if len(worker.steps) >= self.state.steps_in_flight or (worker.steps and worker.short_of_blocks()):
            return False
        self._keep_rows(turn, worker)
        self._join(turn, worker)
        return bool(worker.rows)

    def issue(self, turn: Turn, worker: DecodeWorkerState, alone: bool, mixed: bool = False) -> Decode:
        """The command of the step at hand; a mixed pass carries it."""
        command = worker.issue(self.state.new_id(), turn.now_ns, alone, beside(self.state, worker), pads=not mixed)
        self.state.deadlines.start(turn, worker.steps[-1].id, worker)
        return command

    def mixed_ended(
        self, turn: Turn, prefill: PrefillWorkerState, done: Pass, event: ev.Prefilled | ev.PassFailed
    ) -> None:
        """A mixed pass has ended: its last tokens are those of its rows."""
        worker = present(prefill.decode)
        step = worker.steps[0]
        if isinstance(event, ev.PassFailed):
            self.ended(turn, ev.StepFailed(worker.name, step.number, event.error))
            return
        tokens, slots = event.tokens[sum(final for _, final in done.items) :], (step.used_slots, step.padded_slots)
        stepped = ev.Stepped(worker.name, step.number, tokens, event.started_ns, event.ended_ns, *slots)
        self.ended(turn, stepped, mixed=True)

    def ended(self, turn: Turn, event: ev.Stepped | ev.StepFailed, mixed: bool = False) -> bool:
        """The oldest step in flight has ended: its tokens go out, and requests with their last one end, or all of them
        fail. False: it is another step. A mixed pass teaches its own model."""
        state, worker = self.state, self.state.decodes[event.worker.index]
        if state.is_anomaly(not worker.steps or worker.steps[0].number != event.step):
            return False
        step = worker.steps.popleft()
        state.deadlines.pop(step.id, None)
        firsts = worker.firsts.pop(step.number, ())
        for table in step.pinned:
            table.unpin(step.id)
        if isinstance(event, ev.StepFailed):
            for request in step.requests:
                state.end_open(turn, request, Finish.FAILED, f"decode of request {request} failed: {event.error}")
            return True
        state.padding.add(step.used_slots, step.padded_slots)
        as_planned = (step.used_slots, step.padded_slots) == (event.used_slots, event.padded_slots)
        state.counts["padding_mismatches"] += not as_planned
        self._learn(worker, step, event, [record.first_ns for record in firsts], mixed)
        ending = worker.take_tokens(step, event.tokens, state.eos_ids)
        turn.commands.append(Emit(*step.kept(event.tokens), event.ended_ns))
        for record in ending:
            state.end_if_done(turn, record)
        return True

    def _learn(
        self, worker: DecodeWorkerState, step: Step, event: ev.Stepped, firsts_ns: list[int], mixed: bool
    ) -> None:
        """How long a step or mixed pass took teaches its model and the composer. A second token's wait for a place in
        the batch is not the step's doing: its gap counts as two steps at most."""
        seconds, rows = (event.ended_ns - event.started_ns) / 1e9, len(step.requests)
        if worker.composer:
            most_s = worker.last_s + seconds
            gaps_s = [min(most_s, (event.ended_ns - first_ns) / 1e9) for first_ns in firsts_ns]
            worker.composer.learn(rows, step.used_slots / rows, seconds, gaps_s)
        if not mixed:
            worker.speed.observe(rows, step.used_slots, seconds, step.beside or beside(self.state, worker))
        worker.last_s = seconds

    def _keep_rows(self, turn: Turn, worker: DecodeWorkerState) -> None:
        """Visits the rows that need a block, leave their bin, or have had their last token."""
        for row in worker.agenda.pop(worker.next_step, ()):
            record = row.record
            if worker.rows.get(record.id) is not row:
                continue  # it has left the batch
            if worker.next_step > row.last_step:
                worker.leave(record)
            elif worker.needs_block(row) and not self._grow(turn, worker, record):
                worker.leave(record)  # until a block is free
                self.state.arrive(turn, record)
            else:
                worker.rebin(row)
                worker.plan(row)

    def _join(self, turn: Turn, worker: DecodeWorkerState) -> None:
        """Landed requests join the batch while it has a place, and the pool a block for their next token."""
        worker.landed.gate = ""
        if worker.landed.peek() is None:
            return
        limit = worker.room(self.state.config.max_batch)
        places = limit - len(worker.rows)
        for record in self._chosen(worker, places) if places > 0 else []:
            if record not in worker.landed:
                continue  # preempted for one before it
            if self._promised(worker, record):
                break
            if worker.is_full(record) and not self._grow(turn, worker, record):
                worker.landed.gate = record.gate
                return
            worker.landed.remove(record)
            self.state.move(turn, record, Stage.RUNNING)
            worker.join(record)
            self.state.because("join", request=record.id, rows=len(worker.rows), limit=limit)
        if (head := worker.landed.peek()) is not None:
            worker.landed.gate = head.gate = BATCH_SLOT
            self.state.because("join: no slot", request=head.id, rows=len(worker.rows), limit=limit)

    def _promised(self, worker: DecodeWorkerState, record: Record) -> bool:
        """The place is for a request that is to be prefilled here, waits for a place, and goes before this one."""
        if not self.state.config.colocated:
            return False
        queue = self.state.prefills[worker.name.index].queue
        head = queue.peek()
        return head is not None and queue.gate == BATCH_SLOT and head.priority < record.priority

    def _chosen(self, worker: DecodeWorkerState, places: int) -> list[Record]:
        """The landed requests that the policy gives the free places of the step to, in its order."""
        landed = {record.id: record for record in worker.landed.first(max(WINDOW, places))}
        shares = self.state.policy.share(places, tuple(record.seen(1) for record in landed.values()))
        chosen = [landed[request] for request, row in shares if row]
        self.state.policy.idle |= not chosen
        return chosen

    def _grow(self, turn: Turn, worker: DecodeWorkerState, record: Record) -> bool:
        """One more block; where the pool is full, requests later by policy are preempted. False: it must wait."""
        state, table, available = self.state, present(record.decode_table), worker.pool.available
        why = {"request": record.id, "pool": worker.pool.name, "context": record.context}
        while (blocks := table.grow()) is None:
            at_same_worker = (r for r in state.records.values() if r.decode_worker == record.decode_worker)
            spilling = any(r.stage is Stage.SPILLING for r in at_same_worker)  # its blocks are about to be free
            victim = self._victim(worker, record)
            if spilling or worker.steps or victim is None:
                record.gate = worker.pool.gate
                state.because("grow: no block", **why)
                return False
            state.because("preempt", request=record.id, victim=victim.id, policy=state.config.policy)
            self.kv_transfers.preempt(turn, worker, victim)
        state.because("grow", available=available, **why)
        if record.id in worker.rows:
            worker.grown.append((record.id, blocks[0]))
        return True

    def _victim(self, worker: DecodeWorkerState, record: Record) -> Record | None:
        """The last by policy that holds blocks of this worker; None where that is `record` itself."""
        holders = [row.record for row in worker.rows.values()] + list(worker.landed)
        last = max([record, *holders], key=lambda holder: holder.priority)
        return None if last is record else last
