"""K/V between memories: hand-offs from prefill to decode, spills to the host and fetches back.

Blocks on the decode device are reserved late, when the first layers are about to travel, and in the order of the
policy. A transfer pins the tables its copies touch, so that ending a request never frees what a copy still uses.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from disagg.plan.blocks import Table, blocks_for
from disagg.plan.commands import Assign, Preempted, Send, Worker
from disagg.plan.preemption import Arm
from disagg.plan.request import Finish, Record, Stage
from disagg.plan.state import Book
from disagg.plan.transfer import LayerBlocks, Transfer
from disagg.plan.worker_state import DecodeSeat

HOST = Worker("host", 0)


class Movement:
    def __init__(self, book: Book) -> None:
        self.book = book

    def offer(self, record: Record, stop: int, layers_ready: bool) -> None:
        """Lets blocks up to token `stop` travel; the first call opens the hand-off."""
        book = self.book
        if record.transfer is None:
            self._open(book.config.route, record, record.prefill_table, len(record.prefill_table.blocks))
            book.wanting.push(record)
        transfer = book.transfers[record.transfer]
        source = Worker("prefill", record.prefill_seat)
        self._send(transfer, source, blocks_for(stop, book.config.block_size), layers_ready)

    def prefilled(self, record: Record) -> None:
        """Prefill is over: what has not landed yet is exposed from here on."""
        book = self.book
        if record.transfer is None:
            self.offer(record, record.prefill_target, layers_ready=True)
        transfer = book.transfers[record.transfer]
        book.move(record, Stage.HANDING_OFF, f"{transfer.route} transfer")
        if transfer.source_read:
            book.drop(record, "prefill_table")
        if transfer.complete:
            self.complete(transfer)
        else:
            self._arm(transfer)

    def assign(self) -> None:
        """Gives blocks on a decode device to what wants them, the first by policy; nobody overtakes the head."""
        book = self.book
        book.wanting.gate = ""
        while (record := book.wanting.peek()) is not None:
            index, seat = max(enumerate(book.decodes), key=lambda pair: (pair[1].pool.available, -pair[0]))
            spilled = record.stage is Stage.SPILLED
            table = book.reserve_decode(seat, record, record.context + 1 if spilled else record.prefill_target + 1)
            if table is None:
                book.wanting.gate = record.gate
                return
            book.wanting.remove(record)
            record.decode_table, record.seat = table, index
            if spilled:
                self._fetch(record)
            self._target(book.transfers[record.transfer], table, seat.worker)

    def preempt(self, seat: DecodeSeat, record: Record) -> None:
        """Takes a request off its seat: its K/V go to the host, or are computed again, whichever costs less."""
        book = self.book
        size = book.config.block_size
        blocks = blocks_for(record.context, size)
        paging = sum(t.blocks for t in book.transfers.values() if t.route in ("spill", "fetch"))
        choice = book.costs.choose(
            record.id, record.context, blocks * size * book.token_bytes,
            host_room=book.host.available >= blocks, prefill_backlog=book.backlog,
            bytes_ahead=paging * size * book.token_bytes,
        )  # fmt: skip
        costs = [None if ns is None else round(ns / 1e6, 1) for ns in (choice.spill_ns, choice.recompute_ns)]
        book.because(choice.arm.value, request=record.id, spill_ms=costs[0], recompute_ms=costs[1])
        book.counts["preemptions"] += 1
        book.out.append(Preempted(choice, book.now_ns))
        seat.leave(record)
        seat.landed.remove(record)
        if choice.arm is Arm.SPILL:
            self._spill(seat, record, blocks)
        else:
            self.recompute(record)

    def recompute(self, record: Record) -> None:
        """Back to the queue: prefill repeats the prompt and all tokens so far, and gives the next one."""
        book = self.book
        book.counts["recomputes"] += 1
        book.drop(record, "decode_table", "host_table")
        record.transfer, record.prefilled, record.prefill_target = None, 0, len(record.tokens)
        book.move(record, Stage.QUEUED)
        book.enqueue(record)

    def complete(self, transfer: Transfer) -> None:
        """All that was due has landed. A hand-off that beat its prefill waits for the first token."""
        book, record = self.book, transfer.record
        if record.stage is Stage.PREFILLING:
            return
        self.close(transfer)
        transfer.target.commit()
        record.transfer = None
        if transfer.route == "spill":
            book.drop(record, "decode_table")
            book.move(record, Stage.SPILLED)
            book.wanting.push(record)
        else:
            book.drop(record, "prefill_table", "host_table")
            book.arrive(record)

    def source_read(self, transfer: Transfer) -> None:
        """Hop one is through: the source's blocks can go while hop two still travels."""
        transfer.source_read = True
        transfer.source.unpin(transfer.id)
        if transfer.record.finish is None and transfer.record.stage is Stage.HANDING_OFF:
            self.book.drop(transfer.record, "prefill_table")

    def fail(self, transfer: Transfer, error: str) -> None:
        """A hand-off's request fails; a spill or a fetch falls back to recomputing once its copies have ended."""
        if transfer.route in ("spill", "fetch"):
            self.book.counts["paging_failures"] += 1
            self.book.abort(transfer)
        else:
            self.book.end(transfer.record, Finish.FAILED, error)

    def closed(self, transfer: Transfer) -> None:
        """An aborted transfer's last copy has ended."""
        self.close(transfer)
        if transfer.record.finish is None:
            self.recompute(transfer.record)

    def close(self, transfer: Transfer) -> None:
        del self.book.transfers[transfer.id]
        self.book.settle(transfer.id)
        transfer.close()

    def _spill(self, seat: DecodeSeat, record: Record, blocks: int) -> None:
        book = self.book
        book.counts["spills"] += 1
        record.host_table = Table.reserve(book.host, blocks, record.id)
        book.move(record, Stage.SPILLING, "spill")
        transfer = self._open("spill", record, record.decode_table, blocks)
        self._send(transfer, seat.worker, blocks, layers_ready=True)
        self._target(transfer, record.host_table, HOST)

    def _fetch(self, record: Record) -> None:
        book = self.book
        book.counts["fetches"] += 1
        book.move(record, Stage.FETCHING, "fetch")
        transfer = self._open("fetch", record, record.host_table, len(record.host_table.blocks))
        self._send(transfer, HOST, transfer.blocks, layers_ready=True)

    def _open(self, route: str, record: Record, source: Table, blocks: int) -> Transfer:
        book = self.book
        transfer = Transfer(book.new_id(), route, record, source, blocks, LayerBlocks(book.layers))
        transfer.touch(source)
        book.transfers[transfer.id], record.transfer = transfer, transfer.id
        return transfer

    def _send(self, transfer: Transfer, source: Worker, upto: int, layers_ready: bool) -> None:
        first, transfer.sent = transfer.sent, upto
        blocks = tuple(transfer.source.blocks[first:upto])
        priority = self.book.wanting.key(transfer.record)
        self.book.out.append(
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
        self.book.out.append(Assign(transfer.id, worker, tuple(table.blocks[: transfer.blocks])))
        self._arm(transfer)

    def _arm(self, transfer: Transfer) -> None:
        """Starts the deadline, once: with blocks assigned and prefill over, only copies can hold it up."""
        ready = transfer.target is not None and transfer.record.stage is not Stage.PREFILLING
        if ready and transfer.posted_ns is None:
            transfer.posted_ns = self.book.now_ns
            self.book.deadline(transfer.id, "transfer", transfer)
