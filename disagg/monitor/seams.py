"""Hooks of the real engine that a fault plan overrides; here each of them changes nothing."""

from collections.abc import Callable
from typing import Any

from disagg.plan import events as ev
from disagg.plan.commands import Decode, Prefill
from disagg.plan.transfer_scheduler import Copy

#: What workers and transfers report to the controller.
NOTICES = (ev.Landed, ev.SourceRead, ev.TransferClosed, ev.Prefilled, ev.Stepped, ev.PassFailed, ev.StepFailed)


class Seams:
    """Hooks of one engine, called by any of its threads. `put` puts an event into the engine's inbox."""

    def __init__(self, put: Callable[[ev.Event], None]) -> None:
        self._put = put

    def post(self, event: ev.Event) -> None:
        self._put(event)

    def work(self, command: Prefill | Decode) -> None:
        """Before a pass or a step, on the worker's thread."""

    def guard(self, model: Any) -> Any:
        """The model that a worker uses in place of the given one."""
        return model

    def copy(self, copy: Copy) -> bool:
        """Before a copy, on its lane's thread; returns whether to flip one bit of what arrives."""
        return False

    def allocate(self, what: str) -> None:
        """Before memory for K/V is allocated; may raise EngineError."""

    def after_event(self, core: Any) -> None:
        """After a controller event, on the engine's thread."""
