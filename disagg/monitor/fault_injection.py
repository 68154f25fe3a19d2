"""A fault plan in the real engine: its inbox, workers, lanes and allocations call these methods before they act.

Nothing sleeps: a stalled copy goes on after some notices of other copies.
Notebook: notebooks/08_bug_lab.ipynb.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from disagg.monitor.seams import NOTICES, Seams
from disagg.plan import events as ev
from disagg.plan.commands import Decode, Prefill
from disagg.plan.errors import EngineError
from disagg.plan.link import LaneRole
from disagg.plan.transfer_scheduler import Copy

STALL_EVENTS, STALL_S = 20, 0.2  # a stalled copy waits for this many notices of others, or this long
LATE_S = 0.02  # the delay of a late notice: newer ones come first
UNKNOWN = 10**9  # an id that no transfer has

T = TypeVar("T")


class Strikes(Protocol):
    """A fault plan: it counts events and chooses their faults."""

    def strike(self, kind: str) -> str | None: ...
    def pick(self, among: list[T]) -> T: ...


class Struck(RuntimeError):
    """An error that a fault plan raises."""


class Died(BaseException):
    """Ends a worker's thread: no handler catches it."""


class Injection(Seams):
    """One engine's plan. Any thread may call; `hurt` are the requests that a fault may fail."""

    def __init__(self, plan: Strikes, put: Callable[[ev.Event], None]) -> None:
        super().__init__(put)
        self.plan = plan
        self.hurt: set[int] = set()
        self.strays = 0  # notices that change nothing
        self._working = threading.local()  # the current command of each worker thread
        self._moved = threading.Condition()
        self._posted = 0
        self._transfers: dict[int, int] = {}  # transfer → request, of copies that started

    def strike(self, kind: str) -> str | None:
        with self._moved:
            return self.plan.strike(kind)

    def post(self, event: ev.Event) -> None:
        arriving = [event]
        if isinstance(event, ev.Landed) and self.strike("landing") == "lose":
            self.hurt.add(self._transfers[event.transfer])
            arriving = []
        elif isinstance(event, NOTICES):
            match self.strike("notice"):
                case "twice":
                    arriving, self.strays = [event, event], self.strays + 1
                case "late":
                    threading.Timer(LATE_S, self._put, [event]).start()
                    arriving, self.strays = [], self.strays + 1  # its transfer may have ended by now
                case "unknown":
                    arriving, self.strays = [event, ev.SourceRead(UNKNOWN)], self.strays + 1
        for notice in arriving:
            self._put(notice)
        with self._moved:
            self._posted += 1
            self._moved.notify_all()

    def work(self, command: Prefill | Decode) -> None:
        if self.strike("worker") == "die":
            raise Died("the plan ends this worker")
        self._working.command = command

    def guard(self, model: Any) -> Any:
        """A worker's model that raises where the plan says so, after the worker has applied its command."""
        for kind in ("prefill", "decode"):
            setattr(model, kind, partial(self._compute, kind, getattr(model, kind)))
        return model

    def _compute(self, kind: str, compute: Callable[..., Any], *args: Any, **options: Any) -> Any:
        command = getattr(self._working, "command", None)  # none yet: this is a probe, before the first request
        if command is not None and self.strike(kind) == "fail":
            chunks = command.chunks if isinstance(command, Prefill) else ()
            groups = command.groups if isinstance(command, Decode) else ()
            self.hurt.update([chunk.request for chunk in chunks] + [row for group in groups for row in group])
            raise Struck(f"the plan fails this {kind}")
        return compute(*args, **options)

    def copy(self, copy: Copy) -> bool:
        """Before a copy: raises for "fail", waits for "stall"; returns whether to flip one byte."""
        self._transfers[copy.transfer] = copy.request
        paging = copy.lane.role is LaneRole.SPILL or copy.source.role == "host"
        fault = self.strike("paging" if paging else "copy")
        if fault in ("fail", "flip") and not paging:
            self.hurt.add(copy.request)  # after a failed spill or fetch the request is computed again
        if fault == "fail":
            raise Struck("the plan fails this copy")
        if fault == "stall":
            with self._moved:
                goal = self._posted + STALL_EVENTS
                self._moved.wait_for(lambda: self._posted >= goal, STALL_S)
        return fault == "flip"

    def allocate(self, what: str) -> None:
        if self.strike("allocation") == "refuse":
            raise EngineError(f"no room for {what}: the plan refuses this allocation")

    def after_event(self, core: Any) -> None:
        """After a controller event: the plan may cancel one request, or interrupt all."""
        match self.strike("event"):
            case "cancel":
                if handles := list(core.handles.values()):
                    self.plan.pick(handles).cancel()
            case "interrupt":
                core.interrupt()
