"""The next pass of a prefill worker: which requests are admitted, and which chunks share the pass.

Notebook: notebooks/01_baseline.ipynb.
"""

from itertools import chain

from disagg.plan import events as ev
from disagg.plan.blocks import Table, blocks_for
from disagg.plan.checks import present
from disagg.plan.commands import Chunk, Decode, Emit, Prefill, Turn
from disagg.plan.kv_transfers import KVTransfers
from disagg.plan.queues import BATCH_SLOT, WINDOW, chunk_stop
from disagg.plan.request import Finish, Record, Stage
from disagg.plan.state import ControllerState, beside
from disagg.plan.worker_state import Pass, PrefillWorkerState

#: Stages between the queue and the batch.
ON_THE_WAY = tuple(stage for stage in Stage if stage not in (Stage.QUEUED, Stage.RUNNING, Stage.ENDED))


class PrefillScheduler:
    def __init__(self, state: ControllerState, kv_transfers: KVTransfers) -> None:
        self.state, self.kv_transfers = state, kv_transfers

    def fill(self, turn: Turn, worker: PrefillWorkerState) -> bool:
        """Starts a pass of chunks up to the token budget; True where there was a chunk."""
        return not worker.passing and self.start(
            turn, worker, self.compose(turn, worker, self.state.config.chunk_tokens)
        )

    def compose(self, turn: Turn, worker: PrefillWorkerState, budget: int) -> list[Chunk]:
        """The chunks of the next pass, which is at hand from now on."""
        pass_id = self.state.new_id()
        items: list[tuple[Record, bool]] = []
        chunks: list[Chunk] = []
        for record, stop in self._shares(worker, budget):
            if record in worker.partial or self._admit(turn, worker, record):
                chunks.append(self._chunk(turn, worker, record, stop, pass_id))
                items.append((record, chunks[-1].final))
        if chunks:
            worker.passing = Pass(pass_id, tuple(items), sum(chunk.stop - chunk.start for chunk in chunks))
        return chunks

    def start(self, turn: Turn, worker: PrefillWorkerState, chunks: list[Chunk], step: Decode | None = None) -> bool:
        """Issues the pass at hand; the rows of `step` decode in it, as chunks of one token."""
        if not worker.passing:
            return False
        worker.passing = worker.passing._replace(step=step, beside=beside(self.state, worker))
        self.state.deadlines.start(turn, worker.passing.id, worker)
        rows = present(worker.decode).row_chunks() if step else []
        turn.commands.append(Prefill(worker.name, worker.passing.id, (*chunks, *rows), turn.now_ns, step))
        return True

    def _shares(self, worker: PrefillWorkerState, budget: int) -> list[tuple[Record, int]]:
        """The requests of the next pass, each with where its chunk ends, as the policy shares the budget out."""
        ready = sorted([*worker.partial, *self._admissible(worker)], key=lambda record: record.priority)
        if not ready:
            return []
        seen = tuple(record.seen(record.prefill_target - record.prefilled) for record in ready)
        by_id = {record.id: record for record in ready}
        size, going = self.state.config.block_size, []
        shares = self.state.policy.share(budget, seen)
        for request, tokens in shares:
            record = by_id[request]
            stop = chunk_stop(record.prefilled, record.prefill_target, tokens, size)
            if stop > record.prefilled:
                going.append((record, stop))
            elif record is ready[0] and tokens > 0 and sum(share for _, share in shares) == budget:
                # Less than a block is left to the first in turn: it goes alone, or never.
                return [(record, chunk_stop(record.prefilled, record.prefill_target, budget, size))]
        self.state.policy.idle |= not going
        return going

    def _admissible(self, worker: PrefillWorkerState) -> list[Record]:
        """The first requests of the queue for which there are places in the batch and blocks, all together; the first
        that lacks either holds up those behind it, and names its gate."""
        available = worker.pool.available
        found: list[Record] = []
        worker.queue.gate = ""
        for record in worker.queue.first(WINDOW):
            need, reserve = self._blocks(worker, record)
            ahead, limit = self._places(worker, record)
            available -= need
            if limit is not None and ahead + len(found) >= limit:
                worker.queue.gate = record.gate = BATCH_SLOT
                self.state.because("admit: no slot", request=record.id, ahead=ahead + len(found), limit=limit)
                break
            if available < reserve:
                worker.queue.gate = record.gate = worker.pool.gate
                names = {"request": record.id, "need": need, "pool": worker.pool.name}
                self.state.because("admit: no block", available=available + need, **names)
                break
            found.append(record)
        return found

    def _blocks(self, worker: PrefillWorkerState, record: Record) -> tuple[int, int]:
        """Blocks that its prefill takes, and how many must stay free."""
        need = blocks_for(record.prefill_target + record.stays, self.state.config.block_size)
        return need, worker.decode.growth if worker.decode else 0

    def _admit(self, turn: Turn, worker: PrefillWorkerState, record: Record) -> bool:
        """Reserves the blocks of the whole prompt. False: those before it in this pass have taken what was free."""
        need, reserve = self._blocks(worker, record)
        available = worker.pool.available
        if available < need + reserve or not self._reserve_target(record):
            return False
        table = Table.reserve(worker.pool, need, record.id)
        if record.stays:
            record.decode_table = table
        else:
            record.prefill_table = table
        self.state.because("admit", request=record.id, need=need, available=available, pool=worker.pool.name)
        worker.queue.remove(record)
        worker.partial.append(record)
        self.state.move(turn, record, Stage.PREFILLING)
        return True

    def _reserve_target(self, record: Record) -> bool:
        """A request that goes from one worker that does both to another gets its blocks there at once: two such workers
        would else wait for each other's."""
        if record.stays or not self.state.config.colocated:
            return True
        worker = self.state.decodes[present(record.decode_worker)]
        record.decode_table = self.kv_transfers.reserve(worker, record, record.prefill_target + 1)
        return record.decode_table is not None

    def _places(self, worker: PrefillWorkerState, record: Record) -> tuple[int, int | None]:
        """Back-pressure: the requests that will have a place in the batch when this one comes, and the places; None
        where nothing limits them, that is on two devices without a latency target.

        With a target a row counts only if it will still be there, by the tokens that it may have at most."""
        state, most = self.state, self.state.config.max_batch
        if worker.decode is not None:
            landed = worker.decode.landed.before(record.priority)
            return len(worker.decode.rows) + landed + len(worker.partial), worker.decode.room(most)
        if state.config.itl_target_s is None:
            return 0, None
        seconds = state.speed_of(worker).predict(0, record.prefill_target)
        on_the_way = sum(state.population[stage] for stage in ON_THE_WAY)
        rows = sum(decode.rows_after(seconds) for decode in state.decodes)
        return on_the_way + rows, sum(decode.room(most) for decode in state.decodes)

    def _chunk(self, turn: Turn, worker: PrefillWorkerState, record: Record, stop: int, pass_id: int) -> Chunk:
        """The next chunk of a record; on a streamed route the copies follow layer by layer."""
        state = self.state
        start, record.prefilled = record.prefilled, stop
        target, budget = record.prefill_target, state.config.chunk_tokens
        state.because("chunk", request=record.id, start=start, stop=stop, target=target, budget=budget)
        worker.queue.tokens -= stop - start
        table = present(record.decode_table if record.stays else record.prefill_table)
        table.pin(pass_id)
        record.prefill_worker = worker.name.index
        streams = not record.stays and state.config.route != "bulk" and record.left > 1
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
        rows, shared = len(event.tokens) - sum(final for _, final in done.items), done.beside or beside(state, worker)
        worker.observe(rows, done.tokens, event.started_ns, event.ended_ns, shared)
        finals = [record for record, final in done.items if final]
        pairs = zip(finals, event.tokens[: len(finals)], strict=True)
        first = [(record, token) for record, token in pairs if record.finish is None]
        for record, token in first:
            worker.partial.remove(record)
            record.generated.append(token)
            record.first_ns = record.first_ns or event.ended_ns
        if first:
            requests = tuple(record.id for record, _ in first)
            turn.commands.append(Emit(requests, tuple(token for _, token in first), event.ended_ns))
        for record, _ in first:
            if state.end_if_done(turn, record):
                continue
            if not record.stays:
                self.kv_transfers.prefilled(turn, record)
            else:
                present(record.decode_table).commit()
                state.arrive(turn, record)
        return True
