"""The engine's one thread. It owns the controller, its recorder and detectors, and the handles of open requests.

Everything reaches it through one inbox: events of workers and lanes, and calls of users, which it answers between two
events. So whatever reads or writes the controller's state does it on this thread, one thing after the other.
"""

import contextlib
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from disagg.monitor.monitor import Monitor
from disagg.monitor.seams import Seams
from disagg.monitor.violation import InvariantViolation
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.errors import EngineError, RequestError, in_words
from disagg.plan.request import Finish, Job
from disagg.plan.spans import Span
from disagg.run.attention.choice import AttentionPath, pick_kernel
from disagg.run.clock import now_ns
from disagg.run.executor import Executor
from disagg.run.gpu.machine import in_words as machine_in_words
from disagg.run.gpu.sm_split import in_words as sms_in_words
from disagg.run.gpu.thread_priority import ask_for_short_slices
from disagg.run.handle import Handle
from disagg.run.inbox import Call, Inbox
from disagg.run.model import shared
from disagg.run.model.model import Model
from disagg.run.placement import held_in_words
from disagg.run.reports import Post, Reports
from disagg.run.threads import Joinable, Latch
from disagg.trace.recorder import Recorder

OPEN: "set[EngineLoop]" = set()  # of this process, from their first thread to the end of their last
BEAT_S = 1.0  # while something is under way the thread looks at the clock at least so often
LOST_BEATS, LOST_S = 2, 0.1  # so long without a look: this process was suspended, or its machine was
WAIT_S = 5.0  # for the threads of an engine without references

FORKED = (
    "this engine belongs to the process that built it, and a forked one has none of its threads; start the process "
    'with multiprocessing\'s "spawn", or build a new engine with threads=1 here'
)
_forked = False  # is this process one? torch's own threads did not come along either


Item: TypeAlias = "ev.Event | Call | EngineLoop | None"  # of the inbox: the loop itself abandons, None ends it


class EngineLoop:
    """Does not know the `Engine` that users hold, so that an engine without references can be collected and end it."""

    def __init__(
        self, config: Config, model: Model, progress: Callable[[str], None], make_seams: Callable[[Post], Seams]
    ) -> None:
        """The memories, and the controller over them; nothing runs before `start`."""
        self.config, self.model = config, model
        self._inbox = Inbox(self._fail)
        self.call, self.ask = self._inbox.call, self._inbox.ask
        self.seams = make_seams(self._inbox.put)
        self._post = self.seams.post
        shape, block_size = model.shape, config.block_size
        assert block_size is not None
        files: Any = model.config
        heads = files.num_attention_heads
        kernel = pick_kernel(config.attention, config.decode_device, shape, heads, block_size, files)
        self.attention_path = path = AttentionPath.of(kernel)
        reports = Reports(self._post, self._keep, self._record, progress)
        try:
            self.executor = Executor(config, model, kernel, reports, self.seams)
        except EngineError as error:
            raise EngineError(f"{error}{held_in_words(loop.executor.caches for loop in list(OPEN))}") from None
        sizes = {"layers": shape.layers, "token_bytes": shape.token_bytes}
        self.controller = Controller(config, **sizes, steps_in_flight=path.steps_in_flight, pads=path.pads)
        self.detectors = Monitor(config, layers=shape.layers)
        self.controller.state.on_move.append(self.detectors.moved)
        self.recorder: Recorder  # from `start` on
        self.breach: InvariantViolation | None = None  # what a detector saw; the engine is broken then
        self.broken: str | None = None
        self.closed = False  # takes nothing more
        self.over = Latch()  # interrupted, closed or broken: `serve` waits for no further arrival
        self.handles: dict[int, Handle] = {}  # of open requests
        self.served: dict[int, Handle] = {}  # of the run that is being served, by the request's index in it
        self._numbers = itertools.count()
        self._began = Latch()  # the thread looks into the inbox
        self._seen_ns = now_ns()  # when the clock was last looked at
        self._late: deque[Item] = deque()  # an item that came after a stretch of lost time, which goes first
        self._thread = Joinable(target=self._run, name="disagg engine")

    def start(self) -> None:
        """The lanes, the workers, and this thread; whatever was started can be stopped by `end`."""
        OPEN.add(self)
        self.executor.connect()
        transfers = self.executor.transfers
        machine = machine_in_words() + sms_in_words(self.executor.parts) + transfers.clock_in_words()
        self.recorder = Recorder(self.controller.state, transfers.scheduler, machine)
        self.executor.start()
        self._thread.start()
        self._began.wait()

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """EngineError once it is closed or broken, or where this is another process."""
        if self.closed:
            raise EngineError("this engine is closed; build a new one")
        if self.broken == FORKED:
            raise EngineError(FORKED)
        if self.broken:
            raise EngineError(f"this engine is broken and must be rebuilt: {self.broken}")

    def cancel(self, handle: Handle) -> None:
        """Behind whatever was asked for before: also behind the handle's own admission."""
        self._inbox.put(Call(lambda: self._cancel(handle), queue.SimpleQueue(), changes=True))

    def interrupt(self) -> None:
        """Ends the run that is being served."""
        self.over.set()
        for handle in list(self.served.values()):
            handle.cancel()

    def open_handles(self) -> list[Handle]:
        """Of the requests that have not ended."""
        return self.ask(lambda: list(self.handles.values()))

    def shut_and_wait(self) -> None:
        """From here on the controller starts nothing more; returns when what was open has ended, also by a break."""
        with contextlib.suppress(EngineError):
            for handle in self.ask(self.shut, changes=True):
                handle.result()

    def end(self) -> None:
        """Stops whatever was started; may be cut short anywhere, and called again."""
        if self.forked:
            return
        self.executor.stop()
        self._inbox.put(None)
        self._thread.join()
        OPEN.discard(self)
        self.executor.let_go()

    def abandon(self) -> None:
        """Ends it when its engine has no references: called on the thread in which the collector runs. So the engine's
        own thread stops everything, and only a thread that belongs to no engine waits for it."""
        if self not in OPEN:
            return
        self._inbox.put(self)
        if self._inbox.ended:  # it broke, and its thread is gone
            threading.Thread(target=self.end, name="disagg end", daemon=True).start()
        if not isinstance(threading.current_thread(), Joinable):
            self._thread.join(WAIT_S)

    @property
    def forked(self) -> bool:
        return self.broken == FORKED

    def orphan(self) -> None:
        """In a forked process, which has none of its threads: open handles end as failed, and no later call waits."""
        self._inbox.renew()
        self.broken = FORKED
        for handle in self.handles.values():
            handle.orphan(cmd.Ended(handle.so_far.request, Finish.FAILED, FORKED, now_ns(), ()))
        self.handles.clear()
        self.over = Latch()
        self.over.set()

    # ---- called by this thread only: what users ask for --------------------------------------------------------------

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
        self._take(ev.Submit(replace(job, id=result.request, arrival_ns=result.arrival_ns)))

    def _cancel(self, handle: Handle) -> None:
        if handle.so_far.request in self.handles:
            self._take(ev.Cancel(handle.so_far.request))

    def retune(self, config: Config) -> None:
        """New settings: seen by users and by the controller at once."""
        self.config = config
        self._take(ev.Retune(config))

    def shut(self) -> list[Handle]:
        """Takes nothing more, and cancels what is open: the handles of that."""
        self.closed = True
        self.over.set()
        handles = list(self.handles.values())
        for request in list(self.handles):
            self._take(ev.Cancel(request))
        return handles

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Events in, commands out, until it is closed. A bug in the controller breaks the engine, in words."""
        ask_for_short_slices()
        abandoned = False
        self._inbox.begin()
        self._began.set()
        try:
            while (item := self._next()) is not None:
                if isinstance(item, EngineLoop):
                    abandoned = True
                    self.executor.stop()
                    self._inbox.put(None)  # behind the last events of workers and lanes
                elif isinstance(item, Call):
                    self._inbox.answer(item)
                else:
                    self._take(item)
                item = None  # while it waits for the next one, what a question refers to may go
            self.detectors.drained(now_ns())
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, InvariantViolation):
                raise
        finally:
            others = self._inbox.end()
            if abandoned or self in others:
                self.executor.stop()
                OPEN.discard(self)
                self.executor.let_go()

    def _fail(self, error: BaseException) -> EngineError:
        """A rule was broken, before any of these commands was carried out; or the controller has a bug."""
        if isinstance(error, InvariantViolation):
            self.breach = error
        cause = f"the controller failed: {in_words(error)}"
        self._fail_open(error.summary if isinstance(error, InvariantViolation) else cause)
        return EngineError(f"this engine is broken and must be rebuilt: {self.broken}")

    def _take(self, event: ev.Event) -> None:
        """One event into the controller, and its commands carried out."""
        now = self._seen_ns if threading.current_thread() is self._thread else now_ns()
        self.recorder.hear(now, event)
        commands = self._decide(event, now)
        self.recorder.note(now)
        if self.controller.broken:
            self._break(self.controller.broken)  # known before any handle ends
        for command in commands:
            self._obey(command)
        self.seams.after_event(self)

    def _decide(self, event: ev.Event, now: int) -> list[cmd.Command]:
        """What the controller makes of an event, heard by the detectors on both sides."""
        watch = self.detectors
        watch.hear(now, event)
        commands = self.controller.handle(event, now)
        for command in commands:
            watch.obey(now, command)
        watch.settle()
        if isinstance(event, ev.Tick):
            watch.watchdog(now)
        return commands

    def _next(self) -> Item:
        """The inbox's next item; a Tick where a deadline comes first, and before both the time that was lost.

        Between two looks at the clock lies a beat, and what the first led to. Where far more has passed, this process
        did not run, or this thread did not, and workers were not heard: no deadline may pass by that. What is taken
        before the next look is taken at the time of this one.
        """
        if self._late:
            return self._late.popleft()
        beat = min(BEAT_S, self.controller.state.config.watchdog_s / 4)
        while True:
            deadline, since = self.controller.state.deadlines.next_ns, self._seen_ns
            wait = None if deadline is None else min(beat, max(0, deadline - now_ns()) / 1e9)
            try:
                item = self._inbox.items.get(timeout=wait)
            except queue.Empty:
                item = ev.Tick()
            now = self._seen_ns = now_ns()
            if deadline is not None and now - since > 1e9 * max(LOST_S, LOST_BEATS * beat):
                self._late.append(item)
                return ev.TimeLost(now - since)
            if not isinstance(item, ev.Tick) or deadline is None or now >= deadline:
                return item

    def _obey(self, command: cmd.Command) -> None:
        """The executor's part first, then what is for handles and the recorder."""
        self.executor.obey(command)
        match command:
            case cmd.Emit():
                for request, token in zip(command.requests, command.tokens, strict=True):
                    if handle := self.handles.get(request):
                        handle.push(token, command.at_ns)
            case cmd.Ended():
                if handle := self.handles.pop(command.request, None):
                    handle.end(command)
            case cmd.Preempted():
                self.recorder.choose(command.choice)
            case cmd.Broken():
                self._fail_open(command.cause)

    def _break(self, cause: str) -> None:
        self.broken = self.broken or cause
        self.over.set()

    def _fail_open(self, cause: str) -> None:
        """Every open handle ends as failed, so that no caller waits for ever."""
        self._break(cause)
        for number, handle in list(self.handles.items()):
            del self.handles[number]
            handle.end(cmd.Ended(number, Finish.FAILED, cause, now_ns(), ()))

    # ---- what workers report, from their threads ---------------------------------------------------------------------

    def _keep(self, request: int, logits: torch.Tensor) -> None:
        handle = self.handles.get(request)
        if handle is not None:
            handle.keep_logits(logits.to(self.model.device))  # of one request, on one device

    def _record(self, span: Span) -> None:
        self.recorder.span(span)


def check_fork(threads: int) -> None:
    """EngineError where torch would wait for threads that a forked process has not."""
    if _forked and threads > 1:
        raise EngineError(
            f"threads={threads}: this process was forked from one with an engine, and torch's threads did not come "
            'along; take threads=1, or start the process with multiprocessing\'s "spawn"'
        )


def _in_a_forked_process() -> None:
    global _forked
    _forked = True
    shared.in_a_forked_process()
    for loop in OPEN:
        loop.orphan()
    OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_process)
