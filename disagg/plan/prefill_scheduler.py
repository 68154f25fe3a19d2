"""What a prefill worker does next: who is admitted, and which chunks share a pass.

Notebook: notebooks/01_baseline.ipynb.
"""

from disagg.plan.blocks import Table, blocks_for
from disagg.plan.commands import Chunk, Prefill
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.queues import BATCH_SLOT, chunk_stop
from disagg.plan.request import Record, Stage
from disagg.plan.state import ControllerState
from disagg.plan.worker_state import Pass, PrefillWorkerState

PIPELINE = (Stage.PREFILLING, Stage.HANDING_OFF, Stage.LANDED, Stage.RUNNING)


class PrefillScheduler:
    def __init__(self, state: ControllerState, movement: KVTransfers) -> None:
        self.state, self.movement = state, movement

    def fill(self, seat: PrefillWorkerState) -> bool:
        """Packs chunks up to the token budget and starts a pass; True where there was something to prefill."""
        if seat.passing:
            return False
        config, items, chunks = self.state.config, [], []
        budget, pass_id = config.chunk_tokens, self.state.new_id()
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
        self.state.deadline(pass_id, "pass", seat)
        self.state.out.append(Prefill(seat.worker, pass_id, tuple(chunks), self.state.now_ns))
        return True

    def _next(self, seat: PrefillWorkerState, items: list) -> Record | None:
        """A record whose prefill is under way and not in this pass yet, else the first in the queue, if admitted."""
        taken = [record for record, _ in items]
        for record in seat.partial:
            if record not in taken:
                return record
        record = seat.queue.peek()
        return record if record is not None and self._admit(seat, record) else None

    def _admit(self, seat: PrefillWorkerState, record: Record) -> bool:
        """Reserves the whole prompt's blocks, or leaves the record in its queue with the gate's name."""
        ahead, limit = self._places(seat)
        if limit is not None and ahead >= limit:
            seat.queue.gate = record.gate = BATCH_SLOT
            self.state.because("admit: no slot", request=record.id, ahead=ahead, limit=limit)
            return False
        if seat.decode is not None:
            table = record.decode_table = self.state.reserve_decode(seat.decode, record, record.prefill_target + 1)
        else:
            blocks = blocks_for(record.prefill_target, self.state.config.block_size)
            available = seat.pool.available
            table = record.prefill_table = Table.reserve(seat.pool, blocks, record.id)
            rule = "admit: no block" if table is None else "admit"
            self.state.because(rule, request=record.id, need=blocks, available=available, pool=seat.pool.name)
        if table is None:
            seat.queue.gate = record.gate = seat.pool.gate
            return False
        seat.queue.remove(record)
        seat.partial.append(record)
        self.state.move(record, Stage.PREFILLING)
        return True

    def _places(self, seat: PrefillWorkerState) -> tuple[int, int | None]:
        """Back-pressure from the batch: requests on their way to it, and places; None where nothing limits them.

        One device that does both always limits; two only where a target keeps the batch small.
        """
        state = self.state
        most = state.config.max_batch
        if seat.decode is not None:
            ahead = len(seat.decode.rows) + len(seat.decode.landed) + len(seat.partial)
            return ahead, seat.decode.limit(most)
        ahead = sum(state.population[stage] for stage in PIPELINE)
        return ahead, None if state.config.itl_target_s is None else sum(seat.limit(most) for seat in state.decodes)

    def _chunk(self, seat: PrefillWorkerState, record: Record, stop: int, pass_id: int) -> Chunk:
        """The next chunk of a record; on a streamed route its layers may travel as they are computed."""
        state = self.state
        start, record.prefilled = record.prefilled, stop
        target, budget = record.prefill_target, state.config.chunk_tokens
        state.because("chunk", request=record.id, start=start, stop=stop, target=target, budget=budget)
        state.backlog -= stop - start
        table = record.decode_table if seat.decode else record.prefill_table
        table.pin(pass_id)
        record.prefill_seat = seat.worker.index
        streams = seat.decode is None and state.config.route != "bulk" and record.left > 1
        if streams:
            self.movement.offer(record, stop, layers_ready=False)
        blocks = tuple(table.blocks[: blocks_for(stop, state.config.block_size)])
        return Chunk(
            record.id, start, stop, record.tokens[start:stop], blocks, stop == record.prefill_target,
            len(record.generated), record.job.sampling, record.transfer if streams else None,
        )  # fmt: skip

    def finish(self, seat: PrefillWorkerState, tokens: tuple[int, ...]) -> list[Record]:
        """Closes the pass in flight; returns the records that got their first token of this prefill."""
        done, seat.passing = seat.passing, None
        self.state.settle(done.id)
        given, first = iter(tokens), []
        for record, final in done.items:
            record.unpin(done.id)
            token = next(given) if final else None
            if final and record.finish is None:
                seat.partial.remove(record)
                record.generated.append(token)
                first.append(record)
        return first

    def finish_failed(self, seat: PrefillWorkerState) -> list[Record]:
        """Closes a pass that raised; returns the records that were in it and are still open."""
        done, seat.passing = seat.passing, None
        self.state.settle(done.id)
        for record, _ in done.items:
            record.unpin(done.id)
        return [record for record, _ in done.items if record.finish is None]
