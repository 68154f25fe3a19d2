"""A simulated world that distrusts its controller: memory that remembers who wrote what, and checks after every event.

A block holds, a layer, `(request, table position, tokens filled)`. Prefill chunks write it, copies move it, and each
decode step reads all of it, so that a block freed early, a copy begun late and a part never sent show as wrong content.
Blocks that are free are wiped. Nothing here asks the controller what it believes, except where its pools are checked.
"""

import random
from collections import Counter
from dataclasses import dataclass, fields

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import blocks_for
from disagg.plan.config import Config
from disagg.plan.request import Job, Stage
from disagg.plan.simulator import Speeds, World, fake_token

#: A model of three layers and round costs, so that many things happen at the same instant.
SMALL = Speeds(
    layers=3, token_bytes=6, prefill_pass=90, prefill_token=30, step=200, step_row=10, step_token=0, tail=10,
    copy_byte=1.0,
)  # fmt: skip

NOTICES = (ev.Landed, ev.SourceRead, ev.TransferClosed, ev.Prefilled, ev.Stepped, ev.PassFailed, ev.StepFailed)
PAGING = ("spill", "fetch")
PAGING_STAGES = (Stage.SPILLING, Stage.SPILLED, Stage.FETCHING)


@dataclass(frozen=True)
class Faults:
    """Chances, each of one kind of event; a quiet world has none."""

    copy_fails: float = 0.0
    pass_fails: float = 0.0
    step_fails: float = 0.0
    landing_lost: float = 0.0
    notice_twice: float = 0.0
    notice_unknown: float = 0.0
    cancel: float = 0.0
    paging_fails: float = 0.0  # as copy_fails and cancel, for what is spilled or fetched: rarer stages, higher chances
    cancel_paging: float = 0.0

    @property
    def any(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


class CheckedWorld(World):
    """`seed` draws the order of simultaneous events and which faults strike."""

    def __init__(self, config: Config, speeds=SMALL, steps_in_flight=1, seed=0, faults=Faults()):
        super().__init__(config, speeds, steps_in_flight)
        self.order, self.dice, self.faults = random.Random(seed), random.Random(seed + 1_000_003), faults
        self.jobs: dict[int, Job] = {}
        self.memory: dict = {}  # (place, block) → {layer: (request, position, tokens filled)}
        self.using: dict = {}  # what runs → [(pool, block, request)] that it reads or writes
        self.carried: dict = {}  # a copy in the air → what it read when it began
        self.tables: dict = {}  # decode worker → request → blocks, as the worker mirrors them
        self.running: dict = {}  # (decode worker, step) → [(request, context, blocks)]
        self.passing: dict = {}  # prefill worker → the requests of its pass
        self.hurt: set[int] = set()  # requests that a fault may fail
        self.cancelled: set[int] = set()
        self.commands: list = []
        self.strays = 0  # notices that nobody should have sent
        self.lost = 0
        self.ends: Counter = Counter()
        self.seen: Counter = Counter()  # what happened at least once, for the sometimes-counters
        self._begin_copy = self.traffic.start
        self.traffic.start = self._start_copy

    @property
    def book(self):
        return self.controller.book

    def _tie(self):
        return self.order.random()

    def submit(self, job: Job):
        super().submit(job)
        self.jobs[job.id] = job

    def cancel(self, request: int):
        """Cancels now, in whatever stage the request is."""
        record = self.book.records.get(request)
        if record is not None:
            self.seen[f"cancel {record.stage.value}"] += 1
            self.cancelled.add(request)
        self.take(ev.Cancel(request))

    def retune(self, **changes):
        config = self.book.config.replace(**changes)
        self.take(ev.Retune(config))
        self.traffic.retune(config)
        self.drive_lanes()

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self, limit_steps: int = 30_000):
        """To the end; where only deadlines are left, time goes on to the first."""
        while True:
            while self.step():
                limit_steps -= 1
                assert limit_steps, "the world does not come to an end"
            due = self.book.next_deadline_ns
            if due is None or self.controller.broken:
                break
            self.now_ns = max(self.now_ns, due)
            self.seen["deadline"] += 1
            self.take(ev.Tick())
        super().run()

    def deliver(self, event):
        """The inbox with faults."""
        paging = [record.id for record in self.book.records.values() if record.stage in PAGING_STAGES]
        if paging and self.chance("cancel_paging"):
            self.cancel(self.dice.choice(paging))
        elif self.book.records and self.chance("cancel"):
            self.cancel(self.dice.choice(list(self.book.records)))
        if self.chance("notice_unknown"):
            self.strays += 1
            self.take(self.dice.choice(_unknown(10**9)))
        event = self._spoil(event)
        if event is None:
            return
        self.take(event)
        if isinstance(event, NOTICES) and self.chance("notice_twice"):
            self.strays += 1
            self.at(self.now_ns + self.dice.choice((0, 100, 1000)), self.take, event)

    def take(self, event):
        """One event into the controller, and every check after it."""
        match event:
            case ev.Stepped() | ev.StepFailed() if (event.worker, event.step) in self.running:
                for row in self.running[event.worker, event.step]:
                    self._read_and_write_row(event.worker, *row)
        if isinstance(event, (ev.Stepped, ev.StepFailed)):
            self.running.pop((event.worker, event.step), None)
            self.using.pop((event.worker, event.step), None)
        if isinstance(event, (ev.Prefilled, ev.PassFailed)):
            self.using.pop((event.worker, event.pass_id), None)
        super().deliver(event)
        self.check()

    def chance(self, fault: str) -> bool:
        struck = self.dice.random() < getattr(self.faults, fault)
        self.seen[fault] += struck
        return struck

    def _spoil(self, event):
        """The event, a failure in its place, or None for a notice that gets lost."""
        match event:
            case ev.Prefilled() if self.chance("pass_fails"):
                self.hurt.update(self.passing[event.worker])
                return ev.PassFailed(event.worker, event.pass_id, "fault")
            case ev.Stepped() if self.chance("step_fails"):
                self.hurt.update(row[0] for row in self.running[event.worker, event.step])
                return ev.StepFailed(event.worker, event.step, "fault")
            case ev.Landed() if self.chance("landing_lost"):
                self._hurt_by(event.transfer)
                self.lost += 1
                return None
        return event

    def _hurt_by(self, transfer: int):
        """A hand-off that fails takes its request along; a spill or a fetch does not."""
        if self.book.transfers[transfer].route not in PAGING:
            self.hurt.add(self.book.transfers[transfer].record.id)

    # ---- commands ----------------------------------------------------------------------------------------------------

    def obey(self, command):
        self.commands.append(command)
        match command:
            case cmd.Emit():
                for request in command.requests:
                    assert not self.ends[request], f"a token for request {request} after its end"
            case cmd.Ended():
                self.ends[command.request] += 1
                stages = [stage for _, stage in command.stages]
                self.seen["pause"] += (Stage.RUNNING, Stage.LANDED) in zip(stages, stages[1:], strict=False)
        super().obey(command)

    def _prefill(self, command: cmd.Prefill):
        start, speeds = self._start(command.worker), self.speeds
        super()._prefill(command)
        place, chunks = str(command.worker), command.chunks
        self.passing[command.worker] = [chunk.request for chunk in chunks]
        self.using[command.worker, command.pass_id] = [
            use for chunk in chunks for use in self._uses(place, chunk.blocks, chunk.request)
        ]
        self.seen["chunked prefill"] += any(chunk.start for chunk in chunks)
        tokens = sum(chunk.stop - chunk.start for chunk in chunks)
        layer_ns = (speeds.prefill_pass + tokens * speeds.prefill_token) // speeds.layers
        for layer in range(speeds.layers):
            self.at(start + (layer + 1) * layer_ns - 1, self._write_layer, place, chunks, layer)

    def _write_layer(self, place: str, chunks, layer: int):
        size = self.config.block_size
        for chunk in chunks:
            for position, block in enumerate(chunk.blocks):
                if position < chunk.start // size:
                    self._expect(place, block, layer, (chunk.request, position, size))
                else:
                    filled = min(size, chunk.stop - position * size)
                    self.memory.setdefault((place, block), {})[layer] = (chunk.request, position, filled)

    def _decode(self, command: cmd.Decode):
        place, tables = str(command.worker), self.tables.setdefault(command.worker, {})
        for request in command.left:
            del tables[request]
        for join in command.joins:
            tables[join.request] = list(join.blocks)
            self._expect_all(place, join.request, join.context, join.blocks)
        for request, block in command.grown:
            tables[request].append(block)
        super()._decode(command)
        batch = self._batches[command.worker]
        rows = [(r, batch[r][0] - 1, tuple(tables[r])) for group in command.groups for r in group]
        self.running[command.worker, command.step] = rows
        self.using[command.worker, command.step] = [u for r, _, blocks in rows for u in self._uses(place, blocks, r)]
        assert sorted(r for r, _, _ in rows) == sorted(tables), "the worker's batch is not the step's rows"

    def _read_and_write_row(self, worker, request: int, context: int, blocks):
        place, size = str(worker), self.config.block_size
        self._expect_all(place, request, context, blocks)
        position = context // size
        block = self.memory.setdefault((place, blocks[position]), {})
        for layer in range(self.speeds.layers):
            block[layer] = (request, position, context % size + 1)

    def _expect_all(self, place: str, request: int, context: int, blocks):
        size = self.config.block_size
        for position in range(blocks_for(context, size)):
            filled = min(size, context - position * size)
            for layer in range(self.speeds.layers):
                self._expect(place, blocks[position], layer, (request, position, filled))

    def _expect(self, place: str, block: int, layer: int, wanted: tuple):
        found = self.memory.get((place, block), {}).get(layer)
        assert found == wanted, f"{place} block {block} layer {layer} holds {found}, read as {wanted}"

    # ---- copies ------------------------------------------------------------------------------------------------------

    def _start_copy(self, lane: str):
        if lane.startswith("down") and self.traffic.waiting(lane) and not self.traffic.ring.available:
            self.seen["ring full"] += 1
        flight = self._begin_copy(lane)
        if flight is not None:
            piece, uses = flight.piece, []
            if not self._from_ring(flight):
                uses += self._uses(str(piece.source), piece.blocks, piece.request)
            if flight.target is not None:
                uses += self._uses(str(flight.target), flight.target_blocks, piece.request)
            self.using[flight] = uses
            self.carried[flight] = self._read(flight)
        return flight

    def land(self, flight):
        piece = flight.piece
        paging = self.book.transfers[piece.transfer].route in PAGING
        if self.chance("paging_fails" if paging else "copy_fails"):
            self._hurt_by(piece.transfer)
            self.take(ev.TransferFailed(piece.transfer, "fault"))
            del self.using[flight], self.carried[flight]
            for notice in self.traffic.finish(flight):
                self.deliver(notice)
            self.drive_lanes()
            return
        carried = self.carried.pop(flight)
        assert carried == self._read(flight), f"{flight.lane}: the source changed under a copy of {piece}"
        for (index, layer), held in carried.items():
            wanted = piece.request, piece.block + index
            assert held is not None and held[:2] == wanted, f"{flight.lane} carries {held} as {wanted}, layer {layer}"
            if flight.lane.startswith("down"):
                self.memory.setdefault(("ring", flight.slot, index), {})[layer] = held
            else:
                self.memory.setdefault((str(flight.target), flight.target_blocks[index]), {})[layer] = held
        del self.using[flight]
        super().land(flight)

    def _from_ring(self, flight) -> bool:
        return flight.slot is not None and flight.lane.startswith("up")

    def _read(self, flight) -> dict:
        piece, ring = flight.piece, self._from_ring(flight)
        return {
            (index, layer): self.memory.get(("ring", flight.slot, index) if ring else (str(piece.source), block), {})
            .get(layer)
            for index, block in enumerate(piece.blocks)
            for layer in range(piece.layer, piece.layer_end)
        }  # fmt: skip

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _pool(self, place: str):
        role, index = place.split()
        seats = {"prefill": self.book.prefills, "decode": self.book.decodes}.get(role)
        return self.book.host if seats is None else seats[int(index)].pool

    def _uses(self, place: str, blocks, request: int) -> list:
        pool = self._pool(place)
        return [(pool, block, request) for block in blocks]

    def check(self):
        """Conservation, and InUse: nothing that still runs touches a block that is free or somebody else's."""
        self.book.check()
        self.traffic.ring.check()
        for pool in self.book.pools():
            assert sum(pool.counts().values()) == pool.total, pool.counts()
            name = "host 0" if pool is self.book.host else pool.name
            for block in pool._free:
                self.memory.pop((name, block), None)
        for what, uses in self.using.items():
            for pool, block, request in uses:
                assert pool._owner[block] == request, (
                    f"{what} uses {pool.name} block {block} of request {request}, owned by {pool._owner[block]}"
                )

    def check_drained(self):
        """Nothing held, nothing running, nothing owed, and everybody ended once."""
        book, traffic = self.book, self.traffic
        for pool in (*book.pools(), traffic.ring):
            assert pool.held == 0, f"{pool.name} still holds blocks: {pool.counts()}"
        assert not book.records and not book.transfers, (book.records, book.transfers)
        assert not traffic.journeys and not any(lane.ready for lane in traffic.lanes.values()), traffic.journeys
        assert book.next_deadline_ns is None and book.backlog == 0, (book.next_deadline_ns, book.backlog)
        assert +book.population == Counter({Stage.ENDED: len(self.jobs)}), book.population
        assert not any(len(queue) for queue in book.queues())
        assert not any(seat.rows or seat.steps for seat in book.decodes)
        assert not any(seat.partial or seat.passing for seat in book.prefills)
        assert not self.using and not self.carried and not self.running
        assert self.ends == Counter(list(self.jobs)), f"ends a request: {self.ends}"

    def check_answers(self):
        """Tokens equal the fake model's; only those that a fault or a cancel touched may end early."""
        assert self.book.counts["anomalies"] == self.strays, (self.book.counts, self.strays)
        assert self.book.counts["padding_mismatches"] == 0
        for index, job in self.jobs.items():
            result, answer, reason = self.results[index], *answer_of(job)
            if result.finish_reason == "failed":
                assert index in self.hurt, f"a bystander failed: {result}"
                assert str(index) in result.error, f"the failure names nobody: {result.error}"
            elif result.finish_reason == "cancelled":
                assert index in self.cancelled, f"nobody cancelled {result}"
            else:
                assert (result.finish_reason, result.token_ids) == (reason, answer), f"{result}, not {reason} {answer}"
            assert result.token_ids == answer[: len(result.token_ids)], f"{result}, not {answer}"


def answer_of(job: Job) -> tuple[list[int], str]:
    """What the fake model answers, and how the answer ends."""
    tokens = []
    while len(tokens) < job.max_new_tokens:
        tokens.append(fake_token(job.id, len(tokens)))
        if tokens[-1] in job.eos_ids:
            return tokens, "eos"
    return tokens, "length"


def _unknown(number: int) -> list:
    """Notices about things that never were."""
    prefill, decode = cmd.Worker("prefill", 0), cmd.Worker("decode", 0)
    return [
        ev.Landed(number, (ev.Part(0, 1, 0, 1),), 1, 1), ev.SourceRead(number), ev.TransferFailed(number, "fault"),
        ev.TransferClosed(number), ev.Prefilled(prefill, number, (), 0, 1), ev.PassFailed(prefill, number, "fault"),
        ev.Stepped(decode, number, (), 0, 1, 0, 0), ev.StepFailed(decode, number, "fault"),
    ]  # fmt: skip
