"""A simulated world that distrusts its controller: every detector, memory that remembers, and a plan of faults.

One thread, one heap, one seed: it draws the order of simultaneous events. The controller is the shipped one. Whatever
goes wrong, `finish` wants every request ended once and for a reason, the others' tokens right, and nothing held.
Notebook: notebooks/00_start_here.ipynb.
"""

import random
from collections import Counter

from disagg.monitor.fault_plan import FaultPlan
from disagg.monitor.monitor import Monitor
from disagg.monitor.shadow_memory import FLIPPED, Memory
from disagg.monitor.violation import InvariantViolation
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.link import LaneName, LaneRole
from disagg.plan.request import Job, Stage
from disagg.twin.simulated_engine import SimulatedEngine, Speeds, fake_token

#: A model of three layers and round costs, so that many things happen at the same instant.
SMALL = Speeds(
    layers=3, token_bytes=6, prefill_pass=90, prefill_token=30, step=200, step_row=10, step_token=0, tail=10,
    copy_byte=1.0,
)  # fmt: skip

NOTICES = (ev.Landed, ev.SourceRead, ev.TransferClosed, ev.Prefilled, ev.Stepped, ev.PassFailed, ev.StepFailed)
OUT_OF_ORDER = (ev.Landed, ev.SourceRead, ev.TransferClosed)  # a worker's own answers come in order
PAGING = ("spill", "fetch")
PAGED = (Stage.SPILLING, Stage.SPILLED, Stage.FETCHING)
STALL_NS = 50_000


class CheckedSimulation(SimulatedEngine):
    """`seed` draws the order of simultaneous events; `faults` says what goes wrong."""

    def __init__(self, config: Config, speeds: Speeds = SMALL, steps_in_flight: int = 1, seed: int = 0,
                 faults: FaultPlan | None = None, record: bool = True) -> None:  # fmt: skip
        super().__init__(config, speeds, steps_in_flight, record)
        self.log: list = []  # (when, event): the controller's only input
        self.order, self.faults = random.Random(seed), faults or FaultPlan()
        self.watch = Monitor(config, layers=speeds.layers)
        self.memory = Memory(speeds.layers, config.block_size)
        self.state.on_move = self._moved
        self.jobs: dict[int, Job] = {}
        self.carried: dict = {}  # a copy in the air → what it read when it began
        self.tables: dict = {}  # decode worker → request → blocks, as the worker mirrors them
        self.running: dict = {}  # (decode worker, step) → [(request, context, blocks)]
        self.passing: dict = {}  # prefill worker → the requests of its pass
        self.hurt: dict[int, None] = {}  # requests that a fault may fail
        self.cancelled: dict[int, None] = {}
        self.commands: list = []
        self.lost = 0
        self.seen: Counter = Counter()  # what happened at least once, for the sometimes-counters
        self._changed: dict[str, None] = {}  # pools with a move in this event
        self._pools = {pool.name: pool for pool in self.state.pools()}
        self._begin_copy = self.traffic.start
        self.traffic.start = self._start_copy

    @property
    def state(self):
        return self.controller.state

    def _tie(self):
        return self.order.random()

    def _moved(self, move) -> None:
        self._changed[move.pool] = None
        self.watch.moved(move)
        if move.state == "free":
            self.memory.wipe(move.pool, move.blocks)

    def submit(self, job: Job) -> None:
        super().submit(job)
        self.jobs[job.id] = job

    def cancel(self, request: int) -> None:
        """Cancels now, in whatever stage the request is."""
        record = self.state.records.get(request)
        if record is not None:
            self.seen[f"cancel {record.stage.value}"] += 1
            self.cancelled[request] = None
        self.take(ev.Cancel(request))

    def retune(self, **changes) -> None:
        self.seen["retune"] += 1
        config = self.state.config.replace(**changes)
        self.take(ev.Retune(config))
        self.traffic.retune(config)

    # ---- running -----------------------------------------------------------------------------------------------------

    def run(self, limit_steps: int = 30_000) -> None:
        """To the end; where only deadlines are left, time goes on to the first."""
        while True:
            while self.step():
                limit_steps -= 1
                assert limit_steps, "the world does not come to an end"
            due = self.state.next_deadline_ns
            if due is None or self.controller.broken:
                break
            self.now_ns = max(self.now_ns, due)
            if not self.lost:
                self.watch.watchdog(self.now_ns)  # nothing was lost, so nothing may be late
            self.seen["deadline"] += 1
            self.take(ev.Tick())
        super().run()

    def finish(self) -> "CheckedSimulation":
        """Runs, then checks that nothing is left and every answer is right."""
        self.run()
        if self.controller.broken:
            assert self.seen["worker die"], f"broken, and no worker died: {self.controller.broken}"
            assert all(result.finish_reason for result in self.results.values() if result.request in self.watched)
        else:
            self.check_drained()
        self.check_answers()
        return self

    @property
    def happened(self) -> Counter:
        """What happened how often: faults, rare branches, ends."""
        ends = Counter(result.finish_reason for result in self.results.values() if result.finish_reason)
        return self.seen + self.state.counts + self.faults.struck + ends

    @property
    def watched(self) -> list[int]:
        """Requests that the controller has heard of."""
        return [event.job.id for _, event in self.log if isinstance(event, ev.Submit)]

    def deliver(self, event) -> None:
        """The inbox with faults."""
        if self.controller.broken:
            return
        if not self.faults.quiet:
            self._strike_requests()
            if (event := self._spoil(event)) is None:
                return
        self.take(event)

    def take(self, event) -> None:
        """One event into the controller, and every check after it."""
        if isinstance(event, (ev.Stepped, ev.StepFailed)):
            for request, context, blocks in self.running.pop((event.worker, event.step), ()):
                self.memory.read_row(str(event.worker), request, context, blocks)
                self.memory.write_row(str(event.worker), request, context, blocks)
        self.log.append((self.now_ns, event))
        self.watch.hear(self.now_ns, event)
        super().deliver(event)
        self.watch.settle()
        self.watch.watchdog(self.now_ns)
        if self._changed:
            self._check_pools()

    def _check_pools(self) -> None:
        """Where blocks moved, pools and tables agree with themselves, and with what the detectors have counted."""
        for name in self._changed:
            self._pools[name].check()
            self.watch.blocks.compare(name, self._pools[name].counts())
        self._changed.clear()
        for record in self.state.records.values():
            for table in record.tables:
                table.check()

    # ---- faults ------------------------------------------------------------------------------------------------------

    def _strike_requests(self) -> None:
        records, faults = self.state.records, self.faults
        paged = [record.id for record in records.values() if record.stage in PAGED]
        if paged and faults.strike("paged"):
            self.cancel(faults.pick(paged))
        if records:
            match faults.strike("event"):
                case "cancel":
                    self.cancel(faults.pick(list(records)))
                case "interrupt":
                    for request in list(records):
                        self.cancel(request)

    def _spoil(self, event):
        """The event, a failure in its place, or None for a notice that gets lost or comes later."""
        faults = self.faults
        match event:
            case ev.Prefilled() if faults.strike("prefill"):
                self.hurt.update(dict.fromkeys(self.passing[event.worker]))
                event = ev.PassFailed(event.worker, event.pass_id, "fault")
            case ev.Stepped() if faults.strike("decode"):
                self.hurt.update((row[0], None) for row in self.running[event.worker, event.step])
                event = ev.StepFailed(event.worker, event.step, "fault")
            case ev.Landed() if event.transfer in self.state.transfers and faults.strike("landing"):
                self._hurt_by(event.transfer)
                self.lost += 1
                return None
        if isinstance(event, (ev.Prefilled, ev.Stepped)) and faults.strike("worker"):
            self.hurt.update(dict.fromkeys(self.jobs))
            self.seen["worker die"] += 1
            return ev.WorkerDied(event.worker, "fault: request " + ", ".join(map(str, self.state.records)))
        if isinstance(event, NOTICES):
            match faults.strike("notice"):
                case "twice":
                    self.at(self.now_ns + faults.pick([0, 100, 1000]), self.take, event)
                case "late" if isinstance(event, OUT_OF_ORDER):
                    self.at(self.now_ns + faults.pick([0, 100, 1000]), self.take, event)
                    return None
                case "unknown":
                    self.take(faults.pick(_unknown(10**9)))
        return event

    def _hurt_by(self, transfer: int) -> None:
        """A hand-off that fails takes its request along; a spill or a fetch does not."""
        if self.state.transfers[transfer].route not in PAGING:
            self.hurt[self.state.transfers[transfer].record.id] = None

    # ---- commands ----------------------------------------------------------------------------------------------------

    def obey(self, command) -> None:
        self.commands.append(command)
        self.watch.obey(self.now_ns, command)
        if isinstance(command, cmd.Ended):
            stages = [stage for _, stage in command.stages]
            self.seen["pause"] += (Stage.RUNNING, Stage.LANDED) in zip(stages, stages[1:], strict=False)
        super().obey(command)

    def _prefill(self, command: cmd.Prefill) -> None:
        start, speeds, chunks = self._start(command.worker), self.speeds, command.chunks
        super()._prefill(command)
        self.passing[command.worker] = [chunk.request for chunk in chunks]
        self.seen["chunked prefill"] += any(chunk.start for chunk in chunks)
        lead_ns, layer_ns, _ = self._pass_ns(command)
        for layer in range(speeds.layers):
            end = start + lead_ns + layer * layer_ns - 1
            self.at(end, self.memory.write_layer, str(command.worker), chunks, layer)

    def _decode(self, command: cmd.Decode) -> None:
        place, tables = str(command.worker), self.tables.setdefault(command.worker, {})
        for request in command.left:
            del tables[request]
        for join in command.joins:
            tables[join.request] = list(join.blocks)
            self.memory.read_row(place, join.request, join.context, join.blocks)
        for request, block in command.grown:
            tables[request].append(block)
        super()._decode(command)
        mirror = self._mirrors[command.worker]
        rows = [(r, mirror.context(r), tuple(tables[r])) for group in command.groups for r in group]
        self.running[command.worker, command.step] = rows
        assert sorted(r for r, _, _ in rows) == sorted(tables), "the worker's batch is not the step's rows"

    # ---- copies ------------------------------------------------------------------------------------------------------

    def _start_copy(self, lane: LaneName):
        if lane.role is LaneRole.DOWN and self.traffic.waiting(lane) and not self.traffic.ring.available:
            self.seen["ring full"] += 1
        flight = self._begin_copy(lane)
        if flight is not None:
            self.carried[flight] = self._read(flight)
        return flight

    def land(self, flight) -> None:
        fault = None
        if not self.faults.quiet:
            paging = self.state.transfers[flight.transfer].route in PAGING
            fault = self.faults.strike("paging" if paging else "copy")
        if fault == "stall":
            self.at(self.now_ns + STALL_NS, self._land, flight, None)
        else:
            self._land(flight, fault)

    def _land(self, flight, fault: str | None) -> None:
        carried = self.carried.pop(flight)
        assert carried == self._read(flight), f"{flight.lane}: the source changed under {flight}"
        for (index, layer), held in carried.items():
            wanted = flight.request, flight.block + index
            assert held is not None and held[:2] == wanted, f"{flight.lane} carries {held} as {wanted}, layer {layer}"
            key = (
                ("ring", flight.slot, index) if flight.hop_one else (str_of(flight.target), flight.target_blocks[index])
            )
            if fault != "fail":
                self.memory.write(key, layer, FLIPPED if fault == "flip" else held)
        if fault is None:
            super().land(flight)
        else:
            self._fail_copy(flight, fault)
        if self.traffic.ring.total:
            self.traffic.ring.check()

    def _fail_copy(self, flight, fault: str) -> None:
        if flight.transfer in self.state.transfers:
            self._hurt_by(flight.transfer)
        for notice in self.traffic.fail(flight, f"fault: {fault}", self.now_ns):
            self.deliver(notice)
        self.drive_lanes()

    def _read(self, flight) -> dict:
        memory, source = self.memory, str_of(flight.source)
        return {
            (index, layer): memory.read(("ring", flight.slot, index) if flight.hop_two else (source, block), layer)
            for index, block in enumerate(flight.blocks)
            for layer in range(flight.layer, flight.layer_end)
        }

    # ---- at the end --------------------------------------------------------------------------------------------------

    def check_drained(self) -> None:
        """Nothing held, nothing running, nothing owed, and everybody ended once."""
        state, traffic = self.state, self.traffic
        self.watch.drained(self.now_ns)
        for pool in (*state.pools(), traffic.ring):
            if pool.held:
                raise InvariantViolation("Drain", f"{pool.name} still holds blocks: {pool.counts()}")
        left = {
            "requests": state.records, "transfers": state.transfers, "journeys": traffic.progress,
            "pieces": [str(lane.name) for lane in traffic.lanes.values() if lane.ready],
            "deadlines": state.next_deadline_ns, "backlog": state.backlog,
            "queued": [len(queue) for queue in state.queues() if len(queue)],
            "seats": [seat.worker for seat in state.decodes if seat.rows or seat.steps],
            "passes": [seat.worker for seat in state.prefills if seat.partial or seat.passing],
            "copies": self.carried, "steps": self.running,
        }  # fmt: skip
        if held := {name: what for name, what in left.items() if what}:
            raise InvariantViolation("Drain", f"at the end there is still {held}")
        assert state.population == Counter({Stage.ENDED: len(self.jobs)}), state.population

    def check_answers(self) -> None:
        """Tokens equal the fake model's; only those that a fault or a cancel touched may end early."""
        strays = self.watch.strays
        assert self.state.counts["anomalies"] == strays, f"{self.state.counts['anomalies']} anomalies, {strays} strays"
        noticed = [name for name in self.faults.struck if name.startswith("notice")]
        assert not strays or noticed, f"{strays} notices told nothing, and no fault was injected"
        assert self.state.counts["padding_mismatches"] == 0
        for index, job in self.jobs.items():
            result, answer, reason = self.results[index], *answer_of(job)
            if result.finish_reason == "failed":
                assert index in self.hurt, f"a bystander failed: {result}"
                assert str(index) in result.error, f"the failure names nobody: {result.error}"
            elif result.finish_reason == "cancelled":
                assert index in self.cancelled, f"nobody cancelled {result}"
            elif result.finish_reason or not self.controller.broken:
                ended = result.finish_reason, result.token_ids
                if ended != (reason, answer):
                    raise InvariantViolation("Tokens", f"{ended}, not {reason} {answer}", index)
            if result.token_ids != answer[: len(result.token_ids)]:
                raise InvariantViolation("Tokens", f"{result.token_ids}, not {answer}", index)


def str_of(worker: cmd.Worker) -> str:
    """The name of a worker's memory, as its pool has it."""
    return "host" if worker.role == "host" else str(worker)


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
