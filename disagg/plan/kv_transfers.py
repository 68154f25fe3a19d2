"""Hand-offs from prefill to decode, spills to the host, and fetches back.

Blocks on the decode device are reserved late and by policy. A transfer pins its tables until it is closed.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from collections import Counter
from collections.abc import Callable

from disagg.plan.blocks import Table, blocks_for
from disagg.plan.checks import present
from disagg.plan.commands import Assign, Preempted, Send, Turn, Worker
from disagg.plan.policy import Option
from disagg.plan.preemption import Arm, Choice
from disagg.plan.request import Finish, Record, Stage
from disagg.plan.state import ControllerState
from disagg.plan.transfer import PAGING, LayerBlocks, Transfer
from disagg.plan.worker_state import DecodeWorkerState

HOST = Worker("host", 0)


class KVTransfers:
    def __init__(
        self,
        state: ControllerState,
        off: Callable[[Turn, Record], Choice],
        back: Callable[[Turn, Record], Option | None],
    ) -> None:
        """`off` says whether a preempted request's K/V are spilled, `back` which way those in host memory take."""
        self.state, self._off, self._back = state, off, back

    def offer(self, turn: Turn, record: Record, stop: int, layers_ready: bool) -> None:
        """Sends the blocks up to token `stop`; the first call opens the hand-off."""
        state = self.state
        if record.transfer is None:
            table = present(record.prefill_table)
            self._open(state.config.route, record, table, len(table.blocks))
            if record.decode_table is None:
                state.wait(state.wanting, record)
        source = state.prefills[present(record.prefill_worker)].name
        transfer, upto = present(state.open_transfer(record)), blocks_for(stop, state.config.block_size)
        self._send(turn, transfer, source, upto, layers_ready)
        if record.decode_table is not None and transfer.target is None:
            self._target(turn, transfer, record.decode_table, state.decodes[present(record.decode_worker)].name)

    def prefilled(self, turn: Turn, record: Record) -> None:
        """Prefill is over; copies that have not landed are exposed from now on."""
        if record.transfer is None:
            self.offer(turn, record, record.prefill_target, layers_ready=True)
        state, transfer = self.state, present(self.state.open_transfer(record))
        state.move(turn, record, Stage.HANDING_OFF, f"{transfer.route} transfer")
        if transfer.source_read:
            record.drop("prefill_table")
        if transfer.complete:
            self.complete(turn, transfer)
        else:
            self._arm(turn, transfer)

    def assign(self, turn: Turn) -> bool:
        """Reserves blocks on decode devices for the requests that wait for them, strictly by policy. True where one of
        them went back to the queue of prefill."""
        state, before = self.state, self.state.counts["recomputes"]
        state.wanting.gate = ""
        while (record := state.wanting.peek()) is not None:
            worker = max(state.decodes, key=lambda decode: decode.pool.available)
            in_host = record.stage in (Stage.SPILLED, Stage.PARKED)
            table = self.reserve(worker, record, (record.context if in_host else record.prefill_target) + 1)
            if table is None:
                state.wanting.gate = record.gate
                self._park(turn)
                break
            state.wanting.remove(record)
            record.decode_table, record.decode_worker = table, worker.name.index
            if in_host and not self._fetch(turn, record):
                continue
            self._target(turn, present(state.open_transfer(record)), table, worker.name)
        return state.counts["recomputes"] > before

    def reserve(self, worker: DecodeWorkerState, record: Record, tokens: int) -> Table | None:
        """Blocks for `tokens` on a decode worker, or None."""
        need, pool = blocks_for(tokens, self.state.config.block_size), worker.pool
        growth, available = worker.growth, pool.available
        enough = available >= need + growth
        rule, numbers = "target" if enough else "target: no block", {"need": need, "growth": growth}
        self.state.because(rule, request=record.id, available=available, pool=pool.name, **numbers)
        if not enough:
            record.gate = pool.gate
            return None
        return Table.reserve(pool, need, record.id)

    def _park(self, turn: Turn) -> None:
        """Decode is full: hand-offs that wait hold at most a quarter of their prefill device's blocks. What is beyond
        that goes to host memory, the last by policy first, layer by layer through the ring as it is computed."""
        state = self.state
        if state.config.route != "staged" or not state.host.available:
            return
        waiting = [record for record in state.wanting if record.stage in (Stage.PREFILLING, Stage.HANDING_OFF)]
        held = Counter(record.prefill_worker for record in waiting for _ in present(record.prefill_table).blocks)
        for record in reversed(waiting):
            pool, transfer = state.prefills[present(record.prefill_worker)].pool, present(state.open_transfer(record))
            if 4 * held[record.prefill_worker] <= pool.capacity:
                continue
            table = Table.reserve(state.host, transfer.blocks, record.id)
            if table is not None:
                held[record.prefill_worker] -= transfer.blocks
                record.host_table = table
                state.wanting.remove(record)
                state.counts["parked"] += 1
                state.because("park", request=record.id, blocks=transfer.blocks, free=state.host.available)
                self._target(turn, transfer, table, HOST)

    def preempt(self, turn: Turn, worker: DecodeWorkerState, record: Record) -> None:
        """Takes a request off its decode worker; its K/V are spilled or recomputed, whichever costs less."""
        state, choice = self.state, self._off(turn, record)
        costs = [None if ns is None else round(ns / 1e6, 1) for ns in (choice.spill_ns, choice.recompute_ns)]
        state.because(choice.arm.value, request=record.id, spill_ms=costs[0], recompute_ms=costs[1])
        state.counts["preemptions"] += 1
        turn.commands.append(Preempted(choice, turn.now_ns))
        worker.leave(record)
        worker.landed.remove(record)
        if choice.arm is Arm.SPILL:
            self._spill(turn, worker, record, blocks_for(record.context, state.config.block_size))
        else:
            self.recompute(turn, record)

    def recompute(self, turn: Turn, record: Record) -> None:
        """Back to the queue: prefill computes the prompt and all tokens so far, and gives the next one."""
        state = self.state
        state.counts["recomputes"] += 1
        record.drop("decode_table", "host_table")
        record.transfer, record.prefilled, record.prefill_target = None, 0, len(record.tokens)
        if state.config.colocated:  # where it decoded
            record.stays, record.prefill_worker = True, record.decode_worker
        state.move(turn, record, Stage.QUEUED)
        state.enqueue(record)

    def complete(self, turn: Turn, transfer: Transfer) -> None:
        """All blocks due have landed. A hand-off that is complete before the pass ends waits for the first token."""
        state, record = self.state, transfer.record
        if record.stage is Stage.PREFILLING:
            return
        self.close(transfer)
        present(transfer.target).commit()
        record.transfer = None
        if transfer.target is record.host_table:
            spilled = transfer.route == "spill"
            record.drop("decode_table" if spilled else "prefill_table")
            state.move(turn, record, Stage.SPILLED if spilled else Stage.PARKED)
            state.wait(state.wanting, record)
        else:
            record.drop("prefill_table", "host_table")
            state.arrive(turn, record)

    def fail(self, turn: Turn, transfer: Transfer, error: str) -> None:
        """A hand-off's request fails; that of a spill or fetch is recomputed once the copies have ended."""
        if transfer.route in PAGING:
            self.state.counts["paging_failures"] += 1
            self.state.abort(turn, transfer)
        else:
            self.state.end(turn, transfer.record, Finish.FAILED, error)

    def close(self, transfer: Transfer) -> None:
        """No copy of it reads or writes its tables any more."""
        del self.state.transfers[transfer.id]
        self.state.deadlines.pop(transfer.id, None)
        for table in filter(None, (transfer.source, transfer.target)):
            table.unpin(transfer.id)

    def _spill(self, turn: Turn, worker: DecodeWorkerState, record: Record, blocks: int) -> None:
        state, source = self.state, present(record.decode_table)
        state.counts["spills"] += 1
        record.host_table = host_table = present(Table.reserve(state.host, blocks, record.id))
        state.move(turn, record, Stage.SPILLING, "spill")
        transfer = self._open("spill", record, source, blocks)
        self._send(turn, transfer, worker.name, blocks, layers_ready=True)
        self._target(turn, transfer, host_table, HOST)

    def _fetch(self, turn: Turn, record: Record) -> bool:
        """False where computing the K/V again costs less by now: it goes back to the queue."""
        choice = self._back(turn, record)
        if choice is None or choice.way == "recompute":
            self.recompute(turn, record)
            return False
        table = present(record.host_table)
        self.state.counts["fetches"] += 1
        self.state.move(turn, record, Stage.FETCHING, "fetch")
        transfer = self._open("fetch", record, table, len(table.blocks))
        self._send(turn, transfer, HOST, transfer.blocks, layers_ready=True)
        return True

    def _open(self, route: str, record: Record, source: Table, blocks: int) -> Transfer:
        transfer = Transfer(self.state.new_id(), route, record, source, blocks, LayerBlocks(self.state.layers))
        transfer.touch(source)
        self.state.transfers[transfer.id], record.transfer = transfer, transfer.id
        return transfer

    def _send(self, turn: Turn, transfer: Transfer, source: Worker, upto: int, layers_ready: bool) -> None:
        first, transfer.sent = transfer.sent, upto
        blocks = tuple(transfer.source.blocks[first:upto])
        priority = transfer.record.priority
        names = transfer.id, transfer.route, transfer.record.id
        turn.commands.append(Send(*names, source, first, blocks, transfer.blocks, priority, layers_ready))

    def _target(self, turn: Turn, transfer: Transfer, table: Table, worker: Worker) -> None:
        transfer.target = table
        transfer.touch(table)
        turn.commands.append(Assign(transfer.id, worker, tuple(table.blocks[: transfer.blocks])))
        self._arm(turn, transfer)

    def _arm(self, turn: Turn, transfer: Transfer) -> None:
        """Starts the deadline, once: after prefill, and with blocks assigned, only copies can delay the transfer."""
        ready = transfer.target is not None and transfer.record.stage is not Stage.PREFILLING
        if ready and transfer.id not in self.state.deadlines:
            self.state.deadlines.start(turn, transfer.id, transfer)
