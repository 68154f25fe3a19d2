"""Every order of events in a small simulation: two requests, three layers, a ring of two, one fault or cancel anywhere.

Without a clock, the next action of any queue may happen next; a worker's answers keep their order, and so do a lane's
copies. Each state is entered once, with all detectors on and a shadow memory, and each end is checked.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.robustness.canonical_state import state_of
from benchmarks.robustness.faulty_simulation import FaultySimulation
from disagg.monitor.checked_simulation import SMALL
from disagg.monitor.fault_plan import FaultPlan
from disagg.plan import events as ev
from disagg.plan.checks import present
from disagg.plan.config import Config
from disagg.plan.link import LaneRole, Link
from disagg.plan.policy import FirstCome, Option
from disagg.plan.request import Job, Waiting
from disagg.twin.simulated_engine import Speeds


class Explored(NamedTuple):
    states: int
    steps: int  # ways from one state to another
    ends: int  # states in which nothing is left to happen


class Branch(NamedTuple):
    """What happens next: the first in an actor's queue, with a fault or without; or a cancel."""

    actor: str
    fault: tuple[str, str] | None = None
    cancel: int | None = None


DEADLINE = Branch("deadline")
ASTRAY = (("landing", "lose"), ("notice", "twice"), ("notice", "late"))


class SmallWorld(FaultySimulation):
    """A checked simulation whose actions wait in one queue an actor, until `do` picks one."""

    def __init__(self, config: Config, notices: bool = False, speeds: Speeds = SMALL) -> None:
        self.queues: dict[str, list] = {}
        self.struck = False  # the one fault or cancel has been
        self.notices = notices  # may be lost, arrive twice, or arrive late
        super().__init__(config, speeds, record=False)

    def __deepcopy__(self, memo: dict) -> "SmallWorld":
        """An engine of its own; what never changes, and what only looks back, is shared."""
        shared: list[object] = [self.config, self.speeds, self.recorder, self.jobs, self.order, self.faults]
        shared += self.monitor.waiting.passes.values()
        arguments = (arg for queue in self.queues.values() for _, _, _, args in queue for arg in args)
        shared += [arg for arg in arguments if isinstance(arg, tuple)]
        for progress in self.transfers.progress.values():
            shared += [progress.send, progress.assign, *progress.parked]
        shared += [result.timeline for result in self.results.values()]
        memo.update((id(thing), thing) for thing in shared)
        memo[id(self.log)], memo[id(self.commands)] = list(self.log), []
        memo[id(self.monitor._tail)] = self.monitor._tail.copy()
        twin = object.__new__(SmallWorld)
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def at(self, when_ns: int, action: Callable[..., object], *args: Any) -> None:
        self._sequence += 1
        actor = self._hands_off(*args) if action.__name__ == "_hand_off" else _actor(action, args)
        queue = self.queues.setdefault(actor, [])
        queue.append((when_ns, self._sequence, action, args))
        queue.sort(key=lambda entry: entry[:2])

    def _hands_off(self, moving: list[int], layer: int) -> str:
        """The worker whose pass has written the layer."""
        return str(self.transfers.progress[moving[0]].send.source)

    def choices(self) -> Iterator[Branch]:
        """All that may happen next."""
        for actor, queue in self.queues.items():
            if not queue:
                continue
            yield Branch(actor)
            if not self.struck:
                for fault in _faults(queue[0], self.notices):
                    yield Branch(actor, fault)
        if not self.struck:
            for request in self.state.records:
                yield Branch("", cancel=request)
        if self.state.deadlines.next_ns is not None and not any(self.queues.values()):
            yield DEADLINE  # nothing else will happen any more

    def do(self, choice: Branch) -> None:
        if choice == DEADLINE:
            self.now_ns = max(self.now_ns, present(self.state.deadlines.next_ns))
            self.take(ev.Tick())
            return
        if choice.cancel is not None:
            self.struck = True
            self.cancel(choice.cancel)
            return
        if choice.fault is not None:
            kind, fault = choice.fault
            self.faults = FaultPlan({(kind, 1): fault})
        queue = self.queues[choice.actor]
        _, _, action, args = queue.pop(0)
        action(*args)
        while queue and _goes_along(queue[0]):
            _, _, action, args = queue.pop(0)
            action(*args)
        self.struck |= bool(self.faults.struck)  # not every landing has a notice
        self.faults.strikes.clear()

    def check_end(self) -> None:
        self.check_drained()
        self.check_answers()


def _actor(action: Callable[..., object], args: tuple) -> str:
    """Whose queue an action waits in."""
    name = action.__name__
    if name in ("land", "_land"):
        return str(args[0].lane)
    if name == "_lane_free":
        return str(args[0])
    match args[0]:
        case ev.Prefilled(worker=worker) | ev.Stepped(worker=worker):
            return str(worker)
        case ev.Submit():
            return "arrivals"
    if name == "write_layer":
        return str(args[0])
    return "notices"


def _goes_along(entry: tuple) -> bool:
    """A layer is handed off as it is written, and a link is free as its copy lands."""
    return entry[2].__name__ in ("_hand_off", "_lane_free")


def _faults(entry: tuple, notices: bool) -> list[tuple[str, str]]:
    """What may strike an action: it fails; or, where they are in question, its notice goes astray."""
    _, _, action, (what, *_) = entry
    if action.__name__ == "land":
        paging = what.lane.role is LaneRole.SPILL or what.source.role == "host"
        return [("paging" if paging else "copy", "fail"), *(ASTRAY if notices else ())]
    kind = {ev.Prefilled: "prefill", ev.Stepped: "decode"}.get(type(what))
    return [(kind, "fail"), *(ASTRAY[1:2] if notices else ())] if kind else []


def small(new_tokens: int = 2, notices: bool = False) -> SmallWorld:
    """Two requests of two blocks each, handed off through a ring of two; a decode device for one and a half.

    The links have a latency, so that one may be free before its copy lands.
    """
    config = Config.preset(
        "staged", block_size=2, prefill_blocks=4, decode_blocks=4, chunk_tokens=4, ring_slots=2, layers_per_copy=1,
        link=Link(latency_s=1e-9), watchdog_s=1.0, itl_target_s=None, host_blocks=0,
    )  # fmt: skip
    simulation = SmallWorld(config, notices)
    for index in range(2):
        simulation.submit(Job(index, (1, 2, 3), new_tokens, 0))
        simulation.do(Branch("arrivals"))
    return simulation


@dataclass(frozen=True)
class ForcedByNumber(FirstCome):
    """Goes these ways where it can, by the request's number."""

    name: str = "forced"
    ways: tuple[str, ...] = ()

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option:
        wanted = self.ways[request.id % len(self.ways)]
        return next((option for option in options if option.way == wanted), options[0])


def world_of(preset: str, prompts: tuple[int, ...], ways: tuple[str, ...], **changes: Any) -> SmallWorld:
    """Requests of so many tokens and two new ones, on a model of two layers; what could go several ways goes these."""
    sizes = {"block_size": 2, "prefill_blocks": 4, "decode_blocks": 4, "chunk_tokens": 4, "ring_slots": 1, **changes}
    link, policy = Link(latency_s=1e-9), ForcedByNumber(ways=ways)
    config = Config.preset(preset, policy=policy, link=link, watchdog_s=1.0, layers_per_copy=1, **sizes)
    simulation = SmallWorld(config, speeds=replace(SMALL, layers=2))
    for index, prompt in enumerate(prompts):
        simulation.submit(Job(index, tuple(range(1, prompt + 1)), 2, 0))
        simulation.do(Branch("arrivals"))
    return simulation


#: Worlds that park, share passes and split by request, each small enough to go every way.
WORLDS: dict[str, Callable[[], SmallWorld]] = {
    "parked, fetched": lambda: world_of("paged", (3, 3), ("fetch",), decode_blocks=3, host_blocks=2),
    "parked, recomputed": lambda: world_of("paged", (3, 3), ("recompute",), decode_blocks=3, host_blocks=2),
    "mixed": lambda: world_of("colocated", (2, 5, 3), ("stay",), decode_blocks=6),
    "conditional": lambda: world_of("conditional", (3, 3, 2), ("split", "stay"), decode_blocks=5),
}


def explore(simulation: SmallWorld | None = None) -> Explored:
    """Goes every way from a simulation; an InvariantViolation or a wrong answer names the choices that led there."""
    simulation = simulation or small()
    seen = {state_of(simulation)}
    ways: list[tuple[SmallWorld, tuple[Branch, ...]]] = [(simulation, ())]
    steps = ends = 0
    while ways:
        here, path = ways.pop()
        choices = list(here.choices())
        if not choices:
            ends += 1
            _checked(path, here.check_end)
        for choice in choices:
            following = here if choice is choices[-1] else copy.deepcopy(here)
            steps += 1
            _checked(path + (choice,), following.do, choice)
            if (state := state_of(following)) not in seen:
                seen.add(state)
                ways.append((following, path + (choice,)))
    return Explored(len(seen), steps, ends)


def _checked(path: tuple[Branch, ...], action: Callable[..., None], *args: Branch) -> None:
    try:
        action(*args)
    except AssertionError as error:
        words = [f"{c.actor or f'cancel {c.cancel}'}{' ' + ' '.join(c.fault) if c.fault else ''}" for c in path]
        raise AssertionError(f"{error}\nafter: {'; '.join(words)}") from error
