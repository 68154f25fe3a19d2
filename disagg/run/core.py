"""What the engine's thread owns: the controller with its recorder and detectors, and the handles of open requests."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from disagg.monitor.monitor import Monitor
from disagg.monitor.violation import InvariantViolation
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.errors import EngineError, RequestError, in_words
from disagg.plan.request import Job
from disagg.run.executor import Executor
from disagg.run.handle import Handle, OpenHandles
from disagg.run.machine.open_engines import FORKED
from disagg.run.threads import Latch
from disagg.trace.recorder import Recorder


class EngineCore:
    """Takes events, one at a time, and has the controller's commands carried out. For the engine's thread; what any
    thread may call says so."""

    def __init__(self, config: Config, executor: Executor, now_ns: Callable[[], int]) -> None:
        """`now_ns` gives the time of the event that is taken next."""
        self.config, self.executor, self._now_ns = config, executor, now_ns
        shape, path = executor.model.shape, executor.attention_path
        sizes = {"layers": shape.layers, "token_bytes": shape.token_bytes}
        self.controller = Controller(config, **sizes, steps_in_flight=path.steps_in_flight, pads=path.pads)
        self.detectors = Monitor(config, layers=shape.layers)
        self.controller.state.on_move.append(self.detectors.moved)
        self.recorder: Recorder  # from the loop's `start` on: it reads the lanes
        self.handles = OpenHandles()
        self.served: dict[int, Handle] = {}  # of the run that is being served, by the request's index in it
        self.breach: InvariantViolation | None = None  # what a detector saw; the engine is broken then
        self.broken: str | None = None
        self.closed = False  # takes nothing more
        self.over = Latch()  # interrupted, closed or broken: `serve` waits for no further arrival
        self._numbers = itertools.count()

    def check_open(self) -> None:
        """For any thread: EngineError once it is closed or broken, or where this is another process."""
        if self.closed:
            raise EngineError("this engine is closed; build a new one")
        if self.broken:
            words = f"this engine is broken and must be rebuilt: {self.broken}"
            raise EngineError(FORKED if self.broken == FORKED else words)

    def interrupt(self) -> None:
        """For any thread: ends the run that is being served."""
        self.over.set()
        for handle in list(self.served.values()):
            handle.cancel()

    def refuse(self, jobs: list[Job]) -> None:
        """RequestError where one of them can never be served."""
        for job in jobs:
            if refusal := self.controller.refusal(job):
                raise RequestError(refusal)

    def admit(self, job: Job, handle: Handle, run: bool) -> None:
        """A request gets its number, and is under way; its timeline is that of the `run`, or the last entries.
        EngineError where nothing is taken any more."""
        self.check_open()
        result = handle.so_far
        result.request, result.timeline = next(self._numbers), self.recorder.timeline_of(run)
        self.handles[result.request] = handle
        self.take(ev.Submit(replace(job, id=result.request, arrival_ns=result.arrival_ns)))

    def cancel(self, handle: Handle) -> None:
        if handle.so_far.request in self.handles:
            self.take(ev.Cancel(handle.so_far.request))

    def retune(self, config: Config) -> None:
        """New settings: seen by users and by the controller at once."""
        self.config = config
        self.take(ev.Retune(config))

    def shut(self) -> list[Handle]:
        """Takes nothing more, and cancels what is open: the handles of that."""
        self.closed = True
        self.over.set()
        handles = list(self.handles.values())
        for request in list(self.handles):
            self.take(ev.Cancel(request))
        return handles

    def fail(self, error: BaseException) -> EngineError:
        """A rule was broken, before any of these commands was carried out; or the controller has a bug."""
        if isinstance(error, InvariantViolation):
            self.breach = error
        cause = f"the controller failed: {in_words(error)}"
        self._fail_open(error.summary if isinstance(error, InvariantViolation) else cause)
        return EngineError(f"this engine is broken and must be rebuilt: {self.broken}")

    def take(self, event: ev.Event) -> None:
        """One event into the controller, and its commands carried out."""
        now = self._now_ns()
        self.recorder.hear(now, event)
        commands = self.detectors.around(self.controller.handle, event, now)
        self.recorder.note(now)
        if self.controller.broken:
            self.break_off(self.controller.broken)  # known before any handle ends
        for command in commands:
            self._obey(command)
        self.executor.seams.after_event(self)

    def _obey(self, command: cmd.Command) -> None:
        """The executor's part first, then that of handles and of the recorder."""
        self.executor.obey(command)
        self.handles.obey(command)
        match command:
            case cmd.Preempted():
                self.recorder.choose(command.choice)
            case cmd.Placed():
                self.recorder.place(command)
            case cmd.Broken():
                self._fail_open(command.cause)

    def break_off(self, cause: str) -> None:
        self.broken = self.broken or cause
        self.over.set()

    def _fail_open(self, cause: str) -> None:
        self.break_off(cause)
        self.handles.fail(cause)
