"""One controller and its traffic under a virtual clock, with workers that take time.

`SimulatedEngine` obeys commands with events at computed times; one heap, one order, no thread. `Speeds` are round
numbers; real figures need the cost model of hardware.py.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.errors import EngineError, RequestError
from disagg.plan.link import LaneName
from disagg.plan.request import Job
from disagg.plan.spans import Span
from disagg.plan.transfer_scheduler import Copy, TransferScheduler
from disagg.plan.why import open_in_words
from disagg.trace.recorder import Recorder
from disagg.trace.results import Result, Run
from disagg.twin.batch_view import BatchView


@dataclass(frozen=True)
class Speeds:
    """Costs of simulated work in ns, and the model's shape."""

    layers: int = 30
    token_bytes: int = 46_080
    prefill_pass: int = 2_000_000
    prefill_token: int = 4_000_000
    step: int = 60_000_000
    step_row: int = 6_000_000
    step_token: int = 20_000
    tail: int = 3_000_000  # prefill's output head
    copy_byte: float = 0.2  # an undialled wire
    pads: ClassVar[bool] = True  # a row of a group is read as far as its longest
    steps_in_flight: ClassVar[int] = 1
    turn_ns: ClassVar[int] = 0  # from a worker's answer to when the controller hears of it

    def pass_ns(self, chunks: Sequence[tuple[int, int]], ending: int, beside: bool) -> tuple[int, int, int]:
        """Of a pass over chunks [start, stop): until the first layer is handed off, from there to each next one, and
        what follows the last; `ending` prompts end in it, `beside` another worker that computes."""
        tokens = sum(stop - start for start, stop in chunks)
        layer = (self.prefill_pass + tokens * self.prefill_token) // self.layers
        return layer, layer, self.tail

    def step_ns(self, rows: int, tokens: int, beside: bool) -> int:
        """A step of so many rows, which reads the K/V of so many tokens, padding and the new ones included."""
        return self.step + rows * self.step_row + tokens * self.step_token

    def copy_ns(self, lane: LaneName, nbytes: int) -> int:
        """A copy on an undialled wire."""
        return round(nbytes * self.copy_byte)


def fake_token(request: int, index: int) -> int:
    """What a simulated model says: a function of who and where, so that a mix-up shows."""
    return 3 + (request * 7919 + index * 104_729) % 997


class SimulatedEngine:
    """One controller, its traffic, and workers that take time. `step` advances by one event."""

    def __init__(
        self, config: Config, speeds: Speeds = Speeds(), steps_in_flight: int | None = None, record: bool = True
    ) -> None:
        self.config, self.speeds = config, speeds
        shape = {"layers": speeds.layers, "token_bytes": speeds.token_bytes}
        ahead = speeds.steps_in_flight if steps_in_flight is None else steps_in_flight
        self.controller = Controller(config, **shape, steps_in_flight=ahead, pads=speeds.pads)
        self.traffic = TransferScheduler(config, **shape)
        self.now_ns = 0
        self.results: dict[int, Result] = {}
        self.recorder = Recorder(self.controller.state, self.traffic, "virtual clock", last=0)
        self.recorder.begin(0, record)
        self.busy_lanes: set[LaneName] = set()
        self._heap: list = []
        self._sequence = 0
        self._free_ns: dict[cmd.Worker, int] = {}
        self._mirrors: dict[cmd.Worker, BatchView] = {}
        self._forced: dict[int, tuple[int, ...]] = {}  # ids that a request is to be given

    def at(self, when_ns: int, action, *args) -> None:
        """Schedules an action; those of one instant run in the order in which they were scheduled."""
        self._sequence += 1
        heapq.heappush(self._heap, (when_ns, self._tie(), self._sequence, action, args))

    def _tie(self) -> int:
        """Order of what happens at the same instant; tests draw it at random."""
        return 0

    def submit(self, job: Job) -> None:
        refusal = self.controller.refusal(job)
        if refusal:
            raise RequestError(refusal)
        timeline = self.recorder.timeline_of(run=True)
        self.results[job.id] = Result(job.id, len(job.prompt), job.arrival_ns, timeline=timeline)
        if job.sampling.force_ids is not None:
            self._forced[job.id] = job.sampling.force_ids
        self.at(job.arrival_ns, self.deliver, ev.Submit(job))

    def retune(self, config: Config) -> None:
        """New settings from this instant on, of those that a running engine can change."""
        self.controller.check_live(config)
        self.deliver(ev.Retune(config))

    def step(self) -> bool:
        """Runs the next scheduled action; False where there is none left."""
        if not self._heap:
            return False
        when, _, _, action, args = heapq.heappop(self._heap)
        self.now_ns = max(self.now_ns, when)
        action(*args)
        return True

    def run(self, limit_steps: int = 50_000_000) -> None:
        """Until nothing is left to happen; an open request then is a bug, and is named."""
        while self.step():
            limit_steps -= 1
            if not limit_steps:
                raise EngineError("the simulated world does not come to an end")
        if stuck := open_in_words(self.controller.state):
            raise EngineError(f"nothing left to happen, but these wait: {stuck}")

    def so_far(self) -> Run:
        """What has been recorded up to now."""
        return self.recorder.run(self.controller.state.config, list(self.results.values()))

    def close(self) -> None:
        """Its parts hold each other no longer: a world that is done is freed at once, and not by the collector some
        time. The lists of a GPU's blocks are long."""
        self.traffic.on_ring = None
        for pool in self.controller.state.pools():
            pool.journal = None

    def deliver(self, event) -> None:
        """The inbox: one event into the controller, its commands carried out."""
        self.recorder.hear(self.now_ns, event)
        commands = self.controller.handle(event, self.now_ns)
        self.recorder.note(self.now_ns)
        for command in commands:
            self.obey(command)
        self.drive_lanes()

    def obey(self, command) -> None:
        if (carry_out := getattr(self, _OBEYED.get(type(command), ""), None)) is not None:
            carry_out(command)

    def _emit(self, command: cmd.Emit) -> None:
        for request, token in zip(command.requests, command.tokens, strict=True):
            result = self.results[request]
            result.token_ids.append(token)
            result.token_times_ns.append(command.at_ns)

    def _send(self, command: cmd.Send) -> None:
        self.traffic.send(command, self.now_ns)

    def _assign(self, command: cmd.Assign) -> None:
        self.traffic.assign(command, self.now_ns)

    def _abort(self, command: cmd.Abort) -> None:
        for notice in self.traffic.abort(command.transfer, self.now_ns):
            self.at(self.now_ns, self.deliver, notice)

    def _ended(self, command: cmd.Ended) -> None:
        result = self.results[command.request]
        result.finish_reason, result.error = command.finish.value, command.error
        result.ended_ns, result.stages, result.seat = command.at_ns, command.stages, command.seat

    def _retuned(self, command: cmd.Retuned) -> None:
        self.traffic.retune(command.config)

    def _preempted(self, command: cmd.Preempted) -> None:
        self.recorder.choose(command.choice)

    # ---- workers -----------------------------------------------------------------------------------------------------

    def _prefill(self, command: cmd.Prefill) -> None:
        speeds, start = self.speeds, self._start(command.worker)
        tokens = sum(chunk.stop - chunk.start for chunk in command.chunks)
        lead, layer, tail = self._pass_ns(command)
        marks = tuple([start + lead + index * layer for index in range(speeds.layers)])
        end = marks[-1] + tail
        for index, moving in self._moving(command):
            self.at(marks[index], self._hand_off, moving, index)
        finals = [chunk for chunk in command.chunks if chunk.final]
        self._free_ns[command.worker] = end
        requests = tuple(chunk.request for chunk in command.chunks)
        firsts = tuple(chunk.request for chunk in finals)
        blocks = sum(len(chunk.blocks) for chunk in command.chunks)
        self.recorder.span(
            Span(
                "prefill", str(command.worker), start, end, requests, command.pass_id, tokens, 0, firsts, marks,
                ready_ns=command.at_ns, blocks=blocks,
            )
        )  # fmt: skip
        given = tuple(self._token(chunk.request, chunk.token_index) for chunk in finals)
        prefilled = ev.Prefilled(command.worker, command.pass_id, given, start, end)
        self.at(end + self.speeds.turn_ns, self.deliver, prefilled)

    def _moving(self, command: cmd.Prefill) -> list[tuple[int, list[int]]]:
        """(layer, transfers that have a copy ready once it is handed off): the others' layers wait for more."""
        moving: dict[int, list[int]] = {}
        for chunk in command.chunks:
            if chunk.transfer is not None:
                for layer in self.traffic.copied_after(chunk.transfer):
                    moving.setdefault(layer, []).append(chunk.transfer)
        return sorted(moving.items())

    def _pass_ns(self, command: cmd.Prefill) -> tuple[int, int, int]:
        chunks, ending = command.chunks, sum(chunk.final for chunk in command.chunks)
        return self.speeds.pass_ns([(c.start, c.stop) for c in chunks], ending, self._beside(command.worker))

    def _beside(self, worker: cmd.Worker) -> bool:
        """Does another worker compute now, or is about to?"""
        state = self.controller.state
        busy = [seat.worker for seat in state.prefills if seat.passing] + [s.worker for s in state.decodes if s.steps]
        return any(other != worker for other in busy)

    def _hand_off(self, transfers: list[int], layer: int) -> None:
        for transfer in transfers:
            self.traffic.hand_off(transfer, layer, self.now_ns)
        self.drive_lanes()

    def _decode(self, command: cmd.Decode) -> None:
        worker, token = command.worker, self._token
        if worker not in self._mirrors:
            self._mirrors[worker] = BatchView()
        used, padded = self._mirrors[worker].follow(command)
        tokens = tuple([token(request, index) for request, index in self._mirrors[worker].rows()])
        padded = padded if self.speeds.pads else used
        start = self._start(worker)
        end = start + self.speeds.step_ns(len(tokens), padded, self._beside(worker))
        self._free_ns[worker] = end
        if self.recorder.on:
            order, sizes = tuple(chain.from_iterable(command.groups)), tuple(map(len, command.groups))
            self.recorder.span(
                Span(
                    "decode", str(worker), start, end, order, command.step, len(order),
                    ready_ns=command.at_ns, groups=sizes,
                )
            )  # fmt: skip
        stepped = ev.Stepped(worker, command.step, tokens, start, end, used, padded)
        self.at(end + self.speeds.turn_ns, self.deliver, stepped)

    token = staticmethod(fake_token)

    def _token(self, request: int, index: int) -> int:
        """The one it is to be given, else the model's; a step that is ahead may ask for one more."""
        forced = self._forced.get(request, ())
        return forced[index] if index < len(forced) else self.token(request, index)

    def _start(self, worker: cmd.Worker) -> int:
        return max(self.now_ns, self._free_ns.get(worker, 0))

    # ---- wires -------------------------------------------------------------------------------------------------------

    def drive_lanes(self) -> None:
        """Starts a copy on every idle lane that has one ready."""
        traffic, busy = self.traffic, self.busy_lanes
        if traffic.queued:
            for name, lane in traffic.lanes.items():
                if lane.ready and name not in busy and (flight := traffic.start(name)) is not None:
                    self._fly(flight, lane.clock.link.dialled)

    def _fly(self, flight: Copy, dialled: bool) -> None:
        """Keeps the lane busy, and lets the copy land when its wire says; an undialled one keeps no account."""
        self.busy_lanes.add(flight.lane)
        if not dialled:
            flight.start_ns = max(flight.start_ns, self.now_ns)
            took = self.speeds.copy_ns(flight.lane, flight.nbytes)
            flight.busy_until_ns = flight.landing_ns = flight.start_ns + took
        if flight.busy_until_ns < flight.landing_ns:
            self.at(flight.busy_until_ns, self._lane_free, flight.lane)
            self.at(flight.landing_ns, self.land, flight)
        else:
            self.at(flight.landing_ns, self._through, flight)

    def _lane_free(self, name: LaneName) -> None:
        self.busy_lanes.discard(name)
        self.drive_lanes()

    def _through(self, flight) -> None:
        """Without latency a wire is free as its copy lands."""
        self._lane_free(flight.lane)
        self.land(flight)

    def land(self, flight) -> None:
        notices = self.traffic.finish(flight)
        if self.recorder.on:
            self.recorder.span(flight.span(flight.landing_ns))
        for notice in notices:
            self.deliver(notice)
        self.drive_lanes()  # whether or not a notice came through


#: What else a controller says is for real workers alone.
_OBEYED = {
    cmd.Prefill: "_prefill",
    cmd.Decode: "_decode",
    cmd.Send: "_send",
    cmd.Assign: "_assign",
    cmd.Abort: "_abort",
    cmd.Emit: "_emit",
    cmd.Ended: "_ended",
    cmd.Retuned: "_retuned",
    cmd.Preempted: "_preempted",
}
