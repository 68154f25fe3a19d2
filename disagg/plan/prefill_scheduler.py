"""What a prefill worker does next: who is admitted, and which chunks share a pass.

Notebook: notebooks/01_baseline.ipynb.
"""

from disagg.plan.blocks import Table, blocks_for
from disagg.plan.commands import Chunk, Prefill
from disagg.plan.kv_transfers import Movement
from disagg.plan.queues import BATCH_SLOT, chunk_stop
from disagg.plan.request import Record, Stage
from disagg.plan.state import Book
from disagg.plan.worker_state import Pass, PrefillSeat

PIPELINE = (Stage.PREFILLING, Stage.HANDING_OFF, Stage.LANDED, Stage.RUNNING)


class Prefilling:
    def __init__(self, book: Book, movement: Movement) -> None:
        self.book, self.movement = book, movement

    def fill(self, seat: PrefillSeat) -> bool:
        """Packs chunks up to the token budget and starts a pass; True where there was something to prefill."""
        if seat.passing:
            return False
        config, items, chunks = self.book.config, [], []
        budget, pass_id = config.chunk_tokens, self.book.new_id()
        seat.queue.gate = ""
        while budget > 0 and (record := self._next(seat, items)) is not None:
            stop = chunk_stop(record.prefilled, record.prefill_target, budget, config.block_size)
            if stop == record.prefilled:
                break
            budget -= stop - record.prefilled
            chunks.append(self._chunk(seat, record, stop, pass_id))
            items.append((record, chunks[-1].final))
        if not chunks:
            return False
        seat.passing = Pass(pass_id, tuple(items), config.chunk_tokens - budget)
        self.book.deadline(pass_id, "pass", seat)
        self.book.out.append(Prefill(seat.worker, pass_id, tuple(chunks), self.book.now_ns))
        return True

    def _next(self, seat: PrefillSeat, items: list) -> Record | None:
        """A record whose prefill is under way and not in this pass yet, else the first in the queue, if admitted."""
        taken = [record for record, _ in items]
        for record in seat.partial:
            if record not in taken:
                return record
        record = seat.queue.peek()
        return record if record is not None and self._admit(seat, record) else None

    def _admit(self, seat: PrefillSeat, record: Record) -> bool:
        """Reserves the whole prompt's blocks, or leaves the record in its queue with the gate's name."""
        ahead, limit = self._places(seat)
        if limit is not None and ahead >= limit:
            seat.queue.gate = record.gate = BATCH_SLOT
            self.book.because("admit: no slot", request=record.id, ahead=ahead, limit=limit)
            return False
        if seat.decode is not None:
            table = record.decode_table = self.book.reserve_decode(seat.decode, record, record.prefill_target + 1)
        else:
            blocks = blocks_for(record.prefill_target, self.book.config.block_size)
            available = seat.pool.available
            table = record.prefill_table = Table.reserve(seat.pool, blocks, record.id)
            rule = "admit: no block" if table is None else "admit"
            self.book.because(rule, request=record.id, need=blocks, available=available, pool=seat.pool.name)
        if table is None:
            seat.queue.gate = record.gate = seat.pool.gate
            return False
        seat.queue.remove(record)
        seat.partial.append(record)
        self.book.move(record, Stage.PREFILLING)
        return True

    def _places(self, seat: PrefillSeat) -> tuple[int, int | None]:
        """Back-pressure from the batch: requests on their way to it, and places; None where nothing limits them.

        One device that does both always limits; two only where a target keeps the batch small.
        """
        book = self.book
        most = book.config.max_batch
        if seat.decode is not None:
            ahead = len(seat.decode.rows) + len(seat.decode.landed) + len(seat.partial)
            return ahead, seat.decode.limit(most)
        ahead = sum(book.population[stage] for stage in PIPELINE)
        return ahead, None if book.config.itl_target_s is None else sum(seat.limit(most) for seat in book.decodes)

    def _chunk(self, seat: PrefillSeat, record: Record, stop: int, pass_id: int) -> Chunk:
        """The next chunk of a record; on a streamed route its layers may travel as they are computed."""
        book = self.book
        start, record.prefilled = record.prefilled, stop
        target, budget = record.prefill_target, book.config.chunk_tokens
        book.because("chunk", request=record.id, start=start, stop=stop, target=target, budget=budget)
        book.backlog -= stop - start
        table = record.decode_table if seat.decode else record.prefill_table
        table.pin(pass_id)
        record.prefill_seat = seat.worker.index
        streams = seat.decode is None and book.config.route != "bulk" and record.left > 1
        if streams:
            self.movement.offer(record, stop, layers_ready=False)
        blocks = tuple(table.blocks[: blocks_for(stop, book.config.block_size)])
        return Chunk(
            record.id, start, stop, record.tokens[start:stop], blocks, stop == record.prefill_target,
            len(record.generated), record.job.sampling, record.transfer if streams else None,
        )  # fmt: skip

    def finish(self, seat: PrefillSeat, tokens: tuple[int, ...]) -> list[Record]:
        """Closes the pass in flight; returns the records that got their first token of this prefill."""
        done, seat.passing = seat.passing, None
        self.book.settle(done.id)
        given, first = iter(tokens), []
        for record, final in done.items:
            record.unpin(done.id)
            token = next(given) if final else None
            if final and record.finish is None:
                seat.partial.remove(record)
                record.generated.append(token)
                first.append(record)
        return first

    def finish_failed(self, seat: PrefillSeat) -> list[Record]:
        """Closes a pass that raised; returns the records that were in it and are still open."""
        done, seat.passing = seat.passing, None
        self.book.settle(done.id)
        for record, _ in done.items:
            record.unpin(done.id)
        return [record for record, _ in done.items if record.finish is None]
