"""The pieces of the engine that a student writes, ready-made: `check_mine` compares with them, and they stand in for
what is still open. Times are whole numbers of any unit.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch


def attend_one(query: list[float], keys: list[list[float]], values: list[list[float]]) -> list[float]:
    """One head: `query` and each key and value have `size` numbers; so has what comes back."""
    scores = [sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in keys]
    weights = [math.exp(score) for score in scores]
    shares = [weight / sum(weights) for weight in weights]
    return [sum(s * v for s, v in zip(shares, column, strict=True)) for column in zip(*values, strict=True)]


class ReadyCache:
    """Keys and values of each layer, [tokens, KV heads, size]."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps those of new tokens; gives all of this layer."""
        if layer in self.held:
            old_keys, old_values = self.held[layer]
            keys, values = torch.cat([old_keys, keys]), torch.cat([old_values, values])
        self.held[layer] = keys, values
        return keys, values


def next_batch(batch: list[Any], waiting: list[Any], places: int) -> list[Any]:
    """The rows of the next step: without those that are `done`, and with the first that wait while there is a place."""
    batch = [row for row in batch if not row.done]
    while waiting and len(batch) < places:
        batch.append(waiting.pop(0))
    return batch


class ReadyQueue:
    """Layers that exist and have not left yet, in front of one link."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, int]] = []
        self.free_at = 0

    def put(self, request: int, layer: int, takes: int) -> None:
        """The K/V of this layer exist; a copy of them keeps the link for so long."""
        self.waiting.append((request, layer, takes))

    def take(self, now: int) -> tuple[int, int, int] | None:
        """The copy that starts now: of the first request, its first layer; None while the link is busy."""
        if not self.waiting or now < self.free_at:
            return None
        copy = min(self.waiting)
        self.waiting.remove(copy)
        self.free_at = now + copy[2]
        return copy


class ReadyRing:
    """Two slots of pinned memory."""

    def __init__(self) -> None:
        self.free, self.slots = [0, 1], [None, None]

    def put(self, data: Any) -> int | None:
        """Into a free slot, whose number comes back; None where there is none."""
        if not self.free:
            return None
        slot = self.free.pop()
        self.slots[slot] = data
        return slot

    def take(self, slot: int) -> Any:
        """Its data; the slot is free again."""
        self.free.append(slot)
        return self.slots[slot]


class ReadyTable:
    """The blocks of one request. `free` lists the free blocks of the memory, which all requests share."""

    def __init__(self, free: list[int], size: int) -> None:
        self.free, self.size, self.blocks, self.tokens = free, size, [], 0  # type: ignore[var-annotated]  # as a student writes it

    def add(self, tokens: int) -> bool:
        """Room for so many more; False, and nothing is taken, where there are too few blocks."""
        need = -(-(self.tokens + tokens) // self.size) - len(self.blocks)
        if need > len(self.free):
            return False
        self.blocks += [self.free.pop() for _ in range(need)]
        self.tokens += tokens
        return True

    def slots(self) -> list[int]:
        """The slot of each token."""
        return [self.blocks[n // self.size] * self.size + n % self.size for n in range(self.tokens)]

    def give_back(self) -> None:
        """All blocks are free again."""
        self.free += self.blocks
        self.blocks, self.tokens = [], 0


def bins(lengths: Sequence[int], bounds: Sequence[int]) -> list[list[int]]:
    """Row numbers, bin by bin, without empty bins; a bin holds lengths up to its bound, the last one all others."""
    groups: list[list[int]] = [[] for _ in range(len(bounds) + 1)]
    for row, length in enumerate(lengths):
        groups[sum(length > bound for bound in bounds)].append(row)
    return [group for group in groups if group]


READY = {
    "attention": attend_one,
    "cache": ReadyCache,
    "batch": next_batch,
    "queue": ReadyQueue,
    "ring": ReadyRing,
    "table": ReadyTable,
    "bins": bins,
}
