"""Whose is each block of each memory, at any instant of a recorded run; and which memory held a request's K/V when.

Each block keeps its own history, so that an instant is looked up and nothing is replayed. What several moves do at one
instant counts as one change. Decisions to spill or to recompute stand here too, each with its instant.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from disagg.plan.blocks import STATES
from disagg.plan.preemption import Choice
from disagg.plan.request import Stage
from disagg.trace.intervals import union
from disagg.trace.results import Result
from disagg.trace.timeline import Timeline

FREE = STATES[0]


class Held(NamedTuple):
    """What one block is at an instant, and since when it has been that."""

    state: str
    owner: int | None
    since_ns: int


class Stretch(NamedTuple):
    """A block that stays in one state with one owner, from an instant to another."""

    pool: str
    block: int
    owner: int
    state: str
    start_ns: int
    end_ns: int


class Visit(NamedTuple):
    """A memory holds some of a request's K/V, without a break; `blocks` is the most at once."""

    pool: str
    start_ns: int
    end_ns: int
    blocks: int


class Decision(NamedTuple):
    """A request lost its blocks at this instant; the choice holds both costs."""

    at_ns: int
    choice: Choice


class PageMap:
    """The blocks of every memory over a run. `changes` are the instants at which any of them changed."""

    def __init__(self, timeline: Timeline) -> None:
        self.start_ns = timeline.start_ns
        self.sizes = {pool: timeline.sizes[pool] for pool in sorted(timeline.sizes, key=_way) if pool != "ring"}
        self.moves = sorted(timeline.moves, key=lambda move: move.at_ns)
        self.changes = sorted({move.at_ns for move in self.moves})
        self.end_ns = max([timeline.end_ns, *self.changes[-1:]])
        free = Held(FREE, None, self.start_ns)
        self._histories = {pool: [[free] for _ in range(size)] for pool, size in self.sizes.items()}
        for move in self.moves:
            for block in move.blocks:
                _append(self._histories[move.pool][block], Held(move.state, move.owner, move.at_ns))

    def at(self, at_ns: int) -> dict[str, list[Held]]:
        """Every block of every memory, after all moves of that instant."""

        def held(history: list[Held]) -> Held:
            return history[max(0, bisect_right(history, at_ns, key=lambda held: held.since_ns) - 1)]

        return {pool: list(map(held, blocks)) for pool, blocks in self._histories.items()}

    def counts_at(self, at_ns: int) -> dict[str, dict[str, int]]:
        states = {pool: [held.state for held in blocks] for pool, blocks in self.at(at_ns).items()}
        return {pool: {state: found.count(state) for state in STATES} for pool, found in states.items()}

    def counts(self, pool: str) -> list[tuple[int, dict[str, int]]]:
        """(from this instant on, blocks by state): exact steps over the run, the first at its start."""
        turns: dict[int, dict[str, int]] = {self.start_ns: dict.fromkeys(STATES, 0)}
        turns[self.start_ns][FREE] = self.sizes[pool]
        for history in self._histories[pool]:
            for before, after in pairwise(history):
                turn = turns.setdefault(after.since_ns, dict.fromkeys(STATES, 0))
                turn[before.state] -= 1
                turn[after.state] += 1
        sums, steps = dict.fromkeys(STATES, 0), []
        for at_ns in sorted(turns):
            sums = {state: sums[state] + turns[at_ns][state] for state in STATES}
            steps.append((at_ns, sums))
        return steps

    def touched(self, pool: str) -> list[int]:
        """The blocks that were ever held, lowest first. Rows grow from the far end, so the others may lie between."""
        return [block for block, history in enumerate(self._histories[pool]) if len(history) > 1]

    def stretches(self, pool: str) -> Iterator[Stretch]:
        """All that was held in a memory, block by block, by time."""
        for block, history in enumerate(self._histories[pool]):
            ends = [held.since_ns for held in history[1:]] + [self.end_ns]
            for held, end in zip(history, ends, strict=True):
                if held.owner is not None:
                    yield Stretch(pool, block, held.owner, held.state, held.since_ns, end)

    def of_request(self, request: int) -> list[Stretch]:
        """A request's blocks over time and memory, by start."""
        own = [stretch for pool in self.sizes for stretch in self.stretches(pool) if stretch.owner == request]
        return sorted(own, key=lambda stretch: stretch.start_ns)

    def visits(self, request: int) -> list[Visit]:
        """Which memory held its K/V when, by start: a hand-off or a spill lets two visits overlap."""
        own, found = self.of_request(request), []
        for pool in self.sizes:
            here = [stretch for stretch in own if stretch.pool == pool]
            for start, end in union((s.start_ns, s.end_ns) for s in here):
                found.append(Visit(pool, start, end, _most_at_once(s for s in here if start <= s.start_ns < end)))
        return sorted(found, key=lambda visit: visit.start_ns)


def decisions(results: Iterable[Result], choices: Iterable[Choice]) -> list[Decision]:
    """Each choice with the instant at which its request left RUNNING or LANDED for it, in order."""
    found, made = [], list(choices)
    for result in results:
        own = (choice for choice in made if choice.request == result.request)
        for (_, before), (at_ns, after) in pairwise(result.stages):
            if before in (Stage.RUNNING, Stage.LANDED) and after in (Stage.SPILLING, Stage.QUEUED):
                found.append(Decision(at_ns, next(own)))
    return sorted(found, key=lambda decision: decision.at_ns)


def _way(pool: str) -> tuple[int, str]:
    """Memories in the order in which K/V pass them."""
    return ("prefill", "ring", "host", "decode").index(pool.split()[0]), pool


def _append(history: list[Held], held: Held) -> None:
    """Later moves of one instant replace earlier ones; what changes nothing leaves no trace."""
    if held.since_ns == history[-1].since_ns and len(history) > 1:
        history.pop()
    if (held.state, held.owner) != history[-1][:2]:
        history.append(held)


def _most_at_once(stretches: Iterable[Stretch]) -> int:
    turns = sorted(turn for s in stretches for turn in ((s.start_ns, 1), (s.end_ns, -1)))
    held = most = 0
    for _, change in turns:  # at one instant, ends come first
        held += change
        most = max(most, held)
    return most
