"""A simulated decode worker's view of its batch, built from commands alone, as in real workers."""

from collections.abc import Iterable
from typing import NamedTuple

from disagg.plan.commands import Decode


class Reading(NamedTuple):
    """Slots that attention reads in a step: those with a token, and all with padding to each group's longest."""

    used: int
    padded: int


class _Group(NamedTuple):
    """A group's rows as of step 0; each step adds one to every context and token index."""

    rows: list[tuple[int, int]]  # request, index of its next token
    total: int  # of contexts
    longest: int


class BatchView:
    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int]] = {}  # request → context and token index, as of step 0
        self._step = 0
        self._ids: tuple[tuple[int, ...], ...] = ()
        self._groups: list[_Group] = []

    def follow(self, command: Decode) -> Reading:
        """Applies the next step's command; unchanged groups are not computed again."""
        self._step = command.step
        for request in command.left:
            del self._rows[request]
        for join in command.joins:
            self._rows[join.request] = join.context - self._step, join.token_index - self._step
        if command.left or command.joins or command.groups != self._ids:
            self._ids = command.groups
            self._groups = [self._look_at(ids) for ids in command.groups]
        ahead = self._step + 1
        used = sum(group.total + len(group.rows) * ahead for group in self._groups)
        padded = sum((group.longest + ahead) * len(group.rows) for group in self._groups)
        return Reading(used, padded)

    def rows(self) -> Iterable[tuple[int, int]]:
        step = self._step
        return [(request, index + step) for group in self._groups for request, index in group.rows]

    def context(self, request: int) -> int:
        """Tokens of a row in the cache before the step."""
        return self._rows[request][0] + self._step

    def _look_at(self, ids: tuple[int, ...]) -> _Group:
        contexts = [self._rows[request][0] for request in ids]
        return _Group([(request, self._rows[request][1]) for request in ids], sum(contexts), max(contexts))
