"""Queues sorted by policy, and the size of the next chunk."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from disagg.plan.request import Priority, Record

WINDOW = 32  # requests of a queue among which a policy shares a pass or step
BATCH_SLOT = "batch slot"  # the gate of a request that waits for a place in a decode batch


class Queue:
    """Records that wait for one thing, the first by policy in front."""

    def __init__(self) -> None:
        self._entries: list[tuple[Priority, int, Record]] = []  # sorted; equal ones as they came
        self._places: dict[int, tuple[Priority, int]] = {}  # request → the start of its entry
        self._pushed = 0
        self.tokens = 0  # that these requests, and those under way, still have to prefill
        self.gate = ""  # what its head waits for; "" where no scheduler has held it back

    def push(self, record: Record) -> None:
        """Its priority holds until it is pushed again."""
        self.remove(record)
        self._pushed += 1
        self._places[record.id] = place = (record.priority, self._pushed)
        insort(self._entries, (*place, record))

    def remove(self, record: Record) -> None:
        if (place := self._places.pop(record.id, None)) is not None:
            del self._entries[self._index(place)]

    def peek(self) -> Record | None:
        return self._entries[0][2] if self._entries else None

    def first(self, most: int) -> list[Record]:
        return [record for _, _, record in self._entries[:most]]

    def reorder(self) -> None:
        """A new policy for all that wait."""
        waiting, self._entries, self._places = list(self), [], {}
        for record in waiting:
            self.push(record)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, record: Record) -> bool:
        return record.id in self._places

    def before(self, priority: Priority) -> int:
        """How many go before one of this priority."""
        return bisect_left(self._entries, (priority,))  # a shorter tuple sorts before its extensions

    def ahead_of(self, record: Record, first: int) -> tuple[tuple[int, ...], int]:
        """The first few requests before a member, and how many there are."""
        index = self._index(self._places[record.id])
        return tuple(record.id for record in self.first(min(first, index))), index

    def _index(self, place: tuple[Priority, int]) -> int:
        return bisect_left(self._entries, place)  # a shorter tuple sorts before its extensions

    def __iter__(self) -> Iterator[Record]:
        return iter(self.first(len(self)))


def chunk_stop(start: int, target: int, budget: int, block_size: int) -> int:
    """Where a chunk from `start` ends under a budget of tokens: the target, or the last whole block before it."""
    if target - start <= budget:
        return target
    return start + budget // block_size * block_size
