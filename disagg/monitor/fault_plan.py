"""A fault plan: the nth event of a kind, and the fault that happens to it.

    FaultPlan({("copy", 3): "fail", ("notice", 7): "twice"})  # the third copy, the seventh notice

Notebook: notebooks/00_start_here.ipynb.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

from disagg.monitor.seams import Seams
from disagg.plan import events as ev
from disagg.plan.errors import ConfigError

#: Kind of event → its possible faults.
FAULTS = {
    "copy": ("fail", "flip", "stall"),  # of a hand-off; a checksum finds a flipped byte, a stalled link is slow
    "paging": ("fail", "flip", "stall"),  # the same for a spill or a fetch
    "notice": ("twice", "late", "unknown"),  # repeated; after newer ones; of an unknown transfer
    "landing": ("lose",),  # a notice that never arrives
    "prefill": ("fail",),
    "decode": ("fail",),
    "worker": ("die",),
    "allocation": ("refuse",),
    "event": ("cancel", "interrupt"),  # of one open request, of all
    "paged": ("cancel",),  # one of the requests that are spilled, or being spilled or fetched
}
Picked = TypeVar("Picked")


class FaultPlan:
    """Counts events by kind and returns their faults; an empty plan has none. It reads no clock."""

    def __init__(self, strikes: Mapping[tuple[str, int], str] | None = None) -> None:
        self.strikes = dict(strikes or {})
        for (kind, number), fault in self.strikes.items():
            faults_of(f"{kind} {fault}")
            if number < 1:
                raise ConfigError(f"events of a kind are counted from 1; got ({kind!r}, {number})")
        self.counts: Counter[str] = Counter()  # events so far, by kind
        self.struck: Counter[str] = Counter()  # "kind fault" → how often
        self.dice = random.Random(0)

    def strike(self, kind: str) -> str | None:
        """Counts an event; returns its fault, or None."""
        self.counts[kind] += 1
        if (fault := self.fault_of(kind)) is not None:
            self.struck[f"{kind} {fault}"] += 1
        return fault

    def fault_of(self, kind: str) -> str | None:
        """What happens to the event of this kind that was counted last."""
        return self.strikes.get((kind, self.counts[kind]))

    def injection(self, put: Callable[[ev.Event], None]) -> Seams:
        """This plan's seams for a real engine; `put` puts events into the engine's inbox."""
        from disagg.monitor.fault_injection import Injection  # needs threads

        return Injection(self, put)

    def pick(self, among: list[Picked]) -> Picked:
        """A random choice of what a fault affects, by the plan's seed."""
        return self.dice.choice(among)

    @property
    def quiet(self) -> bool:
        return not self.strikes


def faults_of(name: str) -> tuple[str, ...]:
    kind, _, fault = name.partition(" ")
    if kind not in FAULTS:
        raise ConfigError(f"no kind of event is called {kind!r}; known: {', '.join(FAULTS)}")
    if fault and fault not in FAULTS[kind]:
        raise ConfigError(f"{fault!r} can't strike a {kind}; what can: {', '.join(FAULTS[kind])}")
    return (fault,) if fault else FAULTS[kind]
