"""The controller's decisions under the virtual clock, one event at a time.

    stepper = Stepper(Config.preset("paged", decode_blocks=12), requests)
    stepper.at(7).why  # in words: the rules that fired, and the numbers they compared

Moments are computed one window at a time from a copy of the simulation; going back computes a window again.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import BlockPool
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.request import Record, Request
from disagg.plan.state import ControllerState, Reason
from disagg.trace.describe import command_in_words, event_in_words, reason_in_words
from disagg.trace.results import Run
from disagg.twin.simulate import simulation_of
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

EVERY = 50  # moments of a window
KEPT = 4  # windows in memory


@dataclass(frozen=True)
class Moment:
    """An event, the rules that fired, the commands that followed, and the state after it."""

    number: int
    at_ns: int
    event: str
    why: tuple[str, ...]
    commands: tuple[str, ...]
    state: dict[str, Any]


class SteppedEngine(SimulatedEngine):
    """Keeps a moment of each event if `moments` is a list."""

    moments: list[Moment] | None = None
    delivered = 0

    def deliver(self, event: ev.Event) -> None:
        reasons: list[Reason] = []
        commands: list[cmd.Command] = []
        self.controller.state.reasons, self._obeyed = reasons, commands
        super().deliver(event)
        if self.moments is not None:
            why, what = tuple(starmap(reason_in_words, reasons)), tuple(map(command_in_words, commands))
            moment = Moment(self.delivered, self.now_ns, event_in_words(event), why, what, state_of(self))
            self.moments.append(moment)
        self.delivered += 1

    def obey(self, command: cmd.Command) -> None:
        self._obeyed.append(command)
        super().obey(command)


class Stepper:
    """The moments of a simulated run, from 0 on."""

    def __init__(self, config: Config, requests: Sequence[Request]) -> None:
        self._arguments = config, list(requests), Speeds()
        simulation = simulation_of(SteppedEngine, *self._arguments)
        simulation.recorder.begin(0, record=False)
        simulation.delivered = 0  # the probe before the first request is no moment
        self._copies: dict[int, SteppedEngine] = {}  # number of the first moment → the simulation before it
        self._windows: dict[int, list[Moment]] = {}
        begun, running = -1, True
        while running:
            if simulation.delivered // EVERY > begun:
                begun = simulation.delivered // EVERY
                self._copies[simulation.delivered] = copy.deepcopy(simulation)
            running = simulation.step()
        self.length = simulation.delivered

    def __len__(self) -> int:
        return self.length

    def at(self, number: int) -> Moment:
        if not self.length:
            raise ConfigError("nothing happens in this run: it has no request; give at least one")
        if not 0 <= number < self.length:
            raise ConfigError(
                f"moment {number} does not exist: this run has {self.length}, from 0 to {self.length - 1}"
            )
        start = max(first for first in self._copies if first <= number)
        return self._window(start)[number - start]

    def run(self) -> Run:
        """The whole of it."""
        simulation = simulation_of(SteppedEngine, *self._arguments)
        simulation.run()
        return simulation.so_far()

    def _window(self, start: int) -> list[Moment]:
        if start not in self._windows:
            end = min((first for first in self._copies if first > start), default=self.length)
            simulation = copy.deepcopy(self._copies[start])
            simulation.moments = []
            while simulation.delivered < end:
                simulation.step()
            while len(self._windows) >= KEPT:
                del self._windows[next(iter(self._windows))]
            self._windows[start] = simulation.moments
        return self._windows[start]


def state_of(simulation: SimulatedEngine) -> dict[str, Any]:
    """Queues, requests, tables, pools, ring, links and batches as plain data."""
    state, transfers = simulation.controller.state, simulation.transfers
    return {
        "requests": {str(record.id): _request(record) for record in state.records.values()},
        "queues": _queues(state),
        "pools": {pool.name: _pool(pool) for pool in state.pools() if pool.total},
        "ring": _pool(transfers.ring) if transfers.ring.total else None,
        "links": {
            str(n): {"waiting": transfers.waiting(n), "busy": n in simulation.busy_lanes} for n in transfers.lanes
        },
        "passes": {str(w.name): [r.id for r, _ in w.passing.items] if w.passing else [] for w in state.prefills},
        "batches": {str(w.name): [list(g.ids) for _, g in sorted(w.groups.items())] for w in state.decodes},
        "steps": {str(w.name): [list(step.requests) for step in w.steps] for w in state.decodes},
    }


def _request(record: Record) -> dict[str, Any]:
    tables: dict[str, Any] = {"prefill": record.prefill_table, "decode": record.decode_table, "host": record.host_table}
    return {
        "stage": record.stage.value,
        "gate": record.gate,
        "prefilled": record.prefilled,
        "tokens": len(record.generated),
        "tables": {name: list(table.blocks) for name, table in tables.items() if table is not None},
    }


def _queues(state: ControllerState) -> dict[str, Any]:
    queues = {f"{worker.name} queue": worker.queue for worker in reversed(state.prefills)}
    queues |= {f"{worker.name} landed": worker.landed for worker in state.decodes}
    queues["wanting"] = state.wanting
    return {name: {"requests": [r.id for r in queue], "gate": queue.gate} for name, queue in queues.items()}


def _pool(pool: BlockPool) -> dict[str, Any]:
    held = [{"owner": owner, "state": state, "blocks": blocks} for (owner, state), blocks in pool.holdings().items()]
    return {"total": pool.total, "free": pool.total - pool.held, "held": held}
