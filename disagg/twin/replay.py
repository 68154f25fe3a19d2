"""The controller once more over the events it was given: what it decides is a function of them and of their times.

A log holds everything that an engine's controller got. Fed again, without workers or a clock, it leads to the
same commands in the same order, or the controller looked at something that it should not know.
Notebook: notebooks/06_twin_and_claims.ipynb.
"""

from collections.abc import Iterable

from disagg.plan.commands import Command
from disagg.plan.config import Config
from disagg.plan.controller import Controller
from disagg.plan.events import Event


def replay(
    config: Config,
    log: Iterable[tuple[int, Event]],
    *,
    layers: int,
    token_bytes: int,
    steps_in_flight: int = 1,
    pads: bool = True,
) -> list[tuple[int, Command]]:
    """(ns, command) of a new controller. `config` must have its block counts filled in."""
    controller = Controller(config, layers=layers, token_bytes=token_bytes, steps_in_flight=steps_in_flight, pads=pads)
    return [(now_ns, command) for now_ns, event in log for command in controller.handle(event, now_ns)]


def in_lines(log: Iterable[tuple[int, object]]) -> bytes:
    """A log of events or commands as text, a line each: equal logs give equal bytes on every machine."""
    return "".join(f"{now_ns} {entry!r}\n" for now_ns, entry in log).encode()
