"""K/V between memories: hand-offs from prefill to decode, spills to the host and fetches back.

Blocks on the decode device are reserved late, when the first layers are about to travel, and in the order of the
policy. A transfer pins the tables its copies touch, so that ending a request never frees what a copy still uses.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from disagg.plan.blocks import Table, blocks_for
from disagg.plan.commands import Assign, Preempted, Send, Worker
from disagg.plan.preemption import Arm
from disagg.plan.request import Finish, Record, Stage
from disagg.plan.state import ControllerState
from disagg.plan.transfer import LayerBlocks, Transfer
from disagg.plan.worker_state import DecodeWorkerState

HOST = Worker("host", 0)


class KVTransfers:
    def __init__(self, state: ControllerState) -> None:
        self.state = state

    def offer(self, record: Record, stop: int, layers_ready: bool) -> None:
        """Lets blocks up to token `stop` travel; the first call opens the hand-off."""
        state = self.state
        if record.transfer is None:
            self._open(state.config.route, record, record.prefill_table, len(record.prefill_table.blocks))
            state.wanting.push(record)
        transfer = state.transfers[record.transfer]
        source = Worker("prefill", record.prefill_seat)
        self._send(transfer, source, blocks_for(stop, state.config.block_size), layers_ready)

    def prefilled(self, record: Record) -> None:
        """Prefill is over: what has not landed yet is exposed from here on."""
        state = self.state
        if record.transfer is None:
            self.offer(record, record.prefill_target, layers_ready=True)
        transfer = state.transfers[record.transfer]
        state.move(record, Stage.HANDING_OFF, f"{transfer.route} transfer")
        if transfer.source_read:
            state.drop(record, "prefill_table")
        if transfer.complete:
            self.complete(transfer)
        else:
            self._arm(transfer)

    def assign(self) -> None:
        """Gives blocks on a decode device to what wants them, the first by policy; nobody overtakes the head."""
        state = self.state
        state.wanting.gate = ""
        while (record := state.wanting.peek()) is not None:
            index, seat = max(enumerate(state.decodes), key=lambda pair: (pair[1].pool.available, -pair[0]))
            spilled = record.stage is Stage.SPILLED
            table = state.reserve_decode(seat, record, record.context + 1 if spilled else record.prefill_target + 1)
            if table is None:
                state.wanting.gate = record.gate
                return
            state.wanting.remove(record)
            record.decode_table, record.seat = table, index
            if spilled:
                self._fetch(record)
            self._target(state.transfers[record.transfer], table, seat.worker)

    def preempt(self, seat: DecodeWorkerState, record: Record) -> None:
        """Takes a request off its seat: its K/V go to the host, or are computed again, whichever costs less."""
        state = self.state
        size = state.config.block_size
        blocks = blocks_for(record.context, size)
        paging = sum(t.blocks for t in state.transfers.values() if t.route in ("spill", "fetch"))
        choice = state.costs.choose(
            record.id, record.context, blocks * size * state.token_bytes,
            host_room=state.host.available >= blocks, prefill_backlog=state.backlog,
            bytes_ahead=paging * size * state.token_bytes,
        )  # fmt: skip
        costs = [None if ns is None else round(ns / 1e6, 1) for ns in (choice.spill_ns, choice.recompute_ns)]
        state.because(choice.arm.value, request=record.id, spill_ms=costs[0], recompute_ms=costs[1])
        state.counts["preemptions"] += 1
        state.out.append(Preempted(choice, state.now_ns))
        seat.leave(record)
        seat.landed.remove(record)
        if choice.arm is Arm.SPILL:
            self._spill(seat, record, blocks)
        else:
            self.recompute(record)

    def recompute(self, record: Record) -> None:
        """Back to the queue: prefill repeats the prompt and all tokens so far, and gives the next one."""
        state = self.state
        state.counts["recomputes"] += 1
        state.drop(record, "decode_table", "host_table")
        record.transfer, record.prefilled, record.prefill_target = None, 0, len(record.tokens)
        state.move(record, Stage.QUEUED)
        state.enqueue(record)

    def complete(self, transfer: Transfer) -> None:
        """All that was due has landed. A hand-off that beat its prefill waits for the first token."""
        state, record = self.state, transfer.record
        if record.stage is Stage.PREFILLING:
            return
        self.close(transfer)
        transfer.target.commit()
        record.transfer = None
        if transfer.route == "spill":
            state.drop(record, "decode_table")
            state.move(record, Stage.SPILLED)
            state.wanting.push(record)
        else:
            state.drop(record, "prefill_table", "host_table")
            state.arrive(record)

    def source_read(self, transfer: Transfer) -> None:
        """Hop one is through: the source's blocks can go while hop two still travels."""
        transfer.source_read = True
        transfer.source.unpin(transfer.id)
        if transfer.record.finish is None and transfer.record.stage is Stage.HANDING_OFF:
            self.state.drop(transfer.record, "prefill_table")

    def fail(self, transfer: Transfer, error: str) -> None:
        """A hand-off's request fails; a spill or a fetch falls back to recomputing once its copies have ended."""
        if transfer.route in ("spill", "fetch"):
            self.state.counts["paging_failures"] += 1
            self.state.abort(transfer)
        else:
            self.state.end(transfer.record, Finish.FAILED, error)

    def closed(self, transfer: Transfer) -> None:
        """An aborted transfer's last copy has ended."""
        self.close(transfer)
        if transfer.record.finish is None:
            self.recompute(transfer.record)

    def close(self, transfer: Transfer) -> None:
        del self.state.transfers[transfer.id]
        self.state.settle(transfer.id)
        transfer.close()

    def _spill(self, seat: DecodeWorkerState, record: Record, blocks: int) -> None:
        state = self.state
        state.counts["spills"] += 1
        record.host_table = Table.reserve(state.host, blocks, record.id)
        state.move(record, Stage.SPILLING, "spill")
        transfer = self._open("spill", record, record.decode_table, blocks)
        self._send(transfer, seat.worker, blocks, layers_ready=True)
        self._target(transfer, record.host_table, HOST)

    def _fetch(self, record: Record) -> None:
        state = self.state
        state.counts["fetches"] += 1
        state.move(record, Stage.FETCHING, "fetch")
        transfer = self._open("fetch", record, record.host_table, len(record.host_table.blocks))
        self._send(transfer, HOST, transfer.blocks, layers_ready=True)

    def _open(self, route: str, record: Record, source: Table, blocks: int) -> Transfer:
        state = self.state
        transfer = Transfer(state.new_id(), route, record, source, blocks, LayerBlocks(state.layers))
        transfer.touch(source)
        state.transfers[transfer.id], record.transfer = transfer, transfer.id
        return transfer

    def _send(self, transfer: Transfer, source: Worker, upto: int, layers_ready: bool) -> None:
        first, transfer.sent = transfer.sent, upto
        blocks = tuple(transfer.source.blocks[first:upto])
        priority = self.state.wanting.key(transfer.record)
        self.state.out.append(
            Send(
                transfer.id,
                transfer.route,
                transfer.record.id,
                source,
                first,
                blocks,
                transfer.blocks,
                priority,
                layers_ready,
            )
        )

    def _target(self, transfer: Transfer, table: Table, worker: Worker) -> None:
        transfer.target = table
        transfer.touch(table)
        self.state.out.append(Assign(transfer.id, worker, tuple(table.blocks[: transfer.blocks])))
        self._arm(transfer)

    def _arm(self, transfer: Transfer) -> None:
        """Starts the deadline, once: with blocks assigned and prefill over, only copies can hold it up."""
        ready = transfer.target is not None and transfer.record.stage is not Stage.PREFILLING
        if ready and transfer.posted_ns is None:
            transfer.posted_ns = self.state.now_ns
            self.state.deadline(transfer.id, "transfer", transfer)
