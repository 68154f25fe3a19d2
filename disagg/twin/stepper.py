"""Steps through the controller's decisions, forward and back, under the virtual clock.

    stepper = Stepper(Config.preset("paged", decode_blocks=12), requests)
    stepper.step().why  # in words: the rules that fired, and the numbers they compared

A moment is what one event did. Moments are computed a window at a time from a copy of the world, so going back is
the same computation again: same requests, same bytes.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass

from disagg.plan.config import Config
from disagg.plan.describe import command_in_words, event_in_words
from disagg.plan.errors import ConfigError
from disagg.plan.request import Request
from disagg.plan.state import ControllerState
from disagg.trace.results import Run
from disagg.twin.simulate import world_of
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

EVERY = 50  # moments of a window
KEPT = 4  # windows in memory


@dataclass(frozen=True)
class Moment:
    """What one event did: the event, the rules that fired, the commands it led to, and the state after it."""

    number: int
    at_ns: int
    event: str
    why: tuple[str, ...]
    commands: tuple[str, ...]
    state: dict

    def to_bytes(self) -> bytes:
        """The same moment gives the same bytes."""
        return json.dumps(vars(self), sort_keys=True).encode()

    def __str__(self) -> str:
        lines = [f"{self.number}. at {self.at_ns / 1e6:.1f} ms: {self.event}"]
        lines += [f"   because {why}" for why in self.why] + [f"   → {command}" for command in self.commands]
        return "\n".join(lines)


class Watched(SimulatedEngine):
    """A world that keeps a moment of each event, where `moments` is a list."""

    moments: list[Moment] | None = None
    delivered = 0

    def deliver(self, event) -> None:
        self.controller.state.reasons = reasons = []
        commands: list = []
        self._obeyed = commands
        super().deliver(event)
        if self.moments is not None:
            self.moments.append(
                Moment(
                    self.delivered, self.now_ns, event_in_words(event), tuple(map(str, reasons)),
                    tuple(map(command_in_words, commands)), state_of(self),
                )
            )  # fmt: skip
        self.delivered += 1

    def obey(self, command) -> None:
        self._obeyed.append(command)
        super().obey(command)


class Stepper:
    """Stands on one moment of a simulated run; `step`, `back` and `go` move it, `fork` tries another future."""

    def __init__(self, config: Config, requests: Sequence[Request], speeds: Speeds | None = None) -> None:
        self._arguments = config, list(requests), speeds or Speeds()
        world = world_of(*self._arguments, kind=Watched)
        world.recorder.begin(0, record=False)
        self._worlds: dict[int, Watched] = {}  # number of the first moment → the world before it
        self._windows: dict[int, list[Moment]] = {}
        begun = -1
        while True:
            if world.delivered // EVERY > begun:
                begun = world.delivered // EVERY
                self._worlds[world.delivered] = copy.deepcopy(world)
            if not world.step():
                break
        self._starts = sorted(self._worlds)
        self.length = world.delivered
        self.position = 0

    def __len__(self) -> int:
        return self.length

    @property
    def moment(self) -> Moment:
        """The moment it stands on."""
        return self.at(self.position)

    def at(self, number: int) -> Moment:
        """Moment `number`, without going there."""
        if not self.length:
            raise ConfigError("nothing happens in this run: it has no request; give at least one")
        if not 0 <= number < self.length:
            raise ConfigError(
                f"moment {number} does not exist: this run has {self.length}, from 0 to {self.length - 1}"
            )
        start = max(first for first in self._starts if first <= number)
        return self._window(start)[number - start]

    def step(self, count: int = 1) -> Moment:
        """On to the next moment, or `count` of them; stays at the last."""
        return self.go(min(self.position + count, self.length - 1))

    def back(self, count: int = 1) -> Moment:
        """Back to the moment before; stays at the first."""
        return self.go(max(self.position - count, 0))

    def go(self, number: int) -> Moment:
        """To a moment by its number."""
        moment = self.at(number)
        self.position = number
        return moment

    def run(self) -> Run:
        """The whole run, as `simulate` gives it."""
        return self._finish(self._recorded())

    def fork(self, at: int | None = None, config: Config | None = None, **changes) -> tuple[Run, Run]:
        """Both futures of a moment: as it was, and with other settings from there on (those of `engine.retune`)."""
        at = self.position if at is None else at
        self.at(at)
        world = self._recorded()
        while world.delivered <= at:
            world.step()
        world.retune((config or world.controller.state.config).replace(**changes))
        return self.run(), self._finish(world)

    def _recorded(self) -> Watched:
        return world_of(*self._arguments, kind=Watched)

    def _finish(self, world: SimulatedEngine) -> Run:
        world.run()
        return world.so_far()

    def _window(self, start: int) -> list[Moment]:
        if start not in self._windows:
            end = min((first for first in self._starts if first > start), default=self.length)
            world = copy.deepcopy(self._worlds[start])
            world.moments = []
            while world.delivered < end:
                world.step()
            while len(self._windows) >= KEPT:
                del self._windows[next(iter(self._windows))]
            self._windows[start] = world.moments
        return self._windows[start]


def state_of(world: SimulatedEngine) -> dict:
    """Queues, requests, tables, pools, ring, wires and batches as plain data."""
    state, traffic = world.controller.state, world.traffic
    return {
        "requests": {str(record.id): _request(record) for record in state.records.values()},
        "queues": _queues(state),
        "pools": {pool.name: _pool(pool) for pool in state.pools() if pool.total},
        "ring": _pool(traffic.ring) if traffic.ring.total else None,
        "wires": {str(n): {"waiting": traffic.waiting(n), "busy": n in world.busy_lanes} for n in traffic.lanes},
        "passes": {str(seat.worker): _passing(seat) for seat in state.prefills},
        "batches": {str(seat.worker): [list(g.ids) for _, g in sorted(seat.groups.items())] for seat in state.decodes},
        "steps": {str(seat.worker): [list(step.requests) for step in seat.steps] for seat in state.decodes},
    }  # fmt: skip


def _request(record) -> dict:
    tables = {"prefill": record.prefill_table, "decode": record.decode_table, "host": record.host_table}
    return {
        "stage": record.stage.value,
        "gate": record.gate,
        "prefilled": record.prefilled,
        "tokens": len(record.generated),
        "tables": {name: list(table.blocks) for name, table in tables.items() if table is not None},
    }


def _passing(seat) -> list[int]:
    return [record.id for record, _ in seat.passing.items] if seat.passing else []


def _queues(state: ControllerState) -> dict:
    queues = {f"{seat.worker} queue": seat.queue for seat in reversed(state.prefills)}
    queues |= {f"{seat.worker} landed": seat.landed for seat in state.decodes}
    queues["wanting"] = state.wanting
    return {name: {"requests": [r.id for r in queue], "gate": queue.gate} for name, queue in queues.items()}


def _pool(pool) -> dict:
    held = [{"owner": owner, "state": state, "blocks": blocks} for (owner, state), blocks in pool.holdings().items()]
    return {"total": pool.total, "free": pool.total - pool.held, "held": held}
