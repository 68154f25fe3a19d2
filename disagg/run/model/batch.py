"""What one call of the model works on: a packed prefill pass or a decode step. Tensors of ids live on the CPU."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
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
    """Chunks packed one after the other: tokens [T], T = sum of the segments' tokens.

    `wants_logits`: the segments whose last token's logits are returned. `on_layer(layer, key, value)`, both
    [T, kv_heads, head_dim], is the hand-off event: K/V of the layer are in the cache, its attention has not run yet.
    """

    tokens: torch.Tensor
    segments: list[Segment]
    wants_logits: Sequence[int] = ()
    on_layer: LayerHook | None = None

    def __post_init__(self) -> None:
        count = sum(segment.num_tokens for segment in self.segments)
        assert len(self.tokens) == count > 0, f"{len(self.tokens)} tokens for segments of {count}"

    def rows(self) -> list[range]:
        rows, first = [], 0
        for segment in self.segments:
            rows.append(range(first, first + segment.num_tokens))
            first += segment.num_tokens
        return rows

    @cached_property
    def edges(self) -> np.ndarray:
        """First row of each segment, and the number of rows of all."""
        return np.array([0, *(segment.num_tokens for segment in self.segments)]).cumsum()

    @cached_property
    def tables(self) -> list[np.ndarray]:
        """Each segment's block table."""
        lists = [s.blocks.tolist() if isinstance(s.blocks, torch.Tensor) else s.blocks for s in self.segments]
        flat, first, found = np.fromiter(chain.from_iterable(lists), np.int64), 0, []
        for blocks in lists:
            found.append(flat[first : first + len(blocks)])
            first += len(blocks)
        return found

    @cached_property
    def places(self) -> np.ndarray:
        """Position of each token in its own request, [T]."""
        if len(self.segments) == 1:
            return np.arange(self.segments[0].start, self.segments[0].stop)
        starts = np.array([segment.start for segment in self.segments])
        return np.arange(self.edges[-1]) + (starts - self.edges[:-1]).repeat(np.diff(self.edges))

    def positions(self) -> torch.Tensor:
        return torch.from_numpy(self.places)

    def slots(self, block_size: int) -> torch.Tensor:
        """The slot of each token, [T]."""
        lengths = [len(table) for table in self.tables]
        for segment, length in zip(self.segments, lengths, strict=True):
            assert segment.stop <= length * block_size, f"{length} blocks of {block_size} end before {segment.stop}"
        block = self.places // block_size
        offset = self.places - block * block_size
        if len(self.segments) == 1:
            return torch.from_numpy(self.tables[0][block] * block_size + offset)
        block += np.array([0, *lengths[:-1]]).cumsum().repeat(np.diff(self.edges))
        return torch.from_numpy(np.concatenate(self.tables)[block] * block_size + offset)

    def logit_rows(self) -> torch.Tensor:
        """Row of the last token of each segment in `wants_logits`."""
        return torch.from_numpy(self.edges[1:][list(self.wants_logits)] - 1)


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
