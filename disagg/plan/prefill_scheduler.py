"""The next pass of a prefill worker: which requests are admitted, and which chunks share the pass.

Notebook: notebooks/01_baseline.ipynb.
"""

from itertools import chain

from disagg.plan import events as ev
from disagg.plan.blocks import Table, blocks_for
from disagg.plan.checks import present
from disagg.plan.commands import Chunk, Emit, Prefill, Turn
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.queues import BATCH_SLOT, chunk_stop
from disagg.plan.request import Finish, Record, Stage
from disagg.plan.state import ControllerState
from disagg.plan.worker_state import Pass, PrefillWorkerState

PIPELINE = (Stage.PREFILLING, Stage.HANDING_OFF, Stage.LANDED, Stage.RUNNING)


class PrefillScheduler:
    def __init__(self, state: ControllerState, kv_transfers: KVTransfers) -> None:
        self.state, self.kv_transfers = state, kv_transfers

    def fill(self, turn: Turn, worker: PrefillWorkerState) -> bool:
        """Starts a pass of chunks up to the token budget; True where there was a chunk."""
        if worker.passing:
            return False
        config, budget, pass_id = self.state.config, self.state.config.chunk_tokens, self.state.new_id()
        items: list[tuple[Record, bool]] = []
        chunks: list[Chunk] = []
        worker.queue.gate = ""
        while budget > 0 and (record := self._next(turn, worker, items)) is not None:
            stop = chunk_stop(record.prefilled, record.prefill_target, budget, config.block_size)
            if stop == record.prefilled:
                break
            budget -= stop - record.prefilled
            chunks.append(self._chunk(turn, worker, record, stop, pass_id))
            items.append((record, chunks[-1].final))
        if not chunks:
            return False
        worker.passing = Pass(pass_id, tuple(items), config.chunk_tokens - budget)
        self.state.deadlines.start(turn, pass_id, worker)
        turn.commands.append(Prefill(worker.name, pass_id, tuple(chunks), turn.now_ns))
        return True

    def _next(self, turn: Turn, worker: PrefillWorkerState, items: list[tuple[Record, bool]]) -> Record | None:
        """A partly prefilled record that is not in this pass yet, else the first in the queue, if admitted."""
        for record in worker.partial:
            if all(record is not taken for taken, _ in items):
                return record
        head = worker.queue.peek()
        return head if head is not None and self._admit(turn, worker, head) else None

    def _admit(self, turn: Turn, worker: PrefillWorkerState, record: Record) -> bool:
        """Reserves the blocks of the whole prompt, or leaves the record in its queue and names its gate."""
        ahead, limit = self._places(worker)
        if limit is not None and ahead >= limit:
            worker.queue.gate = record.gate = BATCH_SLOT
            self.state.because("admit: no slot", request=record.id, ahead=ahead, limit=limit)
            return False
        if worker.decode is not None:
            table = record.decode_table = self.state.reserve_decode(worker.decode, record, record.prefill_target + 1)
        else:
            blocks = blocks_for(record.prefill_target, self.state.config.block_size)
            available = worker.pool.available
            table = record.prefill_table = Table.reserve(worker.pool, blocks, record.id)
            rule = "admit: no block" if table is None else "admit"
            self.state.because(rule, request=record.id, need=blocks, available=available, pool=worker.pool.name)
        if table is None:
            worker.queue.gate = record.gate = worker.pool.gate
            return False
        worker.queue.remove(record)
        worker.partial.append(record)
        self.state.move(turn, record, Stage.PREFILLING)
        return True

    def _places(self, worker: PrefillWorkerState) -> tuple[int, int | None]:
        """Back-pressure: the requests on their way to the batch, and the places in it; None where nothing limits
        them, that is on two devices without a latency target."""
        state = self.state
        most = state.config.max_batch
        if worker.decode is not None:
            ahead = len(worker.decode.rows) + len(worker.decode.landed) + len(worker.partial)
            return ahead, worker.decode.limit(most)
        ahead = sum(state.population[stage] for stage in PIPELINE)
        return ahead, None if state.config.itl_target_s is None else sum(worker.limit(most) for worker in state.decodes)

    def _chunk(self, turn: Turn, worker: PrefillWorkerState, record: Record, stop: int, pass_id: int) -> Chunk:
        """The next chunk of a record; on a streamed route the copies follow layer by layer."""
        state = self.state
        start, record.prefilled = record.prefilled, stop
        target, budget = record.prefill_target, state.config.chunk_tokens
        state.because("chunk", request=record.id, start=start, stop=stop, target=target, budget=budget)
        state.backlog -= stop - start
        table = present(record.decode_table if worker.decode else record.prefill_table)
        table.pin(pass_id)
        record.prefill_worker = worker.name.index
        streams = worker.decode is None and state.config.route != "bulk" and record.left > 1
        if streams:
            self.kv_transfers.offer(turn, record, stop, layers_ready=False)
        blocks = tuple(table.blocks[: blocks_for(stop, state.config.block_size)])
        final, index, transfer = stop == target, len(record.generated), record.transfer if streams else None
        tokens = record.tokens[start:stop]
        return Chunk(record.id, start, stop, tokens, blocks, final, index, record.job.sampling, transfer)

    def ended(self, turn: Turn, event: ev.Prefilled | ev.PassFailed) -> bool:
        """A pass has ended: its requests get their first tokens and are handed off, or fail. False: not in flight."""
        state, worker = self.state, self.state.prefills[event.worker.index]
        done = worker.passing
        if done is None or done.id != event.pass_id:
            state.counts["anomalies"] += 1
            return False
        worker.passing = None
        state.deadlines.pop(done.id, None)
        for table in chain.from_iterable(record.tables for record, _ in done.items):
            table.unpin(done.id)
        if isinstance(event, ev.PassFailed):
            for record, _ in done.items:
                cause = f"prefill of request {record.id} failed: {event.error}"
                state.end_open(turn, record.id, Finish.FAILED, cause)
            return True
        state.costs.observe_prefill(done.tokens, event.ended_ns - event.started_ns)
        finals = [record for record, final in done.items if final]
        pairs = zip(finals, event.tokens[: len(finals)], strict=True)
        first = [(record, token) for record, token in pairs if record.finish is None]
        for record, token in first:
            worker.partial.remove(record)
            record.generated.append(token)
        if first:
            requests = tuple(record.id for record, _ in first)
            turn.commands.append(Emit(requests, tuple(token for _, token in first), event.ended_ns))
        for record, _ in first:
            if state.end_if_done(turn, record):
                continue
            if worker.decode is None:
                self.kv_transfers.prefilled(turn, record)
            else:
                present(record.decode_table).commit()
                state.arrive(turn, record)
        return True
