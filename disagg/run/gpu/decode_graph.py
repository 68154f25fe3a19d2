"""Decode on a GPU: the batch lives on the device, and a step is one replay of a CUDA graph.

A step is launched without a wait for the previous one, whose tokens are on the device. On a GPU split by SMs each size
has two graphs: one on decode's SMs, and one on all SMs for steps while no prefill runs.
Notebook: notebooks/07_on_a_gpu.ipynb.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from disagg.plan.commands import Decode, Join
from disagg.plan.events import Stepped
from disagg.run.attention.paged import PagedDecode, PagedKernel
from disagg.run.clock import now_ns
from disagg.run.gpu.device import settle
from disagg.run.gpu.device_clock import Moments
from disagg.run.gpu.device_rows import DeviceRows
from disagg.run.gpu.memory import RESERVE_BYTES, is_shortage, room_for
from disagg.run.gpu.step_ends import StepEnds
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import BatchRows
from disagg.run.model.fused_decode import FusedDecode, Own
from disagg.run.model.fused_trial import try_step
from disagg.run.model.model import Model
from disagg.run.model.sampling import draw_token, not_finite
from disagg.run.reports import Reports
from disagg.trace.spans import Span

REPLAYS = 10  # of a captured step, to time it
ADVICE = "Lower max_batch, decode_blocks or prefill_blocks of the Config."


@dataclass
class GraphRow:
    """A row of the batch on the host, before a step."""

    join: Join
    place: int  # on the device
    context: int  # tokens in the cache
    token_index: int  # of the step's token
    blocks: int


def buckets(max_batch: int) -> list[int]:
    """Batch sizes with a graph; a step runs in the smallest one that fits."""
    return sorted({min(size, max_batch) for size in (1, 2, 4, *range(8, max_batch + 8, 8))})


class CapturedStep(NamedTuple):
    """The graph of a step, with its outputs: logits [size, vocab] and picked tokens [2, size]."""

    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor
    picked: torch.Tensor


def replay_ns(graph: torch.cuda.CUDAGraph, device: torch.device) -> int:
    """Of a replay, the best of a few."""
    found = []
    for _ in range(REPLAYS):
        settle(device)
        began = now_ns()
        graph.replay()
        settle(device)
        found.append(now_ns() - began)
    return min(found)


class GraphDecodeStage(BatchRows[GraphRow]):
    """Runs `Decode` commands with a paged kernel; `prepare` compiles and captures."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        kernel: PagedKernel,
        places: int,
        graphs: bool,
        reports: Reports,
        split: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.cache, self.kernel, self.graphs = model, cache, kernel, graphs
        self._reports, self._ends, self._split = reports, StepEnds(reports.post), split
        width = min(-(-model.context_limit // cache.block_size), cache.num_blocks - 1)
        self.state: DeviceRows | None = DeviceRows(places, width, cache.num_blocks - 1, cache.device)
        self._free = list(range(places - 1, -1, -1))
        self._captured: dict[tuple[torch.cuda.Stream | None, int], CapturedStep] = {}  # by stream and size
        self._own: torch.cuda.Stream | None = None
        self._whole: torch.cuda.Stream | None = None  # on all SMs of a split GPU
        self._last: torch.cuda.Stream | None = None  # of the latest step
        # At most two steps are in flight, so the oldest of three outputs has been read.
        self._outputs = [torch.empty(2 * places, dtype=torch.int32, pin_memory=cache.on_gpu) for _ in range(3)]
        self._sizes = buckets(places)
        self._fused = FusedDecode.of(model) if fused and graphs else None
        self.fused_sizes: dict[int, Own] = {}  # whose graphs have fused layers, and products of ours

    def close(self) -> None:
        """Waits for launched steps; frees graphs and pinned memory while their stream exists."""
        self._ends.close()
        self._captured.clear()
        self._outputs.clear()
        self.state = None

    @torch.inference_mode()
    def prepare(self, progress: Callable[[str], None]) -> None:
        """Compiles each size by one run and captures it, the largest first: the others share its memory."""
        device = self.cache.device
        self._last = self._own = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._whole = torch.cuda.Stream(device) if self._split else self._own
        pool = torch.cuda.graph_pool_handle() if self.graphs else None
        sizes = self._sizes if self.graphs else sorted({self._sizes[0], self._sizes[-1]})
        runs = [(stream, size) for stream in dict.fromkeys((self._own, self._whole)) for size in sizes[::-1]]
        for done, (stream, size) in enumerate(runs, start=1):
            progress(f"{'capture' if self.graphs else 'warm-up'} of a decode step, {done} of {len(runs)}")
            with self._on(stream), room_for(f"a decode step of {size} rows", device, ADVICE, RESERVE_BYTES):
                self._run(size)
                if pool is not None:
                    self._captured[stream, size] = self._fastest(size, pool, progress)
        with self._on(self._own):
            settle(device)

    @torch.inference_mode()
    def probe(self) -> list[tuple[int, int, int]]:
        """(rows, tokens read, ns) of steps whose rows are all padding; the first of each size is not counted."""
        found = []
        for size in (self._sizes[0], self._sizes[-1]):
            with self._on(self._own):
                for _ in range(2):
                    settle(self.cache.device)
                    began = now_ns()
                    if self.graphs:
                        self._captured[self._last, size].graph.replay()
                    else:
                        self._run(size)
                    settle(self.cache.device)
                    took = now_ns() - began
            found.append((size, size, took))
        return found

    def _fastest(self, size: int, pool: Any, progress: Callable[[str], None]) -> CapturedStep:
        """A step with the module's own layers, or with fused ones and those products of ours that make it faster. A
        size between powers of two does as the next larger one, since every way is a capture."""
        wrong = self._fused and try_step(self._fused, self.model, self.kernel, self.cache.block_size, size)
        torch.cuda.empty_cache()  # of the trial's caches
        if wrong is not None:
            progress(f"decode keeps the module's own layers: a fused step of {size} rows is {wrong}")
            self._fused = None
        fused, larger = self._fused, next((each for each in self._sizes if each > size), None)
        if fused is not None and larger is not None and size & (size - 1) and larger in self.fused_sizes:
            self.fused_sizes[size] = self.fused_sizes[larger]
            return self._capture(size, pool, partial(fused, own=self.fused_sizes[size]))
        plain = self._capture(size, pool)
        if fused is None:
            return plain
        best: tuple[int, Own, CapturedStep] | None = None
        for name in ("", *Own._fields):
            own = best[1]._replace(**{name: True}) if best else Own()
            try:
                found = self._capture(size, pool, partial(fused, own=own))
            except Exception as error:
                if not is_shortage(error):
                    raise
                break
            took = replay_ns(found.graph, self.cache.device)
            best = min(best or (took, own, found), (took, own, found), key=itemgetter(0))
        if best is None or replay_ns(plain.graph, self.cache.device) < best[0]:
            self.fused_sizes.pop(size, None)
            return plain
        self.fused_sizes[size] = best[1]
        return best[2]

    def _capture(self, size: int, pool: Any, fused: Callable[..., torch.Tensor] | None = None) -> CapturedStep:
        settle(self.cache.device)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            outputs = self._run(size, fused)
        finally:
            graph.capture_end()
        return CapturedStep(graph, *outputs)

    def _run(self, size: int, fused: Callable[..., torch.Tensor] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A step on the first `size` rows of the order: logits [size, vocab] and greedy tokens [2, size]."""
        tokens, lengths, tables = self._device_rows.take(size)
        if fused is None:
            logits = self.model.call(PagedDecode(self.cache, self.kernel, tables, lengths), tokens, lengths.long())
        else:
            logits = fused(self.cache, tables, lengths, tokens)
        picked = self._device_rows.move_on(logits)
        return logits, picked

    @torch.inference_mode()
    def step(self, command: Decode) -> None:
        """Launches the step; another thread posts its result after its end."""
        with self._on(self._whole if command.alone else self._own):
            self._ends.put(command, self._launch(command).finish)

    def _on(self, stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager:
        """A context in which work goes to this stream, after all earlier steps."""
        if stream is not None and self._last is not None and stream != self._last:
            stream.wait_stream(self._last)
        self._last = stream
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)

    def _launch(self, command: Decode) -> "LaunchedStep":
        rows = self.follow(command)
        size = next(size for size in self._sizes if size >= len(rows))
        for row in rows:
            if row.join.sampling.force_ids is not None and row.token_index > row.join.token_index:
                self._device_rows.set_token(row.place, row.join.sampling.force_ids[row.token_index - 1])
        self._device_rows.set_order([row.place for row in rows], size)
        moments = Moments(self.cache.device)
        moments.mark()
        self._device_rows.upload()
        if self.graphs:
            graph, logits, picked = self._captured[self._last, size]
            graph.replay()
        else:
            logits, picked = self._run(size)
        kept = self._sample(rows, logits, picked)
        self._outputs.append(self._outputs.pop(0))
        out = self._outputs[-1][: 2 * size].view(2, size)
        out.copy_(picked, non_blocking=True)
        moments.mark()
        launched = LaunchedStep(command, [copy.copy(row) for row in rows], out, kept, moments, self._reports)
        for row in rows:
            row.context, row.token_index = row.context + 1, row.token_index + 1
        return launched

    def advance(self, rows: list[GraphRow], tokens: Sequence[int]) -> None:
        """After a mixed pass; the next step uploads it."""
        for row, token in zip(rows, tokens, strict=True):
            row.context, row.token_index = row.context + 1, row.token_index + 1
            self._device_rows.set_token(row.place, token)
            self._device_rows.set_length(row.place, row.context)

    def record(self, command: Decode, rows: list[GraphRow], sizes: tuple[int, ...], started: int, ended: int) -> None:
        requests = tuple(row.join.request for row in rows)
        span = Span("decode", str(command.worker), started, ended, requests, command.step, len(rows), groups=sizes)
        self._reports.record(span._replace(ready_ns=command.at_ns, blocks=sum(row.blocks for row in rows)))

    def join(self, join: Join) -> GraphRow:
        row = GraphRow(join, self._free.pop(), join.context, join.token_index, len(join.blocks))
        self._device_rows.set_row(row.place, join.token, join.context, list(join.blocks))
        return row

    def grow(self, row: GraphRow, block: int) -> None:
        self._device_rows.set_block(row.place, row.blocks, block)
        row.blocks += 1

    def leave(self, row: GraphRow) -> None:
        self._free.append(row.place)

    def _sample(
        self, rows: list[GraphRow], logits: torch.Tensor, picked: torch.Tensor
    ) -> list[tuple[int, torch.Tensor]]:
        """Samples tokens on the device; returns the logits that requests keep."""
        kept = []
        for index, row in enumerate(rows):
            sampling = row.join.sampling
            if sampling.keep_logits:
                kept.append((row.join.request, logits[index].clone()))
            if sampling.temperature > 0.0 and sampling.force_ids is None:
                picked[0, index] = draw_token(logits[index], sampling, row.context + 1)
                self._device_rows.tokens[row.place] = picked[0, index]
        return kept

    @property
    def _device_rows(self) -> DeviceRows:
        assert self.state is not None, "the stage is closed"
        return self.state


@dataclass
class LaunchedStep:
    """A step on the stream."""

    command: Decode
    rows: list[GraphRow]
    out: torch.Tensor  # [2, size of the step]: tokens, and which of them have finite logits
    kept: list[tuple[int, torch.Tensor]]
    moments: Moments  # its start and end
    reports: Reports

    def finish(self) -> Stepped:
        """Waits for the step's tokens and reports them."""
        command, rows = self.command, self.rows
        self.moments.wait()
        started, ended = self.moments.read()
        tokens, finite = self.out[:, : len(rows)].tolist()
        for index, row in enumerate(rows):
            request, forced = row.join.request, row.join.sampling.force_ids
            if forced is not None:
                tokens[index] = forced[row.token_index]
            if not finite[index]:
                self.reports.fail(request, not_finite(request, row.token_index))
        for request, logits in self.kept:
            self.reports.keep(request, logits)
        requests, sizes = tuple(row.join.request for row in rows), tuple(map(len, command.groups))
        span = Span("decode", str(command.worker), started, ended, requests, command.step, len(rows), groups=sizes)
        self.reports.record(span._replace(ready_ns=command.at_ns, blocks=sum(row.blocks for row in rows)))
        used = sum(row.context + 1 for row in rows)
        return Stepped(command.worker, command.step, tuple(tokens), started, ended, used, used)
