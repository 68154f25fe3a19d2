"""What one call of the model works on: a packed prefill pass or a decode step. Tensors of ids live on the CPU."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Generic, TypeVar

import numpy as np
import torch

from disagg.plan.commands import Decode, Join
from disagg.plan.events import Prefilled

LayerHook = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass
class Segment:
    """One request's chunk [start, stop) in a prefill pass; `blocks` is its block table and covers stop tokens."""

    start: int
    stop: int
    blocks: Sequence[int] | torch.Tensor

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass
class PrefillBatch:
    """Chunks packed one after the other: tokens [T], T = sum of the segments' tokens. In numpy: with cold caches, as
    before a pass, a torch call takes 50 µs.

    `wants_logits`: the segments whose last token's logits are returned. `on_layer(layer, key, value)`, both
    [T, kv_heads, head_dim], is the hand-off event: K/V of the layer are in the cache, its attention has not run yet.
    """

    tokens: np.ndarray | torch.Tensor
    segments: list[Segment]
    wants_logits: Sequence[int] = ()
    on_layer: LayerHook | None = None

    def __post_init__(self) -> None:
        count = self.edges[-1]
        assert len(self.tokens) == count > 0, f"{len(self.tokens)} tokens for segments of {count}"

    @cached_property
    def edges(self) -> list[int]:
        """First row of each segment, and the number of rows of all."""
        return [0, *accumulate(segment.num_tokens for segment in self.segments)]

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """Each segment's block table."""
        lists = [s.blocks.tolist() if isinstance(s.blocks, torch.Tensor) else s.blocks for s in self.segments]
        if len(lists) == 1:
            return [np.array(lists[0], np.int64)]
        flat = np.array(list(chain.from_iterable(lists)), np.int64)
        edges = [0, *accumulate(map(len, lists))]
        return [flat[first:stop] for first, stop in pairwise(edges)]

    @cached_property
    def places(self) -> np.ndarray:
        """Position of each token in its own request, [T]."""
        starts = [segment.start for segment in self.segments]
        if len(starts) == 1:
            return np.arange(starts[0], self.segments[0].stop)
        counts = [segment.num_tokens for segment in self.segments]
        shifts = [start - first for start, first in zip(starts, self.edges, strict=False)]
        return np.arange(self.edges[-1]) + np.array(shifts).repeat(counts)

    def rows(self) -> list[range]:
        return [range(first, stop) for first, stop in pairwise(self.edges)]

    def slots(self, block_size: int) -> torch.Tensor:
        return torch.from_numpy(self.slots_in(block_size))

    def slots_in(self, block_size: int) -> np.ndarray:
        """The slot of each token, [T]: cut from those of all blocks that the segments lie in."""
        used, cuts, held = [], [], 0
        for segment, table in zip(self.segments, self.tables, strict=True):
            first, last = segment.start // block_size, -(-segment.stop // block_size)
            assert last <= len(table), f"{len(table)} blocks of {block_size} hold no position {segment.stop - 1}"
            cuts.append((held - first) * block_size)
            used.append(table[first:last])
            held += last - first
        found = (np.concatenate(used)[:, None] * block_size + np.arange(block_size)).ravel()
        parts = [found[s.start + cut : s.stop + cut] for s, cut in zip(self.segments, cuts, strict=True)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    @property
    def last_rows(self) -> list[int]:
        """Row of the last token of each segment in `wants_logits`."""
        return [self.edges[index + 1] - 1 for index in self.wants_logits]


@dataclass
class DecodeBatch:
    """One new token per row: tokens [B], positions [B] (tokens already in the cache, so also the new token's place).

    `groups` lists (first row, last row + 1, block tables [b, n]) of each length bin, in the order of the rows;
    attention of a group pads to its longest row. Entries of a table beyond the row's last block are never read.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    groups: list[tuple[int, int, torch.Tensor]]

    def __post_init__(self) -> None:
        edges = [0] + [stop for _, stop, _ in self.groups]
        assert [start for start, _, _ in self.groups] == edges[:-1], f"groups leave gaps: {edges}"
        assert edges[-1] == len(self.tokens) == len(self.positions) > 0, f"groups cover {edges[-1]} rows"

    @property
    def used_slots(self) -> int:
        """Tokens that attention needs: the sum of the rows' lengths, the new token included."""
        return int(self.positions.sum()) + len(self.positions)

    @property
    def padded_slots(self) -> int:
        """Tokens that attention reads: rows x longest row, summed over the groups."""
        return sum((stop - start) * (int(self.positions[start:stop].max()) + 1) for start, stop, _ in self.groups)


Row = TypeVar("Row")


class BatchRows(ABC, Generic[Row]):
    """A decode worker's rows by request, which follow the controller's batch by the changes that each step names."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    def follow(self, command: Decode) -> list[Row]:
        """The rows of this step, in the order of its groups."""
        for request in command.left:
            self.leave(self.rows.pop(request))
        for join in command.joins:
            self.rows[join.request] = self.join(join)
        for request, block in command.grown:
            self.grow(self.rows[request], block)
        return [self.rows[request] for group in command.groups for request in group]

    def mixed(self, step: Decode, run_pass: Callable[[], Prefilled]) -> Prefilled:
        """The rows of the step decode in a prefill pass, which has their tokens last. Where the pass raises, the rows
        have followed the step all the same: the next one names only what changes."""
        rows = self.follow(step)
        ended = run_pass()
        self.advance(rows, ended.tokens[len(ended.tokens) - len(rows) :])
        self.record(step, rows, (1,) * len(rows), ended.started_ns, ended.ended_ns)
        return ended

    @abstractmethod
    def advance(self, rows: list[Row], tokens: Sequence[int]) -> None:
        """Each row has one token more."""

    @abstractmethod
    def record(self, command: Decode, rows: list[Row], sizes: tuple[int, ...], started: int, ended: int) -> None:
        """The step's span; `sizes` are the rows of each group that attention pads together."""

    @abstractmethod
    def join(self, join: Join) -> Row: ...

    @abstractmethod
    def grow(self, row: Row, block: int) -> None: ...

    def leave(self, row: Row) -> None:
        """The row is in no later step."""
        return
