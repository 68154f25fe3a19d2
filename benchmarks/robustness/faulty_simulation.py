"""A checked simulation with faults: its inbox, its copies and its requests follow a fault plan.

`hurt` holds what a fault may fail, `cancelled` what was cancelled, and `seen` counts what happened.
"""

from collections import Counter

from disagg.monitor.checked_simulation import SMALL, CheckedSimulation
from disagg.monitor.fault_plan import FaultPlan
from disagg.monitor.seams import NOTICES
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Part
from disagg.plan.config import Config
from disagg.plan.request import Stage
from disagg.plan.transfer import PAGING
from disagg.plan.transfer_scheduler import Copy
from disagg.twin.simulated_engine import WorkTimes

OUT_OF_ORDER = (ev.Landed, ev.SourceRead, ev.TransferClosed)  # the answers of one worker keep their order

IN_HOST = (Stage.SPILLED, Stage.PARKED)
PAGED = (Stage.SPILLING, *IN_HOST, Stage.FETCHING)
STALL_NS = 50_000
NEVER = 10**9  # a number that no transfer, pass or step has
PREFILL, DECODE = cmd.Worker("prefill", 0), cmd.Worker("decode", 0)
UNKNOWN: list[ev.Event] = [
    ev.Landed(NEVER, (Part(0, 1, 0, 1),), 1, 1),
    ev.SourceRead(NEVER),
    ev.TransferFailed(NEVER, "fault"),
    ev.TransferClosed(NEVER),
    ev.Prefilled(PREFILL, NEVER, (), 0, 1),
    ev.PassFailed(PREFILL, NEVER, "fault"),
    ev.Stepped(DECODE, NEVER, (), 0, 1, 0, 0),
    ev.StepFailed(DECODE, NEVER, "fault"),
]


class FaultySimulation(CheckedSimulation):
    """`seed` draws the order of simultaneous events; `faults` is the fault plan."""

    def __init__(
        self,
        config: Config,
        speeds: WorkTimes = SMALL,
        steps_in_flight: int = 1,
        seed: int = 0,
        faults: FaultPlan | None = None,
        record: bool = True,
    ) -> None:
        super().__init__(config, speeds, steps_in_flight, seed, record)
        self.faults = faults or FaultPlan()
        self.computing: dict[tuple[cmd.Worker, int], list[int]] = {}  # (worker, pass or step) → its requests

    @property
    def happened(self) -> Counter[str]:
        """Counts of faults, rare branches and finish reasons."""
        ends = Counter(result.finish_reason for result in self.results.values() if result.finish_reason)
        return self.seen + self.state.counts + self.faults.struck + ends

    @property
    def may_stray(self) -> bool:
        return any(name.startswith("notice") for name in self.faults.struck)

    def cancel(self, request: int) -> None:
        record = self.state.records.get(request)
        if record is not None:
            parking = record.host_table is not None and record.stage not in PAGED
            self.seen["cancel parking" if parking else f"cancel {record.stage.value}"] += 1
            self.cancelled[request] = None
        self.take(ev.Cancel(request))

    # ---- the inbox ---------------------------------------------------------------------------------------------------

    def deliver(self, event: ev.Event) -> None:
        if self.controller.broken:
            return
        if not self.faults.quiet:
            self._strike_requests()
            if (struck := self._strike(event)) is None:
                return
            event = struck
        self.take(event)

    def take(self, event: ev.Event) -> None:
        match event:
            case ev.Prefilled() | ev.PassFailed():
                self.computing.pop((event.worker, event.pass_id), None)
            case ev.Stepped() | ev.StepFailed():
                self.computing.pop((event.worker, event.step), None)
        super().take(event)

    def _strike_requests(self) -> None:
        records, faults = self.state.records, self.faults
        paged = [record.id for record in records.values() if record.host_table is not None]
        if paged and faults.strike("paged"):
            self.cancel(faults.pick(paged))
        if records:
            match faults.strike("event"):
                case "cancel":
                    self.cancel(faults.pick(list(records)))
                case "interrupt":
                    for request in list(records):
                        self.cancel(request)

    def _strike(self, event: ev.Event) -> ev.Event | None:
        """The event, a failure instead of it, or None if the notice is lost or late."""
        faults = self.faults
        match event:
            case ev.Prefilled() if faults.strike("prefill"):
                self.hurt.update(dict.fromkeys(self.computing[event.worker, event.pass_id]))
                event = ev.PassFailed(event.worker, event.pass_id, "fault")
            case ev.Stepped() if faults.strike("decode"):
                self.hurt.update(dict.fromkeys(self.computing[event.worker, event.step]))
                event = ev.StepFailed(event.worker, event.step, "fault")
            case ev.Landed() if event.transfer in self.state.transfers and faults.strike("landing"):
                self._hurt_by(event.transfer)
                self.lost += 1
                return None
        if isinstance(event, (ev.Prefilled, ev.Stepped)) and faults.strike("worker"):
            self.hurt.update(dict.fromkeys(self.jobs))
            self.seen["worker die"] += 1
            return ev.WorkerDied(event.worker, "fault: request " + ", ".join(map(str, self.state.records)))
        return self._strike_notice(event) if isinstance(event, NOTICES) else event

    def _strike_notice(self, event: ev.Event) -> ev.Event | None:
        fault = self.faults.strike("notice")
        late = fault == "late" and isinstance(event, OUT_OF_ORDER)
        if late or fault == "twice":
            self.at(self.now_ns + self.faults.pick([0, 100, 1000]), self.take, event)
        elif fault == "unknown":
            self.take(self.faults.pick(UNKNOWN))
        return None if late else event

    def _hurt_by(self, transfer: int) -> None:
        """A failed hand-off fails its request; a failed spill or fetch does not."""
        if self.state.transfers[transfer].route not in PAGING:
            self.hurt[self.state.transfers[transfer].record.id] = None

    # ---- workers and copies ------------------------------------------------------------------------------------------

    def obey(self, command: cmd.Command) -> None:
        if isinstance(command, cmd.Placed) and command.way in ("fetch", "recompute"):
            in_host = [stage for _, stage in self.state.records[command.request].stages if stage in IN_HOST]
            self.seen[f"{in_host[-1].value}: {command.way}"] += 1
        super().obey(command)

    def _prefill(self, command: cmd.Prefill) -> None:
        super()._prefill(command)
        self.computing[command.worker, command.pass_id] = [chunk.request for chunk in command.chunks]

    def _decode(self, command: cmd.Decode) -> None:
        super()._decode(command)
        self.computing[command.worker, command.step] = [request for group in command.groups for request in group]

    def land(self, copy: Copy) -> None:
        fault = None
        if not self.faults.quiet:
            paging = self.state.transfers[copy.transfer].route in PAGING
            fault = self.faults.strike("paging" if paging else "copy")
        if fault == "stall":
            self.at(self.now_ns + STALL_NS, self._land, copy, None)
        else:
            self._land(copy, fault)

    def _land(self, copy: Copy, fault: str | None) -> None:
        if fault is None:
            return super().land(copy)
        self.carry(copy, fault)
        if copy.transfer in self.state.transfers:
            self._hurt_by(copy.transfer)
        for notice in self.transfers.fail(copy, f"fault: {fault}", self.now_ns):
            self.deliver(notice)
        self.drive_lanes()
        self.check_ring()
