"""The controller's state: requests, transfers, queues, pools and deadlines, and the changes that schedulers share."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from disagg.plan.batching import Padding, StepModel
from disagg.plan.blocks import BlockPool, MoveListener
from disagg.plan.checks import present
from disagg.plan.commands import Abort, Ended, Turn, Worker
from disagg.plan.config import Config
from disagg.plan.events import Probed
from disagg.plan.policy import Decider, named
from disagg.plan.preemption import PreemptionCosts
from disagg.plan.queues import Queue
from disagg.plan.request import Finish, Job, Priority, Record, Stage
from disagg.plan.transfer import Transfer
from disagg.plan.worker_state import DecodeWorkerState, PrefillWorkerState

#: A deadline is for a worker's pass or step, or for a transfer to land or, once aborted, to close.
Due = PrefillWorkerState | DecodeWorkerState | Transfer

Reason = tuple[str, dict[str, object]]  # a rule that fired, and the numbers that it compared


class Deadlines(dict[int, tuple[int, Due]]):
    """By pass, step or transfer in flight: when it must end. One limit for all: the first to begin is due first."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns

    def start(self, turn: Turn, activity: int, due: Due) -> None:
        """Sets a deadline, which only `postpone` moves."""
        self[activity] = (turn.now_ns + self._limit_ns, due)

    def postpone(self, lost_ns: int) -> None:
        """Moves all deadlines by the time in which this process did not run."""
        self.update({activity: (at_ns + lost_ns, due) for activity, (at_ns, due) in self.items()})

    @property
    def next_ns(self) -> int | None:
        """None where no pass, step or transfer is in flight."""
        return next(iter(self.values()))[0] if self else None

    def overdue(self, turn: Turn) -> Due | None:
        for activity, (at_ns, due) in self.items():
            if at_ns > turn.now_ns:
                break
            del self[activity]
            return due
        return None


class ControllerState:
    """State and bookkeeping. The schedulers and KVTransfers decide."""

    def __init__(self, config: Config, layers: int, token_bytes: int, steps_in_flight: int, pads: bool = True) -> None:
        self.config, self.layers, self.token_bytes = config, layers, token_bytes
        self.steps_in_flight, self._pads = steps_in_flight, pads
        self.policy = Decider(named(config.policy))
        self.on_move: list[MoveListener] = []
        self.reasons: list[Reason] | None = None  # None: they are not kept
        self.host = self._pool("host", config.host_blocks)
        self.decodes = [self._decode_worker(index) for index in range(config.decode_workers)]
        shared = Queue()
        self.prefills = [
            PrefillWorkerState(Worker("prefill", index), self._pool(f"prefill {index}", config.prefill_blocks), shared)
            for index in range(config.prefill_workers)
        ] or [PrefillWorkerState(decode.name, decode.pool, Queue(), decode) for decode in self.decodes]
        self.wanting = Queue()  # requests in hand-off or spilled that wait for blocks on a decode device
        self.records: dict[int, Record] = {}
        self.transfers: dict[int, Transfer] = {}
        self.costs = PreemptionCosts(*config.links)
        self.padding = Padding()
        self.counts: Counter[str] = Counter()  # spills, fetches, recomputes, anomalies, …
        self.population: Counter[Stage] = Counter()
        self.eos_ids: frozenset[int] = frozenset()
        self.arrivals = 0
        self._arrived_tokens = 0
        self._ids = 0
        self.deadlines = Deadlines(round(config.watchdog_s * 1e9))

    def _decode_worker(self, index: int) -> DecodeWorkerState:
        config, pool = self.config, self._pool(f"decode {index}", self.config.decode_blocks)
        shape = pool, Queue(), config.block_size, config.bins
        worker = DecodeWorkerState(Worker("decode", index), *shape, pads=self._pads)
        worker.retune(config.bins, config.itl_target_s)
        return worker

    def _pool(self, name: str, blocks: int | None) -> BlockPool:
        return BlockPool(name, present(blocks), self.on_move)

    def retune(self, config: Config) -> None:
        """New settings from now on; a pool that shrinks drains."""
        self.config, self.policy = config, Decider(named(config.policy))
        for pool in self.pools():
            pool.capacity = min(pool.total, getattr(config, pool.setting))
        for decode in self.decodes:
            decode.retune(config.bins, config.itl_target_s)
        self.costs.out, self.costs.back = config.links
        for record in self.records.values():
            record.priority = self.priority(record)
        for queue in self.queues():
            queue.reorder()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def enter(self, turn: Turn, job: Job) -> Record:
        """A new request, which is in no queue yet."""
        stages, before = [(turn.now_ns, Stage.QUEUED)], self._arrived_tokens
        record = Record(job, prefill_target=len(job.prompt), stages=stages, arrived_before=before)
        self._arrived_tokens += len(job.prompt) + job.max_new_tokens
        self.records[record.id] = record
        self.population[Stage.QUEUED] += 1
        self.eos_ids |= job.eos_ids
        self.arrivals += 1
        return record

    def priority(self, record: Record) -> Priority:
        return self.policy.order(record.seen(record.prefill_target - record.prefilled))

    def wait(self, queue: Queue, record: Record) -> None:
        """In a queue, in its place by policy."""
        record.priority = self.priority(record)
        queue.push(record)

    def queue_of(self, record: Record) -> Queue:
        """Where it waits for prefill: with the worker that it was placed on, or with all that only prefill."""
        return self.prefills[record.prefill_worker or 0].queue

    def enqueue(self, record: Record) -> None:
        queue = self.queue_of(record)
        queue.tokens += record.prefill_target - record.prefilled
        self.wait(queue, record)

    def arrive(self, turn: Turn, record: Record) -> None:
        """Its K/V are complete on its decode device."""
        self.move(turn, record, Stage.LANDED)
        self.wait(self.decodes[present(record.decode_worker)].landed, record)

    def move(self, turn: Turn, record: Record, stage: Stage, gate: str = "") -> None:
        self.population[record.stage] -= 1
        self.population[stage] += 1
        record.move(stage, turn.now_ns, gate)

    def end_if_done(self, turn: Turn, record: Record) -> bool:
        """Ends a request whose last token is an end-of-sequence or the last one allowed."""
        if record.generated[-1] in record.job.eos_ids:
            self.end(turn, record, Finish.EOS)
        elif record.left == 0:
            self.end(turn, record, Finish.LENGTH)
        return record.finish is not None

    def end_open(self, turn: Turn, request: int, finish: Finish, error: str | None = None) -> bool:
        """As `end`, by the request's number; False where it has ended already."""
        record = self.records.get(request)
        if record is not None:
            self.end(turn, record, finish, error)
        return record is not None

    def end(self, turn: Turn, record: Record, finish: Finish, error: str | None = None) -> None:
        """Ends a request at once; its blocks are free after their last unpin."""
        queue = self.queue_of(record)
        if record in queue or record.stage is Stage.PREFILLING:  # one that is rejected never entered it
            queue.tokens -= record.prefill_target - record.prefilled
        record.finish = finish
        self.move(turn, record, Stage.ENDED)
        for queue in self.queues():
            queue.remove(record)
        for prefill in self.prefills:
            if record in prefill.partial:
                prefill.partial.remove(record)
        if record.decode_table is not None:
            decode = self.decodes[present(record.decode_worker)]
            decode.pin_in_flight(record, record.decode_table)
            decode.leave(record)
        if record.transfer is not None:
            self.abort(turn, self.transfers[record.transfer])
        for table in record.tables:
            table.release()
        waits = any(table.pins for table in record.tables)
        blocks = "wait for what still reads or writes them" if waits else "are free at once"
        self.because("end", request=record.id, finish=finish.value, blocks=blocks)
        del self.records[record.id]
        stages = tuple(record.stages)
        turn.commands.append(Ended(record.id, finish, error, turn.now_ns, stages, record.decode_worker))

    # ---- transfers, blocks -------------------------------------------------------------------------------------------

    def open_transfer(self, record: Record) -> Transfer | None:
        """Its hand-off, spill or fetch."""
        return None if record.transfer is None else self.transfers.get(record.transfer)

    def abort(self, turn: Turn, transfer: Transfer) -> None:
        """No further copy starts; blocks that its copies still use are in quarantine until it is closed."""
        if not transfer.aborted:
            transfer.aborted = True
            turn.commands.append(Abort(transfer.id))
            self.deadlines.pop(transfer.id, None)
            self.deadlines.start(turn, transfer.id, transfer)

    def because(self, rule: str, **numbers: object) -> None:
        """Keeps the reason for a decision, where reasons are kept."""
        if self.reasons is not None:
            self.reasons.append((rule, numbers))

    def is_anomaly(self, notice: bool) -> bool:
        """Counts a notice that is late, repeated, or about a request or transfer that is not open."""
        if notice:
            self.counts["anomalies"] += 1
        return notice

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def probed(self, rates: Probed) -> None:
        """Rates that were measured before the first request."""
        if rates.copy_ns_per_byte is not None:
            self.costs.copy_ns_per_byte = rates.copy_ns_per_byte
        for decode in self.decodes:
            for rows, tokens, took_ns in rates.steps:
                decode.speed.observe(rows, tokens, took_ns / 1e9)
        for tokens, took_ns in rates.passes:
            for worker in self.prefills:
                worker.speed.observe(0, tokens, took_ns / 1e9)

    def speed_of(self, worker: PrefillWorkerState) -> StepModel:
        """Its passes' speed; that of another worker while it has had none."""
        return max((worker, *self.prefills), key=lambda known: (known.speed.seen > 0, known is worker)).speed

    @property
    def backlog(self) -> int:
        """Tokens that wait for prefill."""
        return sum(queue.tokens for queue in {id(w.queue): w.queue for w in self.prefills}.values())

    # ---- views -------------------------------------------------------------------------------------------------------

    def queues(self) -> list[Queue]:
        waiting = {id(worker.queue): worker.queue for worker in self.prefills}.values()
        return [*waiting, self.wanting, *(worker.landed for worker in self.decodes)]

    def pools(self) -> list[BlockPool]:
        workers: Sequence[PrefillWorkerState | DecodeWorkerState] = [*self.prefills, *self.decodes]
        return [*{id(worker.pool): worker.pool for worker in workers}.values(), self.host]

    def check(self) -> None:
        """Conservation in every pool and table; raises AssertionError with the numbers."""
        for pool in self.pools():
            pool.check()
        for table in chain.from_iterable(record.tables for record in self.records.values()):
            table.check()


def beside(state: ControllerState, worker: PrefillWorkerState | DecodeWorkerState) -> bool:
    """Does a worker of another device compute now?"""
    decode = worker.decode if isinstance(worker, PrefillWorkerState) else worker
    passes = any(other.passing and other is not worker and other.decode is not worker for other in state.prefills)
    return passes or any(other.steps and other is not decode for other in state.decodes)
