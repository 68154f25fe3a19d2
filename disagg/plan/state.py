"""The controller's state: every request, transfer, queue, pool and deadline, and the few moves that all share."""

from collections import Counter
from collections.abc import Callable

from disagg.plan.batching import Composer, Padding
from disagg.plan.blocks import BlockPool, Table, blocks_for
from disagg.plan.commands import Abort, Ended, Worker
from disagg.plan.config import Config
from disagg.plan.describe import Reason
from disagg.plan.preemption import Costs
from disagg.plan.queues import POLICIES, Queue
from disagg.plan.request import Finish, Job, Record, Stage
from disagg.plan.spans import BlockMove
from disagg.plan.transfer import Transfer
from disagg.plan.worker_state import DecodeWorkerState, PrefillWorkerState


class ControllerState:
    """State and bookkeeping; what happens next is decided in prefilling, movement and decoding."""

    def __init__(
        self, config: Config, *, layers: int, token_bytes: int, steps_in_flight: int, pads: bool = True
    ) -> None:
        self.config, self.layers, self.token_bytes = config, layers, token_bytes
        self.steps_in_flight, self._pads = steps_in_flight, pads
        key = POLICIES[config.policy]
        self.moves: list = []  # the recordings that moves of blocks are written to
        self.on_move: Callable[[BlockMove], None] | None = None  # who hears of them besides: the detectors
        self.reasons: list[Reason] | None = None  # where rules that fire are written, if anybody asks why
        self.host = self._pool("host", config.host_blocks)
        self.decodes = [self._decode_seat(index, key) for index in range(config.decode_workers)]
        shared = Queue(key)
        self.prefills = [
            PrefillWorkerState(Worker("prefill", index), self._pool(f"prefill {index}", config.prefill_blocks), shared)
            for index in range(config.prefill_workers)
        ] or [PrefillWorkerState(seat.worker, seat.pool, Queue(key), seat) for seat in self.decodes]
        self.wanting = Queue(key)  # hand-offs and spilled requests that want blocks on a decode device
        self.records: dict[int, Record] = {}
        self.transfers: dict[int, Transfer] = {}
        self.costs = Costs(*config.links)
        self.padding = Padding()
        self.counts: Counter[str] = Counter()  # spills, fetches, recomputes, anomalies, …
        self.population: Counter[Stage] = Counter()
        self.eos_ids: frozenset[int] = frozenset()
        self.backlog = 0  # tokens that wait for prefill
        self.now_ns = 0
        self.out: list = []  # commands of the event in hand
        self._arrivals = 0
        self._ids = 0
        self._due: dict[int, tuple[int, str, object]] = {}  # activity → (deadline, kind, what), the earliest first

    def _decode_seat(self, index: int, key) -> DecodeWorkerState:
        config = self.config
        pool = self._pool(f"decode {index}", config.decode_blocks)
        composer = Composer(config.itl_target_s) if config.itl_target_s else None
        return DecodeWorkerState(Worker("decode", index), pool, Queue(key), config.block_size, config.bins, composer,
                          pads=self._pads)  # fmt: skip

    def _pool(self, name: str, blocks: int) -> BlockPool:
        return BlockPool(name, blocks, self._moved)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def enter(self, job: Job) -> None:
        """A new request; colocated, requests go round robin over the devices."""
        record = Record(job, prefill_target=len(job.prompt), stages=[(self.now_ns, Stage.QUEUED)])
        self.records[record.id] = record
        self.population[Stage.QUEUED] += 1
        self.eos_ids |= job.eos_ids
        if self.config.colocated:
            record.seat = self._arrivals % len(self.decodes)
        self._arrivals += 1
        self.enqueue(record)

    def enqueue(self, record: Record) -> None:
        self.backlog += record.prefill_target - record.prefilled
        self.prefills[record.seat if self.config.colocated else 0].queue.push(record)

    def arrive(self, record: Record) -> None:
        """Its K/V are complete on its seat; it waits for a place in the batch."""
        self.move(record, Stage.LANDED)
        self.decodes[record.seat].landed.push(record)

    def move(self, record: Record, stage: Stage, gate: str = "") -> None:
        self.population[record.stage] -= 1
        self.population[stage] += 1
        record.move(stage, self.now_ns, gate)

    def end_if_done(self, record: Record) -> bool:
        """Ends a request whose last token is an end-of-sequence or the last one allowed."""
        if record.generated[-1] in record.job.eos_ids:
            self.end(record, Finish.EOS)
        elif record.left == 0:
            self.end(record, Finish.LENGTH)
        return record.finish is not None

    def end(self, record: Record, finish: Finish, error: str | None = None) -> None:
        """Settles a request at once. Its blocks go back when nothing touches them any more."""
        if record.stage in (Stage.QUEUED, Stage.PREFILLING):
            self.backlog -= record.prefill_target - record.prefilled
        record.finish = finish
        self.move(record, Stage.ENDED)
        for queue in self.queues():
            queue.remove(record)
        for seat in self.prefills:
            if record in seat.partial:
                seat.partial.remove(record)
        if record.decode_table is not None:
            seat = self.decodes[record.seat]
            seat.pin_in_flight(record)
            seat.leave(record)
        if record.transfer is not None:
            self.abort(self.transfers[record.transfer])
        for table in record.tables:
            table.release()
        waits = any(table.pins for table in record.tables)
        blocks = "wait for what still reads or writes them" if waits else "are free at once"
        self.because("end", request=record.id, finish=finish.value, blocks=blocks)
        del self.records[record.id]
        self.out.append(Ended(record.id, finish, error, self.now_ns, tuple(record.stages), record.seat))

    def drop(self, record: Record, *names: str) -> None:
        """The record gives up these tables."""
        for name in names:
            table = getattr(record, name)
            if table is not None:
                table.release()
                setattr(record, name, None)

    # ---- transfers, blocks, deadlines --------------------------------------------------------------------------------

    def abort(self, transfer: Transfer) -> None:
        """Its copies stop; until it is closed, whatever they touch stays in quarantine."""
        if not transfer.aborted:
            transfer.aborted = True
            self.out.append(Abort(transfer.id))
            self.settle(transfer.id)
            self.deadline(transfer.id, "close", transfer)

    def reserve_decode(self, seat: DecodeWorkerState, record: Record, tokens: int) -> Table | None:
        """Blocks for `tokens` on a seat, which leave rows some to grow into; None if they are not there.

        The first landed request that needs a block goes before: it may be what the others were preempted for.
        """
        need = blocks_for(tokens, self.config.block_size)
        first = seat.landed.peek()
        growth = len(seat.rows) // 4 + (first is not None and seat.is_full(first))
        enough = seat.pool.available >= need + growth
        self.because(
            "target" if enough else "target: no block",
            request=record.id, need=need, growth=growth, available=seat.pool.available, pool=seat.pool.name,
        )  # fmt: skip
        if not enough:
            record.gate = seat.pool.gate
            return None
        return Table.reserve(seat.pool, need, record.id)

    def _moved(self, pool: str, blocks: tuple[int, ...], owner: int | None, state: str) -> None:
        if not self.moves and self.on_move is None:
            return
        move = BlockMove(self.now_ns, pool, state, owner, blocks)
        for recording in self.moves:
            recording.append(move)
        if self.on_move is not None:
            self.on_move(move)

    def because(self, rule: str, **numbers) -> None:
        """Notes a rule that fired, where anybody asks why."""
        if self.reasons is not None:
            self.reasons.append(Reason(rule, numbers))

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def deadline(self, activity: int, kind: str, what: object) -> None:
        """Starts the deadline of a pass, step or transfer; it never moves but for time in which nobody could run."""
        self._due[activity] = (self.now_ns + round(self.config.watchdog_s * 1e9), kind, what)

    def postpone(self, lost_ns: int) -> None:
        """All deadlines move by time in which nobody could run."""
        self._due = {activity: (due + lost_ns, kind, what) for activity, (due, kind, what) in self._due.items()}

    def settle(self, activity: int) -> None:
        self._due.pop(activity, None)

    def settle_all(self) -> None:
        """Nobody waits for anything any more."""
        self._due.clear()

    @property
    def under_way(self) -> bool:
        """Is any pass, step or transfer being carried out?"""
        return bool(self._due)

    @property
    def next_deadline_ns(self) -> int | None:
        return next(iter(self._due.values()))[0] if self._due else None

    def overdue(self) -> tuple[str, object] | None:
        """Takes out the first activity whose deadline has passed. All limits are equal, so the order is the start's."""
        if self._due:
            activity, (deadline, kind, what) = next(iter(self._due.items()))
            if deadline <= self.now_ns:
                del self._due[activity]
                return kind, what
        return None

    # ---- views -------------------------------------------------------------------------------------------------------

    def queues(self) -> list[Queue]:
        waiting = {id(seat.queue): seat.queue for seat in self.prefills}.values()
        return [*waiting, self.wanting, *(seat.landed for seat in self.decodes)]

    def pools(self) -> list[BlockPool]:
        return [*{id(seat.pool): seat.pool for seat in (*self.prefills, *self.decodes)}.values(), self.host]

    def check(self) -> None:
        """Conservation in every pool and table; raises AssertionError with the numbers."""
        for pool in self.pools():
            pool.check()
        for record in self.records.values():
            for table in record.tables:
                table.check()
