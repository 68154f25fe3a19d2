"""Queues sorted by policy, and the size of the next chunk."""

import heapq
from collections.abc import Callable, Iterator

from disagg.plan.request import Priority, Record

Key = Callable[[Record], Priority]

BATCH_SLOT = "batch slot"  # the gate of a request that waits for a place in a decode batch

#: A policy is a sort key: smaller goes first, in prefill, on the links and onto the decode device.
POLICIES: dict[str, Key] = {
    "fcfs": lambda record: (record.job.arrival_ns, record.id),
    "shortest": lambda record: (len(record.job.prompt) + len(record.generated), record.job.arrival_ns, record.id),
}


class Queue:
    """Records that wait for one thing, the first by policy on top. `peek` skips entries of removed records."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._heap: list[tuple[Priority, int, Record]] = []
        self._members: dict[int, int] = {}  # request → the number of its valid entry
        self._entries = 0
        self.gate = ""  # what its head waits for; "" where no scheduler has held it back

    def push(self, record: Record) -> None:
        self._entries += 1
        self._members[record.id] = self._entries
        heapq.heappush(self._heap, (self.key(record), self._entries, record))

    def remove(self, record: Record) -> None:
        self._members.pop(record.id, None)

    def peek(self) -> Record | None:
        while self._heap:
            _, entry, record = self._heap[0]
            if self._members.get(record.id) == entry:
                return record
            heapq.heappop(self._heap)
        return None

    def reorder(self, key: Key) -> None:
        """A new policy for all that wait."""
        waiting = list(self)
        self.key, self._heap, self._members = key, [], {}
        for record in waiting:
            self.push(record)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, record: Record) -> bool:
        return record.id in self._members

    def ahead_of(self, record: Record, first: int) -> tuple[tuple[int, ...], int]:
        """The first few requests before a member, and how many there are; in one pass, without sorting."""
        mine = (self.key(record), self._members[record.id])
        ahead = [e for e in self._heap if e[:2] < mine and self._members.get(e[2].id) == e[1]]
        return tuple(entry[2].id for entry in heapq.nsmallest(first, ahead)), len(ahead)

    def __iter__(self) -> Iterator[Record]:
        return iter([record for _, entry, record in sorted(self._heap) if self._members.get(record.id) == entry])


def chunk_stop(start: int, target: int, budget: int, block_size: int) -> int:
    """Where a chunk from `start` ends under a budget of tokens: the target, or the last whole block before it."""
    if target - start <= budget:
        return target
    return start + budget // block_size * block_size
