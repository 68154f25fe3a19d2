"""Replays a controller's events: its commands are a function of the events and their times.

A log holds all input of an engine's controller. A new controller, without workers or a clock, must give the same
commands in the same order; if not, the controller read something else.
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
    """(ns, command) of a new controller over the log. `config` must have its block counts."""
    controller = Controller(config, layers=layers, token_bytes=token_bytes, steps_in_flight=steps_in_flight, pads=pads)
    return [(now_ns, command) for now_ns, event in log for command in controller.handle(event, now_ns)]


def in_lines(log: Iterable[tuple[int, object]]) -> bytes:
    """A log of events or commands as lines of text; equal logs give equal bytes on every machine."""
    return "".join(f"{now_ns} {entry!r}\n" for now_ns, entry in log).encode()
