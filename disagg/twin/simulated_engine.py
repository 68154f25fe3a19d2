"""One controller and its transfer scheduler under a virtual clock, with workers that take time.

One heap, one order, no thread. `Speeds` are round numbers; real figures need the cost model of hardware.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import ClassVar

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.errors import EngineError, RequestError
from disagg.plan.gates import open_in_words
from disagg.plan.link import LaneName, LaneRole
from disagg.plan.request import Job
from disagg.plan.state import ControllerState
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.trace.recorder import Recorder
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span
from disagg.twin.batch_view import BatchView
from disagg.twin.blocking_pass import BlockingPass
from disagg.twin.hardware import Predicted
from disagg.twin.simulated_lanes import SimulatedLanes


@dataclass(frozen=True)
class Speeds:
    """Round costs of simulated work in ns, and the model's shape."""

    layers: int = 30
    token_bytes: int = 46_080  # of K/V, in all layers
    prefill_pass: int = 2_000_000
    prefill_token: int = 4_000_000
    step: int = 60_000_000
    step_row: int = 6_000_000
    step_token: int = 20_000
    tail: int = 3_000_000  # prefill's output head
    copy_byte: float = 0.2  # on an undialled link
    pads: ClassVar[bool] = True  # every row of a group is read up to the group's longest
    steps_in_flight: ClassVar[int] = 1
    turn_ns: ClassVar[int] = 0  # from a worker's answer to its arrival at the controller

    def pass_ns(
        self, chunks: Sequence[tuple[int, int]], ending: int, beside: bool, rows: Sequence[int] = ()
    ) -> tuple[int, int, int]:
        """A pass over chunks [start, stop): ns before the first layer's hand-off, between two of them, and after the
        last; `ending` prompts end in it, `beside` says that another worker computes, `rows` are the contexts of the
        rows that decode in it."""
        tokens = sum(stop - start for start, stop in chunks)
        decoding = len(rows) * self.step_row + sum(rows) * self.step_token
        layer = (self.prefill_pass + tokens * self.prefill_token + decoding) // self.layers
        return layer, layer, self.tail

    def at(self, worker: cmd.Worker) -> "Speeds":
        """The times of this worker; all are alike."""
        return self

    def step_ns(self, rows: int, tokens: int, beside: bool) -> int:
        """A step: `tokens` whose K/V it reads include padding and the new tokens."""
        return self.step + rows * self.step_row + tokens * self.step_token

    def copy_ns(self, lane: LaneName, nbytes: int) -> int:
        """A copy on an undialled link."""
        return round(nbytes * self.copy_byte)


WorkTimes = Speeds | Predicted
PROBED = (16, 64)  # tokens of the passes that an engine times at its start
PROBED_STEPS = ((2, 32), (8, 128), (8, 512), (1, 16))  # rows of its steps, and the tokens that these read


def fake_token(request: int, index: int) -> int:
    """A simulated model's token: a function of request and index, so that a mix-up shows."""
    return 3 + (request * 7919 + index * 104_729) % 997


class SimulatedEngine(SimulatedLanes):
    """One controller, its transfer scheduler, and workers that take time. `step` advances by one event."""

    def __init__(
        self, config: Config, speeds: WorkTimes = Speeds(), steps_in_flight: int | None = None, record: bool = True
    ) -> None:
        shape = {"layers": speeds.layers, "token_bytes": speeds.token_bytes}
        super().__init__(TransferScheduler(config, **shape))
        self.config, self.speeds = config, speeds
        ahead = speeds.steps_in_flight if steps_in_flight is None else steps_in_flight
        self.controller = Controller(config, **shape, steps_in_flight=ahead, pads=speeds.pads)
        self.results: dict[int, Result] = {}
        self.recorder = Recorder(self.controller.state, self.transfers, "virtual clock", last=0)
        self.recorder.begin(0, record)
        self._free_ns: dict[cmd.Worker, int] = {}
        self._batches: dict[cmd.Worker, BatchView] = {}
        self._forced: dict[int, tuple[int, ...]] = {}  # ids that a request must get

    def _probed(self) -> ev.Probed:
        """Passes of one prompt, steps and a copy to or from host memory, by the first worker's speeds as engines do."""
        passes, first = [], self.speeds.at(cmd.Worker("decode", 0))
        for tokens in PROBED:
            lead, layer, tail = first.pass_ns([(0, tokens)], 1, False)
            passes.append((tokens, lead + layer * (self.speeds.layers - 1) + tail))
        nbytes = 8 * self.config.block_size * self.speeds.token_bytes
        copy_ns = self.speeds.copy_ns(LaneName(LaneRole.SPILL, 0), nbytes) if self.config.host_blocks else None
        steps = [(rows, tokens, first.step_ns(rows, tokens, False)) for rows, tokens in PROBED_STEPS]
        return ev.Probed(None if copy_ns is None else copy_ns / nbytes, tuple(passes), tuple(steps))

    def submit(self, job: Job) -> None:
        if refusal := self.controller.refusal(job):
            raise RequestError(refusal)
        if not self.results and self.config.probes:
            self.deliver(self._probed())  # as an engine before its first request
        timeline = self.recorder.timeline_of(run=True)
        self.results[job.id] = Result(job.id, len(job.prompt), job.arrival_ns, timeline=timeline)
        if job.sampling.force_ids is not None:
            self._forced[job.id] = job.sampling.force_ids
        self.at(job.arrival_ns, self.deliver, ev.Submit(job))

    def retune(self, config: Config) -> None:
        self.controller.check_live(config)
        self.deliver(ev.Retune(config))

    def run(self, limit_steps: int = 50_000_000) -> None:
        """Runs all actions; EngineError names requests that are still open at the end."""
        for _ in range(limit_steps):
            if not self.step() and not self.pass_deadline():
                break
        else:
            raise EngineError("the simulation does not come to an end")
        if stuck := open_in_words(self.controller.state):
            raise EngineError(f"nothing left to happen, but these wait: {stuck}")

    def pass_deadline(self) -> bool:
        """Whether time goes on to the next deadline when nothing else is left; here it does not."""
        return False

    def skip_to_deadline(self) -> bool:
        """Moves time to the next deadline; False if there is none."""
        due = self.controller.state.deadlines.next_ns
        if due is None or self.controller.broken:
            return False
        self.now_ns = max(self.now_ns, due)
        return True

    def so_far(self) -> Run:
        return self.recorder.run(self.controller.state.config, list(self.results.values()))

    def copy_ns(self, lane: LaneName, nbytes: int) -> int:
        return self.speeds.copy_ns(lane, nbytes)

    def close(self) -> None:
        """Breaks its reference cycles, so that it is freed at once, without the collector."""
        self.transfers.on_ring = lambda at_ns, held: None
        self.controller.state.on_move.clear()

    def deliver(self, event: ev.Event) -> None:
        """Gives the controller one event and carries out its commands."""
        self.recorder.hear(self.now_ns, event)
        commands = self.controller.handle(event, self.now_ns)
        self.recorder.note(self.now_ns)
        for command in commands:
            self.obey(command)
        self.drive_lanes()

    def obey(self, command: cmd.Command) -> None:
        """Carries a command out; commands not named here concern real workers alone."""
        match command:
            case cmd.Emit():
                for request, token in zip(command.requests, command.tokens, strict=True):
                    result = self.results[request]
                    result.token_ids.append(token)
                    result.token_times_ns.append(command.at_ns)
            case cmd.Decode():
                self._decode(command)
            case cmd.Prefill():
                self._prefill(command)
            case cmd.Send():
                self.transfers.send(command, self.now_ns)
            case cmd.Assign():
                self.transfers.assign(command, self.now_ns)
            case cmd.Abort():
                for notice in self.transfers.abort(command.transfer, self.now_ns):
                    self.at(self.now_ns, self.deliver, notice)
            case cmd.Ended():
                result = self.results[command.request]
                result.finish_reason, result.error = command.finish.value, command.error
                result.ended_ns, result.stages, result.seat = command.at_ns, command.stages, command.seat
            case cmd.Retuned():
                self.transfers.retune(command.config)
            case cmd.Preempted():
                self.recorder.choose(command.choice)
            case cmd.Placed():
                self.recorder.place(command)

    def _prefill(self, command: cmd.Prefill) -> None:
        speeds, start = self.speeds, self._start(command.worker)
        lead, layer, tail = self._pass_ns(command)
        if self.transfers.blocking:
            written, ended = partial(self.layer_written, command), partial(self.end_pass, command, start)
            self.at(start + lead, BlockingPass(self, command, layer, tail, written, ended).hand_off)
            return
        marks = tuple([start + lead + index * layer for index in range(speeds.layers)])
        for index, moving in handed_off_by(self.transfers, command):
            self.at(marks[index], self._hand_off, moving, index)
        self.end_pass(command, start, marks[-1] + tail, marks)

    def layer_written(self, command: cmd.Prefill, layer: int) -> None:
        """Called by passes whose hand-offs block, just before a layer is handed off."""

    def end_pass(
        self, command: cmd.Prefill, start: int, end: int, marks: tuple[int, ...], waits: tuple[int, ...] = ()
    ) -> None:
        """Records a pass whose end is known, and schedules the worker's answer."""
        prompts = command.prompts
        tokens = sum(chunk.stop - chunk.start for chunk in prompts)
        finals = [chunk for chunk in command.chunks if chunk.final]
        self._free_ns[command.worker] = end
        requests, firsts = tuple(c.request for c in prompts), tuple(c.request for c in prompts if c.final)
        span = Span("prefill", str(command.worker), start, end, requests, command.pass_id, tokens, 0, firsts, marks)
        blocks = sum(len(chunk.blocks) for chunk in prompts)
        self.recorder.span(span._replace(ready_ns=command.at_ns, blocks=blocks, waits_ns=waits))
        if command.step is not None:
            self._batch(command.worker).follow(command.step)
            self._record_step(command.step, start, end, mixed=True)
        given = tuple(self._token(chunk.request, chunk.token_index) for chunk in finals)
        prefilled = ev.Prefilled(command.worker, command.pass_id, given, start, end)
        self.at(end + self.speeds.turn_ns, self.deliver, prefilled)

    def _pass_ns(self, command: cmd.Prefill) -> tuple[int, int, int]:
        prompts, beside = command.prompts, computes_beside(self.controller.state, command.worker)
        rows = [chunk.stop for chunk in command.chunks[len(prompts) :]]
        ending = sum(chunk.final for chunk in prompts)
        return self.speeds.at(command.worker).pass_ns([(c.start, c.stop) for c in prompts], ending, beside, rows)

    def _hand_off(self, moving: list[int], layer: int) -> None:
        for transfer in moving:
            self.transfers.hand_off(transfer, layer, self.now_ns)
        self.drive_lanes()

    def _decode(self, command: cmd.Decode) -> None:
        worker, token = command.worker, self._token
        batch = self._batch(worker)
        used, padded = batch.follow(command)
        tokens = tuple([token(request, index) for request, index in batch.rows()])
        padded = padded if self.speeds.pads else used
        start = self._start(worker)
        beside = computes_beside(self.controller.state, worker)
        end = start + self.speeds.at(worker).step_ns(len(tokens), padded, beside)
        self._free_ns[worker] = end
        self._record_step(command, start, end)
        stepped = ev.Stepped(worker, command.step, tokens, start, end, used, padded)
        self.at(end + self.speeds.turn_ns, self.deliver, stepped)

    def _batch(self, worker: cmd.Worker) -> BatchView:
        return self._batches.setdefault(worker, BatchView())

    def _record_step(self, command: cmd.Decode, start: int, end: int, mixed: bool = False) -> None:
        """A mixed pass reads each row alone, and pads none."""
        if self.recorder.on:
            order = tuple(chain.from_iterable(command.groups))
            sizes = (1,) * len(order) if mixed else tuple(map(len, command.groups))
            span = Span("decode", str(command.worker), start, end, order, command.step, len(order))
            self.recorder.span(span._replace(ready_ns=command.at_ns, groups=sizes))

    token = staticmethod(fake_token)

    def _token(self, request: int, index: int) -> int:
        """The forced token, else the model's; a step ahead may need one more than were forced."""
        forced = self._forced.get(request, ())
        return forced[index] if index < len(forced) else self.token(request, index)

    def _start(self, worker: cmd.Worker) -> int:
        return max(self.now_ns, self._free_ns.get(worker, 0))


def handed_off_by(transfers: TransferScheduler, command: cmd.Prefill) -> list[tuple[int, list[int]]]:
    """(layer, transfers with a copy that is ready at this layer's hand-off); other copies wait for more layers."""
    moving: dict[int, list[int]] = {}
    for chunk in command.chunks:
        if chunk.transfer is not None:
            for layer in transfers.copied_after(chunk.transfer):
                moving.setdefault(layer, []).append(chunk.transfer)
    return sorted(moving.items())


def computes_beside(state: ControllerState, worker: cmd.Worker) -> bool:
    """Whether another worker computes now or is about to."""
    busy = [w.name for w in state.prefills if w.passing] + [w.name for w in state.decodes if w.steps]
    return any(other != worker for other in busy)
