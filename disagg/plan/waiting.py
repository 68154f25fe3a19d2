"""Who waits for what, who holds it, and for how long; and whether they wait for one another.

Notebook: notebooks/00_start_here.ipynb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

NAMED = 4


@dataclass(frozen=True)
class Wait:
    """A request, the gate that holds it and since when; what it holds itself, and who holds what it waits for."""

    request: int
    stage: str
    gate: str
    since_ns: int
    holds: Mapping[str, int] = field(default_factory=dict)  # pool → blocks
    holders: Mapping[int, int] = field(default_factory=dict)  # request → blocks of what the gate is about
    free: int | None = None  # blocks of it that are free; None where the gate is no pool
    ahead: tuple[int, ...] = ()  # who stands before it in its queue: the first few,
    count_ahead: int = 0  # and how many they are

    @property
    def what(self) -> str:
        """The gate, and whoever is ahead: behind them one waits for what holds the first."""
        return (self.gate or "its turn") + (
            f" behind {_named(list(map(_request, self.ahead)), self.count_ahead)}" if self.ahead else ""
        )

    def in_words(self, now_ns: int) -> str:
        """The gate, its holders and the age, in one sentence without a stop."""
        age = f"for {(now_ns - self.since_ns) / 1e6:.1f} ms"
        text = f"request {self.request} ({self.stage}) waits {age} for {self.what}"
        if self.holds:
            text += ", holds " + ", ".join(f"{count} of {pool}" for pool, count in self.holds.items())
        if self.holders:
            text += f"; held by {_named([f'{_request(r)} ({count})' for r, count in self.holders.items()])}"
        return text if self.free is None else f"{text}; {self.free} free"


def _request(number: int) -> str:
    return f"request {number}"


def _named(parts: list[str], count: int | None = None) -> str:
    """The first few, and how many more of `count`, or of the parts."""
    more = (len(parts) if count is None else count) - NAMED
    return ", ".join(parts[:NAMED]) + (f" and {more} more" if more > 0 else "")


def cycle_of(waits: Mapping[int, Wait]) -> list[int]:
    """Requests each of which waits for blocks that the next one holds, the last for the first's; [] if none do."""
    stuck = dict(waits)
    while gone := [r for r, wait in stuck.items() if not any(h != r and h in stuck for h in wait.holders)]:
        for request in gone:
            del stuck[request]
    if not stuck:
        return []
    path = [next(iter(stuck))]
    while True:
        here = path[-1]
        following = next(h for h in stuck[here].holders if h != here and h in stuck)
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def cycle_in_words(cycle: list[int]) -> str:
    """The cycle as arrows; nothing where there is none."""
    return "cycle: " + " → ".join(map(_request, [*cycle, cycle[0]])) if cycle else ""
