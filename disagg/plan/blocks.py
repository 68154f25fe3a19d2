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
        self.held = self.peak = 0
        self._state = bytearray(total)  # a code a block, its state's place in STATES: 0 is free
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
    def available(self) -> int:
        """Blocks that can be reserved now."""
        room = self.capacity - self.held  # the capacity is the total at most
        return room if room > 0 else 0

    def reserve(self, count: int, owner: int, growing: bool = False) -> list[int] | None:
        """`count` blocks in flight for `owner`, or None where fewer are available.

        Copies go run by run, so it takes the lowest place where all lie adjacent, or the lowest ones where there is no
        such place. A table grows from the other end: its blocks, one here and one there, would break up such places.
        """
        if count > self.available:
            return None
        place = (self._state.rfind if growing else self._state.find)(bytes(count))
        if place < 0:
            blocks = [place := self._state.find(0, place + 1) for _ in range(count)]
        else:
            blocks = list(range(place, place + count))
        self.held += count
        self.peak = max(self.peak, self.held)
        self._move(blocks, owner, IN_FLIGHT)
        return blocks

    def mark(self, blocks: list[int], owner: int, state: str) -> None:
        """Moves an owner's blocks to another state."""
        self._check_owner(blocks, owner)
        self._move(blocks, owner, state)

    def release(self, blocks: list[int], owner: int) -> None:
        """Frees an owner's blocks."""
        self._check_owner(blocks, owner)
        self.held -= len(blocks)
        self._move(blocks, None, FREE)

    def holdings(self) -> dict[tuple[int, str], list[int]]:
        """Blocks that are not free, by owner and state."""
        found: dict[tuple[int, str], list[int]] = {}
        for block, owner in enumerate(self._owner):
            if owner is not None:
                found.setdefault((owner, STATES[self._state[block]]), []).append(block)
        return found

    def _move(self, blocks: list[int], owner: int | None, state: str) -> None:
        code = STATES.index(state)
        for block in blocks:
            self._state[block], self._owner[block] = code, owner
        for listener in self._on_move:
            listener(self.name, state, owner, tuple(blocks))

    def _check_owner(self, blocks: list[int], owner: int) -> None:
        for block in blocks:
            if self._owner[block] != owner:
                raise AssertionError(f"{self.name}: block {block} belongs to {self._owner[block]}, not to {owner}")

    def counts(self) -> dict[str, int]:
        return {state: self._state.count(code) for code, state in enumerate(STATES)}

    def check(self) -> None:
        """Conservation: every block has one state, those that are not free are counted as held, owners fit states."""
        counts = self.counts()
        if sum(counts.values()) != self.total or self.held != self.total - counts[FREE]:
            raise AssertionError(f"{self.name}: {self.held} held against states {counts} of {self.total}")
        for block, (code, owner) in enumerate(zip(self._state, self._owner, strict=True)):
            if (STATES[code] == FREE) != (owner is None):
                raise AssertionError(f"{self.name}: block {block} is {STATES[code]} and owned by {owner}")


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

    def grow(self) -> list[int] | None:
        """One more block in the table's own state, or None where none is available."""
        blocks = self.pool.reserve(1, self.owner, growing=True)
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
                if STATES[self.pool._state[block]] != self.state:
                    raise AssertionError(f"{self.pool.name}: block {block} of {self.owner} is not {self.state}")


class Part(NamedTuple):
    """Layers [layer, layer_end) of table positions [block, block_end)."""

    layer: int
    layer_end: int
    block: int
    block_end: int


def blocks_for(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)
