"""A simulation with all detectors and a shadow memory, over the shipped controller.

One thread, one heap, one seed. `finish` checks that every request ended once and for a reason, that tokens are right,
and that no block is held. With faults: benchmarks/robustness/faulty_simulation.py.
Notebook: notebooks/00_start_here.ipynb.
"""

import random
from collections import Counter
from typing import Any

from disagg.monitor.block_monitor import place
from disagg.monitor.monitor import Monitor
from disagg.monitor.shadow_memory import FLIPPED, Content, Memory
from disagg.monitor.violation import InvariantViolation
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.link import LaneName, LaneRole
from disagg.plan.request import Job, Stage
from disagg.plan.state import ControllerState
from disagg.plan.transfer_scheduler import Copy
from disagg.twin.simulated_engine import SimulatedEngine, Speeds, WorkTimes, fake_token

#: A model of three layers and round costs, so that many things happen at the same instant.
SMALL = Speeds(
    layers=3,
    token_bytes=6,
    prefill_pass=90,
    prefill_token=30,
    step=200,
    step_row=10,
    step_token=0,
    tail=10,
    copy_byte=1.0,
)
LIMIT_STEPS = 30_000
Rows = list[tuple[int, int, tuple[int, ...]]]  # of a step: request, context, blocks


class CheckedSimulation(SimulatedEngine):
    """`seed` draws the order of simultaneous events; `seen` counts what happened."""

    may_reject = False  # may the policy reject requests without a deadline?
    lost = 0  # notices

    def __init__(
        self,
        config: Config,
        speeds: WorkTimes = SMALL,
        steps_in_flight: int = 1,
        seed: int = 0,
        record: bool = True,
    ) -> None:
        super().__init__(config, speeds, steps_in_flight, record)
        self.log: list[tuple[int, ev.Event]] = []  # (when, event): the controller's only input
        self.order = random.Random(seed)
        self.jobs: dict[int, Job] = {}
        self.hurt: dict[int, None] = {}  # requests that may fail
        self.cancelled: dict[int, None] = {}
        self.seen: Counter[str] = Counter()
        self.monitor = Monitor(config, layers=speeds.layers)
        self.memory = Memory(speeds.layers, self.monitor.log.block_size)
        self.state.on_move.append(self._moved)
        self.carried: dict[Copy, dict[tuple[int, int], Content | None]] = {}  # contents that copies under way have read
        self.running: dict[tuple[cmd.Worker, int], Rows] = {}  # by decode worker and step
        self.commands: list[cmd.Command] = []
        self._changed: dict[str, None] = {}  # pools with a move in this event
        self._pools = {pool.name: pool for pool in self.state.pools()}

    @property
    def state(self) -> ControllerState:
        return self.controller.state

    @property
    def may_stray(self) -> bool:
        """Whether notices may tell nothing new."""
        return False

    def _tie(self) -> float:
        return self.order.random()

    def submit(self, job: Job) -> None:
        super().submit(job)
        self.jobs[job.id] = job

    def _moved(self, pool: str, state: str, owner: int | None, blocks: tuple[int, ...]) -> None:
        self._changed[pool] = None
        self.monitor.moved(pool, state, owner, blocks)
        if state == "free":
            self.memory.wipe(pool, blocks)

    def change(self, **changes: Any) -> None:
        self.seen["retune"] += 1
        config = self.state.config.replace(**changes)
        self.take(ev.Retune(config))
        self.transfers.retune(config)

    def pass_deadline(self) -> bool:
        if not self.skip_to_deadline():
            return False
        if not self.lost:
            self.monitor.watchdog(self.now_ns)  # without a lost notice nothing may be late
        self.seen["deadline"] += 1
        self.take(ev.Tick())
        return True

    def finish(self) -> "CheckedSimulation":
        """Runs to the end, then checks that nothing is left and every answer is right."""
        self.run(LIMIT_STEPS)
        if self.controller.broken:
            assert self.seen["worker die"], f"broken, and no worker died: {self.controller.broken}"
            known = [event.job.id for _, event in self.log if isinstance(event, ev.Submit)]
            assert all(self.results[request].finish_reason for request in known)
        else:
            self.check_drained()
        self.check_answers()
        return self

    def deliver(self, event: ev.Event) -> None:
        if not self.controller.broken:
            self.take(event)

    def take(self, event: ev.Event) -> None:
        """Gives the controller one event and runs every check after it."""
        if isinstance(event, (ev.Stepped, ev.StepFailed)):
            for request, context, blocks in self.running.pop((event.worker, event.step), ()):
                self.memory.read_row(str(event.worker), request, context, blocks)
                self.memory.write_row(str(event.worker), request, context, blocks)
        self.monitor.hear(self.now_ns, event)
        self.log.append((self.now_ns, event))
        super().deliver(event)
        self.monitor.settle()
        self.monitor.watchdog(self.now_ns)
        if self._changed:
            self._check_pools()

    def _check_pools(self) -> None:
        """Checks pools with a move and all tables, also against the detectors' counts."""
        for name in self._changed:
            self._pools[name].check()
            self.monitor.blocks.compare(name, self._pools[name].counts())
        self._changed.clear()
        for record in self.state.records.values():
            for table in record.tables:
                table.check()

    def obey(self, command: cmd.Command) -> None:
        self.commands.append(command)
        self.monitor.obey(self.now_ns, command)
        if isinstance(command, cmd.Ended):
            stages = [stage for _, stage in command.stages]
            self.seen["pause"] += (Stage.RUNNING, Stage.LANDED) in zip(stages, stages[1:], strict=False)
        super().obey(command)

    def _prefill(self, command: cmd.Prefill) -> None:
        start, chunks = self._start(command.worker), command.chunks
        if command.step is not None:
            self._check_rows(command.step)
        super()._prefill(command)
        self.seen["mixed pass"] += command.step is not None
        self.seen["blocking pass"] += self.transfers.blocking and any(chunk.transfer for chunk in command.chunks)
        self.seen["chunked prefill"] += any(chunk.start for chunk in command.prompts)
        lead_ns, layer_ns, _ = self._pass_ns(command)
        if self.transfers.blocking:
            return
        for layer in range(self.speeds.layers):
            end = start + lead_ns + layer * layer_ns - 1
            self.at(end, self.memory.write_layer, str(command.worker), chunks, layer)

    def layer_written(self, command: cmd.Prefill, layer: int) -> None:
        self.memory.write_layer(str(command.worker), command.chunks, layer)

    def _decode(self, command: cmd.Decode) -> None:
        self._check_rows(command)
        super()._decode(command)
        view, rows = self._batches[command.worker], self.monitor.blocks.batches[command.worker].rows
        requests = [request for group in command.groups for request in group]
        assert sorted(requests) == sorted(rows), "the worker's batch is not the step's rows"
        self.running[command.worker, command.step] = [(r, view.context(r), tuple(rows[r].blocks)) for r in requests]

    def _check_rows(self, command: cmd.Decode) -> None:
        """The K/V of rows that join are there."""
        for join in command.joins:
            self.memory.read_row(str(command.worker), join.request, join.context, join.blocks)

    def start_copy(self, lane: LaneName) -> Copy | None:
        if lane.role is LaneRole.DOWN and self.transfers.waiting(lane) and not self.transfers.ring.available:
            self.seen["ring full"] += 1
        copy = super().start_copy(lane)
        if copy is not None:
            self.carried[copy] = self._read(copy)
        return copy

    def land(self, copy: Copy) -> None:
        self.carry(copy)
        super().land(copy)
        self.check_ring()

    def check_ring(self) -> None:
        if self.transfers.ring.total:
            self.transfers.ring.check()

    def carry(self, copy: Copy, fault: str | None = None) -> None:
        """What the copy has read comes to its target; the source still holds it."""
        carried = self.carried.pop(copy)
        assert carried == self._read(copy), f"{copy.lane}: the source changed under {copy}"
        for (index, layer), held in carried.items():
            wanted = copy.request, copy.block + index
            assert held is not None and held[:2] == wanted, f"{copy.lane} carries {held} as {wanted}, layer {layer}"
            if fault != "fail":
                self.memory.write(_target_of(copy, index), layer, FLIPPED if fault == "flip" else held)

    def _read(self, copy: Copy) -> dict[tuple[int, int], Content | None]:
        """Contents of the source by index of a block in the copy and by layer."""
        source = place(copy.source)
        return {
            (index, layer): self.memory.read(("ring", copy.slot, index) if copy.hop_two else (source, block), layer)
            for index, block in enumerate(copy.blocks)
            for layer in range(copy.layer, copy.layer_end)
        }

    def check_drained(self) -> None:
        """Checks that nothing is held, runs or waits, and that every request ended once."""
        self.monitor.drained(self.now_ns)
        for pool in (*self.state.pools(), self.transfers.ring):
            if pool.held:
                raise InvariantViolation("Drain", f"{pool.name} still holds blocks: {pool.counts()}")
        if held := {name: what for name, what in left_of(self).items() if what}:
            raise InvariantViolation("Drain", f"at the end there is still {held}")
        assert self.state.population == Counter({Stage.ENDED: len(self.jobs)}), self.state.population

    def check_answers(self) -> None:
        """Checks tokens against the fake model's; only requests with a fault or a cancel may end early."""
        strays, anomalies = self.monitor.strays, self.state.counts["anomalies"]
        assert anomalies == strays, f"{anomalies} anomalies, {strays} strays"
        assert not strays or self.may_stray, f"{strays} notices were strays, and no fault was injected"
        assert self.state.counts["padding_mismatches"] == 0
        for index in self.jobs:
            self._check_answer(index)

    def _check_answer(self, index: int) -> None:
        result, (answer, reason) = self.results[index], answer_of(self.jobs[index])
        if result.finish_reason == "failed":
            assert index in self.hurt, f"a bystander failed: {result}"
            assert str(index) in (result.error or ""), f"the failure does not name its request: {result.error}"
        elif result.finish_reason == "rejected":
            due = self.may_reject or self.jobs[index].deadline_s is not None
            assert due, f"it has no deadline to miss: {result}"
            assert f"request {index} is rejected" in (result.error or "") and not result.token_ids, result
        elif result.finish_reason == "cancelled":
            assert index in self.cancelled, f"it was not cancelled: {result}"
        elif result.finish_reason or not self.controller.broken:
            ended = result.finish_reason, result.token_ids
            if ended != (reason, answer):
                raise InvariantViolation("Tokens", f"{ended}, not {reason} {answer}", index)
        if result.token_ids != answer[: len(result.token_ids)]:
            raise InvariantViolation("Tokens", f"{result.token_ids}, not {answer}", index)


def left_of(simulation: CheckedSimulation) -> dict[str, object]:
    """Open work of a simulation by name; all of it is empty once every request has ended."""
    state, transfers = simulation.state, simulation.transfers
    return {
        "requests": state.records,
        "transfers": state.transfers,
        "transfers in progress": transfers.progress,
        "copies that are ready": [str(lane.name) for lane in transfers.lanes.values() if lane.ready],
        "deadlines": state.deadlines.next_ns,
        "backlog": state.backlog,
        "queued": [len(queue) for queue in state.queues() if len(queue)],
        "rows": [worker.name for worker in state.decodes if worker.rows or worker.steps],
        "passes": [worker.name for worker in state.prefills if worker.partial or worker.passing],
        "copies": simulation.carried,
        "steps": simulation.running,
    }


def _target_of(copy: Copy, index: int) -> tuple[str, int | None] | tuple[str, int | None, int]:
    """Places in the shadow memory that the copy writes."""
    if copy.hop_one:
        return "ring", copy.slot, index
    assert copy.target is not None, f"{copy.lane}: a copy lands without a target"
    return place(copy.target), copy.target_blocks[index]


def answer_of(job: Job) -> tuple[list[int], str]:
    """The fake model's tokens for a job, and the finish reason."""
    tokens: list[int] = []
    while len(tokens) < job.max_new_tokens:
        tokens.append(fake_token(job.id, len(tokens)))
        if tokens[-1] in job.eos_ids:
            return tokens, "eos"
    return tokens, "length"
