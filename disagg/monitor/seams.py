"""Where a fault plan reaches into the real engine: each method is one such place, and here it changes nothing."""

from collections.abc import Callable
from typing import Any

from disagg.plan import events as ev
from disagg.plan.commands import Decode, Prefill
from disagg.plan.transfer_scheduler import Copy

#: What workers and transfers report to the controller.
NOTICES = (ev.Landed, ev.SourceRead, ev.TransferClosed, ev.Prefilled, ev.Stepped, ev.PassFailed, ev.StepFailed)


class Seams:
    """Of one engine; any of its threads may call. `put` takes an event into the engine's inbox."""

    def __init__(self, put: Callable[[ev.Event], None]) -> None:
        self._put = put

    def post(self, event: ev.Event) -> None:
        self._put(event)

    def work(self, command: Prefill | Decode) -> None:
        """Before a pass or a step, on the worker's thread."""

    def guard(self, model: Any) -> Any:
        """The model that a worker computes with, in place of the given one."""
        return model

    def copy(self, copy: Copy) -> bool:
        """Before a copy, on its lane's thread. True where one bit of what arrives is to flip."""
        return False

    def allocate(self, what: str) -> None:
        """Before memory is taken for K/V; EngineError where there is to be none."""

    def after_event(self, loop: Any) -> None:
        """After an event of the controller, on the engine's thread."""
