"""Blocks, the unit in which K/V memory is reserved, and the tables that list a request's blocks in order.

A block is free, in flight (reserved: the copy or pass that it was taken for is not over, and may not have begun), used
(committed) or quarantined: released while a copy or a pass has it pinned.
Notebook: notebooks/04_cpu_paging.ipynb.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

FREE, IN_FLIGHT, USED, QUARANTINED = STATES = ("free", "in_flight", "used", "quarantined")

#: Called with a move's pool, new state, owner (None: free) and blocks.
MoveListener = Callable[[str, str, int | None, tuple[int, ...]], None]


class BlockPool:
    """The block ids of one memory. Below a `capacity` that is lowered while it runs, the pool drains."""

    def __init__(self, name: str, total: int, on_move: Sequence[MoveListener] = ()) -> None:
        self.name = name
        self._on_move = on_move
        self.total = self.capacity = total
        self.peak = 0
        self._free = list(range(total - 1, -1, -1))
        self._state = [FREE] * total
        self._owner: list[int | None] = [None] * total

    @property
    def setting(self) -> str:
        """The setting that says how many blocks it has."""
        return f"{self.name.split()[0]}_blocks"

    @property
    def gate(self) -> str:
        """The gate of a request that waits for its blocks."""
        return f"{self.name} blocks"

    @property
    def held(self) -> int:
        return self.total - len(self._free)

    @property
    def available(self) -> int:
        """Blocks that can be reserved now."""
        room = len(self._free) - self.total + self.capacity  # the capacity is the total at most
        return room if room > 0 else 0

    def reserve(self, count: int, owner: int) -> list[int] | None:
        """`count` blocks in flight for `owner`, or None where fewer are available."""
        if count > self.available:
            return None
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._state[block], self._owner[block] = IN_FLIGHT, owner
        self.peak = max(self.peak, self.held)
        self._note(blocks, owner, IN_FLIGHT)
        return blocks

    def mark(self, blocks: list[int], owner: int, state: str) -> None:
        """Moves an owner's blocks to another state."""
        self._check_owner(blocks, owner)
        for block in blocks:
            self._state[block] = state
        self._note(blocks, owner, state)

    def release(self, blocks: list[int], owner: int) -> None:
        """Frees an owner's blocks."""
        self._check_owner(blocks, owner)
        for block in blocks:
            self._state[block], self._owner[block] = FREE, None
        self._free.extend(reversed(blocks))
        self._note(blocks, None, FREE)

    def holdings(self) -> dict[tuple[int, str], list[int]]:
        """Blocks that are not free, by owner and state."""
        found: dict[tuple[int, str], list[int]] = {}
        for block, owner in enumerate(self._owner):
            if owner is not None:
                found.setdefault((owner, self._state[block]), []).append(block)
        return found

    def _note(self, blocks: list[int], owner: int | None, state: str) -> None:
        for listener in self._on_move:
            listener(self.name, state, owner, tuple(blocks))

    def _check_owner(self, blocks: list[int], owner: int) -> None:
        for block in blocks:
            if self._owner[block] != owner:
                raise AssertionError(f"{self.name}: block {block} belongs to {self._owner[block]}, not to {owner}")

    def counts(self) -> dict[str, int]:
        return {state: self._state.count(state) for state in STATES}

    def check(self) -> None:
        """Conservation: every block has one state, free ones are listed once, owners fit states."""
        counts = self.counts()
        free = sorted(self._free)
        stateful = [block for block, state in enumerate(self._state) if state == FREE]
        if free != stateful or sum(counts.values()) != self.total:
            raise AssertionError(f"{self.name}: free list {free} against states {counts} of {self.total}")
        for block, (state, owner) in enumerate(zip(self._state, self._owner, strict=True)):
            if (state == FREE) != (owner is None):
                raise AssertionError(f"{self.name}: block {block} is {state} and owned by {owner}")


@dataclass(eq=False)
class Table:
    """One request's blocks in one memory, in the order of its tokens."""

    pool: BlockPool
    owner: int
    blocks: list[int]
    state: str = IN_FLIGHT
    pins: list[int] = field(default_factory=list)  # ids of transfers, passes and steps that read or write it
    released: bool = False

    @classmethod
    def reserve(cls, pool: BlockPool, count: int, owner: int) -> "Table | None":
        blocks = pool.reserve(count, owner)
        return None if blocks is None else cls(pool, owner, blocks)

    def grow(self, count: int = 1) -> list[int] | None:
        """More blocks in the table's own state, or None where fewer are available."""
        blocks = self.pool.reserve(count, self.owner)
        if blocks is not None:
            self.pool.mark(blocks, self.owner, self.state)
            self.blocks.extend(blocks)
        return blocks

    def commit(self) -> None:
        self.pool.mark(self.blocks, self.owner, USED)
        self.state = USED

    def pin(self, activity: int) -> None:
        """The transfer, pass or step with this id reads or writes the blocks from now on."""
        self.pins.append(activity)

    def unpin(self, activity: int) -> None:
        """It no longer does; the last unpin frees a released table."""
        if activity in self.pins:
            self.pins.remove(activity)
            if self.released and not self.pins:
                self._free()

    def release(self) -> None:
        """Frees the blocks at once, or quarantines them until the last unpin."""
        if self.released:
            raise AssertionError(f"{self.pool.name}: the blocks of request {self.owner} are released twice")
        self.released = True
        if self.pins:
            self.pool.mark(self.blocks, self.owner, QUARANTINED)
            self.state = QUARANTINED
        else:
            self._free()

    def _free(self) -> None:
        self.pool.release(self.blocks, self.owner)
        self.state = FREE

    def check(self) -> None:
        """No block twice in a table, and all of them in the table's state."""
        if self.state != FREE:
            if len(set(self.blocks)) != len(self.blocks):
                raise AssertionError(f"{self.pool.name}: a block stands twice in the table of {self.owner}")
            self.pool._check_owner(self.blocks, self.owner)
            for block in self.blocks:
                if self.pool._state[block] != self.state:
                    raise AssertionError(f"{self.pool.name}: block {block} of {self.owner} is not {self.state}")


class Part(NamedTuple):
    """Layers [layer, layer_end) of table positions [block, block_end)."""

    layer: int
    layer_end: int
    block: int
    block_end: int


def blocks_for(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
