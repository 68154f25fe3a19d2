"""Prefill on one worker: a pass packs chunks of several requests, and hands each layer off from inside the model."""

from collections.abc import Callable
from struct import pack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from disagg.plan.blocks import blocks_for
from disagg.plan.commands import Prefill
from disagg.plan.events import Prefilled
from disagg.run.clock import now_ns
from disagg.run.gpu.device import settle
from disagg.run.gpu.device_clock import Moments
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch, Segment
from disagg.run.model.model import PASS_STEP, Model
from disagg.run.model.sampling import Draw, pick_tokens
from disagg.run.reports import Reports
from disagg.run.transfers import Departing, Transfers
from disagg.trace.spans import Span

if TYPE_CHECKING:
    from disagg.run.gpu.prefill_graph import PrefillGraphs

PROBED, REPLAYED = (16, 64), (PASS_STEP, 8 * PASS_STEP)  # tokens of passes timed at the start; graphs of two sizes
AHEAD = 2  # layers that the host may be ahead of its GPU: a pass launched in one burst holds up the steps beside it


class PrefillStage:
    """Carries out `Prefill` commands with one model and the cache of its device."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        kernel: Any,
        transfers: Transfers | None,
        reports: Reports,
        most: int,
        graphs: "PrefillGraphs | None" = None,
    ) -> None:
        self.model, self.cache, self.kernel, self.transfers = model, cache, kernel, transfers
        self._reports, self._most = reports, most  # tokens of a pass, at the start
        self._graphs = graphs

    def prepare(self, progress: Callable[[str], None]) -> None:
        """Compiles, where the model is to be compiled, by running passes through the empty cache, the largest one
        first; then captures, where graphs are wanted."""
        if self.model.compiled:
            for tokens, start in ((self._most, 0), (3 * PASS_STEP, 0), (PASS_STEP, self.cache.block_size)):
                progress(f"compiling prefill: a pass of {tokens} tokens")
                self._run_empty(tokens, start)
        if self._graphs is not None:
            self._graphs.prepare(progress)

    def probe(self) -> list[tuple[int, int]]:
        """(tokens, ns) of passes as they will run, through the empty cache; the first of each size is not counted."""
        found = []
        for tokens in PROBED if self._graphs is None else REPLAYED:
            for _ in range(2):
                began = now_ns()
                count = self._run_empty(min(tokens, self._most), graphs=self._graphs)
            found.append((count, now_ns() - began))
        return found

    def _run_empty(self, tokens: int, start: int = 0, graphs: "PrefillGraphs | None" = None) -> int:
        """A pass over so many tokens through the empty cache, as far as that has blocks for them; how many it had."""
        size = self.cache.block_size
        blocks = list(range(min(blocks_for(start + tokens, size), self.cache.num_blocks)))
        segment = Segment(start, min(start + tokens, len(blocks) * size), blocks)
        if segment.num_tokens > 0:
            batch = PrefillBatch(np.ones(segment.num_tokens, np.int64), [segment], [0])
            if graphs is not None and graphs.fits(batch):
                graphs.run(batch)
            else:
                self.model.prefill(self.cache, batch, self.kernel)
            settle(self.cache.device)
        return segment.num_tokens

    def close(self) -> None:
        """Drops what belongs to the stream while that is there."""
        if self._graphs is not None:
            self._graphs.close()

    def step(self, command: Prefill) -> Prefilled:
        """One pass: pack, run, pick the first tokens, report."""
        started, marks, waits = now_ns(), Moments(self.cache.device), list[tuple[int, int]]()
        batch, departing = self._pack(command, marks, waits)
        graphs = self._graphs if self._in_a_graph(batch, departing) else None
        finals = [chunk for chunk in command.chunks if chunk.final]
        draws = [Draw(c.request, c.sampling, c.stop, c.token_index) for c in finals]
        try:
            if graphs is None:
                logits = self.model.prefill(self.cache, batch, self.kernel)
            else:
                logits = graphs.run(batch, departing)
            settle(self.cache.device)  # a copy to the host that has to wait for the pass holds up all threads' launches
            picked = None if graphs is None else graphs.picked(len(draws))
            tokens, ended = pick_tokens(logits, draws, self._reports, picked), now_ns()
        finally:
            if graphs is not None:
                graphs.answered()
        moments = marks.read() if graphs is None else graphs.moments()
        prompts = command.prompts
        requests, firsts = tuple(c.request for c in prompts), tuple(c.request for c in prompts if c.final)
        count, blocks = len(batch.tokens) - len(command.rows), sum(len(chunk.blocks) for chunk in prompts)
        span = Span("prefill", str(command.worker), started, ended, requests, command.pass_id, count, firsts=firsts)
        span = span._replace(hand_offs_ns=moments, ready_ns=command.at_ns, blocks=blocks)
        self._reports.record(span._replace(waits_ns=waits_of(span.hand_offs_ns, waits)))
        return Prefilled(command.worker, command.pass_id, tokens, started, ended)

    def _in_a_graph(self, batch: PrefillBatch, departing: list[Departing]) -> bool:
        """Layers that no graph can hand off stream from a pass without one, and so do those whose hand-off blocks."""
        if self._graphs is None or not self._graphs.fits(batch):
            return False
        blocks = self.transfers is not None and self.transfers.scheduler.blocking
        return not departing or (self._graphs.hand_off is not None and not blocks)

    def _pack(
        self, command: Prefill, marks: Moments, waits: list[tuple[int, int]]
    ) -> tuple[PrefillBatch, list[Departing]]:
        """Chunks one after the other; each layer marks its hand-off, and travels where its chunk has a transfer. Where
        hand-offs block, `waits` gets the host times from when to when each did."""
        ids = bytearray().join(pack(f"{len(chunk.tokens)}q", *chunk.tokens) for chunk in command.chunks)
        tokens = np.frombuffer(ids, np.int64)  # in a quarter of the time that numpy takes for a tuple
        segments = [Segment(chunk.start, chunk.stop, chunk.blocks) for chunk in command.chunks]
        batch = PrefillBatch(tokens, segments, [index for index, chunk in enumerate(command.chunks) if chunk.final])
        departing = [
            Departing(chunk.transfer, chunk.start // self.cache.block_size, slice(rows.start, rows.stop))
            for chunk, rows in zip(command.chunks, batch.rows(), strict=True)
            if chunk.transfer is not None
        ]
        blocking = bool(departing) and self.transfers is not None and self.transfers.scheduler.blocking

        def hand_off(layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
            marks.mark()
            if departing and self.transfers is not None:
                self.transfers.hand_off(layer, departing, key, value)
                if blocking:
                    began = now_ns()
                    self.transfers.wait_for(departing)
                    waits.append((began, now_ns()))
            marks.keep_up(AHEAD)

        batch.on_layer = hand_off
        return batch, departing


def waits_of(marks_ns: tuple[int, ...], waits: list[tuple[int, int]]) -> tuple[int, ...]:
    """How long a pass stood still after each hand-off, in ns. On a GPU the host also waits for the layer itself, whose
    time ends at its mark."""
    found = []
    for index, (began, ended) in enumerate(waits):
        at, until = marks_ns[index], min([ended, *marks_ns[index + 1 : index + 2]])  # marks are exact to microseconds
        found.append(max(0, until - max(began, at)))
    return tuple(found)
