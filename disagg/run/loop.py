"""The engine's one thread, which owns what run/core holds.

Everything reaches it through one inbox: events of workers and lanes, and calls of users, which it answers between two
events. So whatever reads or writes the controller's state does it on this thread, one thing after the other.
"""

import contextlib
import queue
import threading
from collections.abc import Callable

import torch

from disagg.monitor.seams import Seams
from disagg.monitor.violation import InvariantViolation
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.run.clock import now_ns
from disagg.run.core import EngineCore
from disagg.run.executor import Executor
from disagg.run.gpu.machine import in_words as machine_in_words
from disagg.run.gpu.thread_priority import ask_for_short_slices
from disagg.run.handle import Handle
from disagg.run.inbox import Call, EndSignal, Inbox
from disagg.run.machine.open_engines import FORKED, OPEN, held_in_words
from disagg.run.model.model import Model
from disagg.run.reports import Post, Reports
from disagg.run.threads import Joinable, Latch
from disagg.trace.recorder import Recorder

WAIT_S = 5.0  # for the threads of an engine without references


class EngineLoop:
    """Does not know the `Engine` that users hold, so that an engine without references can be collected and end it."""

    def __init__(
        self, config: Config, model: Model, progress: Callable[[str], None], make_seams: Callable[[Post], Seams]
    ) -> None:
        """The memories, and the controller over them; nothing runs before `start`."""
        self._inbox = Inbox(lambda error: self.core.fail(error))
        self.call, self.ask = self._inbox.call, self._inbox.ask
        seams = make_seams(self._inbox.put)
        reports = Reports(seams.post, self._keep, lambda span: self.core.recorder.span(span), progress)
        try:
            self.executor = Executor(config, model, reports, seams)
        except EngineError as error:
            raise EngineError(f"{error}{held_in_words()}") from None
        self.core = EngineCore(config, self.executor, self._now_ns)
        self._began = Latch()  # the thread looks into the inbox
        self._thread = Joinable(target=self._run, name="disagg engine")

    def start(self) -> None:
        """The lanes, the workers, and this thread; whatever was started can be stopped by `end`."""
        OPEN.add(self)
        self.executor.connect()
        transfers = self.executor.transfers
        timed = transfers.streams.in_words() if transfers.streams else ""
        machine = machine_in_words() + self.executor.split_in_words() + timed + self.executor.attention_in_words()
        self.core.recorder = Recorder(self.core.controller.state, transfers.scheduler, machine)
        self.executor.start()
        self._thread.start()
        self._began.wait()

    # ---- called by any thread ----------------------------------------------------------------------------------------

    def cancel(self, handle: Handle) -> None:
        """Behind whatever was asked for before: also behind the handle's own admission."""
        self._inbox.put(Call(lambda: self.core.cancel(handle), queue.SimpleQueue(), changes=True))

    def open_handles(self) -> list[Handle]:
        """Of the requests that have not ended."""
        return self.ask(lambda: list(self.core.handles.values()))

    def shut_and_wait(self) -> None:
        """From here on the controller starts nothing more; returns when what was open has ended, also by a break."""
        with contextlib.suppress(EngineError):
            for handle in self.ask(self.core.shut, changes=True):
                handle.result()

    def end(self) -> None:
        """Stops whatever was started; may be cut short anywhere, and called again."""
        if self.forked:
            return
        self.executor.stop()
        self._inbox.put(EndSignal.END)
        self._thread.join()
        OPEN.discard(self)
        self.executor.let_go()

    def abandon(self) -> None:
        """Ends it when its engine has no references: called on the thread in which the collector runs. So the engine's
        own thread stops everything, and only a thread that belongs to no engine waits for it."""
        if self not in OPEN:
            return
        self._inbox.put(EndSignal.ABANDON)
        if self._inbox.ended:  # it broke, and its thread is gone
            threading.Thread(target=self.end, name="disagg end", daemon=True).start()
        if not isinstance(threading.current_thread(), Joinable):
            self._thread.join(WAIT_S)

    @property
    def forked(self) -> bool:
        return self.core.broken == FORKED

    def orphan(self) -> None:
        """In a forked process, which has none of its threads: open handles end as failed, and no later call waits."""
        self._inbox.renew()
        self.core.broken = FORKED
        self.core.handles.fail(FORKED, orphans=True)
        self.core.over = Latch()
        self.core.over.set()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Events in, commands out, until it is closed. A bug in the controller breaks the engine, in words."""
        ask_for_short_slices()
        abandoned, state = False, self.core.controller.state
        self._inbox.begin()
        self._began.set()
        try:
            while (item := self._inbox.next(state.deadlines.next_ns, state.config.watchdog_s)) is not EndSignal.END:
                if item is EndSignal.ABANDON:
                    abandoned = True
                    self.executor.stop()
                    self._inbox.put(EndSignal.END)  # behind the last events of workers and lanes
                elif isinstance(item, Call):
                    self._inbox.answer(item)
                else:
                    self.core.take(item)
                del item  # while it waits for the next one, what a question refers to may go
            self.core.detectors.drained(now_ns())
        except BaseException as error:
            self.core.fail(error)
            if not isinstance(error, InvariantViolation):
                raise
        finally:
            others = self._inbox.end()
            if abandoned or EndSignal.ABANDON in others:
                self.executor.stop()
                OPEN.discard(self)
                self.executor.let_go()

    def _now_ns(self) -> int:
        """On the engine's thread that of its last look at the clock, so that the rules of lost time hold."""
        return self._inbox.seen_ns if threading.current_thread() is self._thread else now_ns()

    def _keep(self, request: int, logits: torch.Tensor) -> None:
        """Keeps logits [vocab] of a token, which a worker reports from its thread, on the model's device."""
        if handle := self.core.handles.get(request):
            handle.so_far.logits.append(logits.to(self.executor.model.device))
