"""Decode on one worker: its copy of the batch that the controller composes, and one token a row each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from disagg.plan.commands import Decode, Join
from disagg.plan.events import Stepped
from disagg.run.clock import now_ns
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import BatchRows, DecodeBatch
from disagg.run.model.model import Model
from disagg.run.model.sampling import Draw, pick_tokens
from disagg.run.reports import Reports
from disagg.trace.spans import Span

PROBED = ((2, 16), (8, 16), (8, 64), (1, 16))  # rows, and the context of each, of the steps that are timed at the start


@dataclass
class DecodeRow:
    """A row of the batch as this worker knows it: the token it takes in, and where its K/V lie."""

    join: Join
    token: int
    context: int
    token_index: int
    blocks: list[int]


class DecodeStage(BatchRows[DecodeRow]):
    """Carries out `Decode` commands with one model and the cache of its device."""

    def __init__(self, model: Model, cache: KVCache, reports: Reports) -> None:
        super().__init__()
        self.model, self.cache, self._reports = model, cache, reports

    def prepare(self, progress: Callable[[str], None]) -> None:
        """Nothing is compiled here."""

    def probe(self) -> list[tuple[int, int, int]]:
        """(rows, tokens read, ns) of steps through the empty cache; the first of each size is not counted."""
        size, found = self.cache.block_size, []
        for rows, context in PROBED:
            blocks = torch.arange(-(-context // size)).clamp(max=self.cache.num_blocks - 1)
            context = min(context, self.cache.num_blocks * size)
            tables = blocks.expand(rows, -1)
            batch = DecodeBatch(
                torch.ones(rows, dtype=torch.long), torch.full((rows,), context - 1), [(0, rows, tables)]
            )
            for _ in range(2):
                began = now_ns()
                self.model.decode(self.cache, batch)
                took = now_ns() - began
            found.append((rows, rows * context, took))
        return found

    def close(self) -> None:
        """Nothing here belongs to a stream."""

    def step(self, command: Decode) -> Stepped:
        """One step: follow the changes, run, pick a token a row, report."""
        started = now_ns()
        rows = self.follow(command)
        batch = self._batch(command, rows)
        logits = self.model.decode(self.cache, batch)
        draws = [Draw(r.join.request, r.join.sampling, r.context + 1, r.token_index) for r in rows]
        tokens = pick_tokens(logits, draws, self._reports)
        self.advance(rows, tokens)
        ended = now_ns()
        self.record(command, rows, tuple(map(len, command.groups)), started, ended)
        used, padded = batch.used_slots, batch.padded_slots
        return Stepped(command.worker, command.step, tokens, started, ended, used, padded)

    def advance(self, rows: list[DecodeRow], tokens: Sequence[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            row.token, row.context, row.token_index = token, row.context + 1, row.token_index + 1

    def record(self, command: Decode, rows: list[DecodeRow], sizes: tuple[int, ...], started: int, ended: int) -> None:
        requests = tuple(row.join.request for row in rows)
        span = Span("decode", str(command.worker), started, ended, requests, command.step, len(rows))
        blocks = sum(len(row.blocks) for row in rows)
        self._reports.record(span._replace(ready_ns=command.at_ns, blocks=blocks, groups=sizes))

    def join(self, join: Join) -> DecodeRow:
        return DecodeRow(join, join.token, join.context, join.token_index, list(join.blocks))

    def grow(self, row: DecodeRow, block: int) -> None:
        row.blocks.append(block)

    def _batch(self, command: Decode, rows: list[DecodeRow]) -> DecodeBatch:
        """Tokens and positions [B], and a padded block table [b, n] a bin."""
        groups, first = [], 0
        for group in command.groups:
            tables = [self.rows[request].blocks for request in group]
            longest = max(map(len, tables))
            padded = torch.tensor([table + table[:1] * (longest - len(table)) for table in tables])
            groups.append((first, first + len(group), padded))
            first += len(group)
        tokens = torch.tensor([row.token for row in rows])
        return DecodeBatch(tokens, torch.tensor([row.context for row in rows]), groups)
