"""Prefill passes as CUDA graphs: one replay a pass.

Lengths, tables and slots are read from device memory, so a graph holds any pass up to its number of tokens. Where
layers travel, streams beside it take each of them as soon as it is stored (hand_off_streams.py).
Notebook: notebooks/07_on_a_gpu.ipynb.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from disagg.plan.errors import EngineError
from disagg.run.attention.interface import Options, Plan
from disagg.run.attention.paged import TILE_FIELDS, PagedKernel, tiles_of
from disagg.run.attention.split_decode import power_of_two
from disagg.run.clock import now_ns
from disagg.run.gpu.captured_hand_off import TURNS, CapturedHandOff
from disagg.run.gpu.device import settle
from disagg.run.gpu.device_clock import timer_of
from disagg.run.gpu.memory import RESERVE_BYTES, check_reserve, room_for
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch
from disagg.run.model.model import PASS_STEP, Model
from disagg.run.model.sampling import greedy
from disagg.run.transfers import Departing

ADVICE = "Lower chunk_tokens, decode_blocks or prefill_blocks of the Config."
MOST_LOGITS = PASS_STEP  # rows of logits in a graph; a pass with more ending prompts runs without a graph
MOST_CAPTURE_NS = 60 * 10**9  # after which no further size is captured
MOST_CHUNKS = PASS_STEP  # of requests, or rows that decode, in a pass with a graph


def sizes(most: int) -> list[int]:
    """Tokens of passes with a graph: four sizes in each doubling, so padding is an eighth at most on average."""
    found, size = [], PASS_STEP
    while size < most:
        found.append(size)
        size += max(PASS_STEP, 1 << (size.bit_length() - 3))
    return [*found, most]


class PassPlaces(NamedTuple):
    """What a graph of one size reads, int64 on the device."""

    row: Tensor  # [1] of the times
    wanted: Tensor  # [MOST_LOGITS] rows
    ids: Tensor  # [size], as the next two
    positions: Tensor
    slots: Tensor  # -1: padding
    tiles: Tensor  # [.., TILE_FIELDS] of attention; rows of 0: padding
    tables: Tensor  # [MOST_CHUNKS, width]: of the pass's own chunks; what lies beyond their blocks is never read


class PassInputs:
    """One buffer of which the graphs of each size read the front: a pass is filled in by one copy, which ends with its
    last chunk's table."""

    def __init__(self, most: int, width: int, device: torch.device) -> None:
        self._width, total = width, sum(parts_of(most, width))
        self._there = torch.zeros(total, dtype=torch.long, device=device)
        self._here = torch.zeros(total, dtype=torch.long, pin_memory=device.type == "cuda")
        self._cut: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._staged: dict[int, list[np.ndarray]] = {}  # by size; numpy: a tenth of torch's time for each part

    def blank(self, size: int) -> PassPlaces:
        """Where a graph of a size finds its pass; one without a token, until `fill`."""
        self._there.zero_()
        parts = parts_of(size, self._width)
        row, wanted, ids, positions, slots, tiles, tables = self._there[: sum(parts)].split(parts)
        slots.fill_(-1)
        tiles, tables = tiles.view(-1, TILE_FIELDS), tables.view(MOST_CHUNKS, self._width)
        return PassPlaces(row, wanted, ids, positions, slots, tiles, tables)

    def fill(self, batch: PrefillBatch, size: int, block_size: int, row: int) -> np.ndarray:
        """Uploads a pass in stream order; its slots. Padding must not point beyond the pass."""
        if size not in self._staged:
            self._staged[size] = np.split(self._here.numpy(), np.cumsum(parts_of(size, self._width))[:-1])
        where, *kept, tables = self._staged[size]
        where[0], slots, tiles = row, batch.slots_in(block_size), tiles_of(batch).ravel()
        new: list[Any] = [batch.last_rows, np.asarray(batch.tokens), batch.places, slots, tiles]
        for part, given, padding in zip(kept, new, (0, 0, 0, -1, 0), strict=True):
            part[: len(given)], part[len(given) :] = given, padding
        for first, blocks in zip(range(0, len(tables), self._width), batch.tables, strict=False):
            tables[first : first + len(blocks)] = blocks
        there, here = self._fronts(size, len(batch.segments))
        there.copy_(here, non_blocking=True)
        return slots

    def _fronts(self, size: int, chunks: int) -> tuple[Tensor, Tensor]:
        """What a pass fills of the buffers, kept: to cut them costs as much as the copy."""
        if (size, chunks) not in self._cut:
            used = sum(parts_of(size, self._width)) - (MOST_CHUNKS - chunks) * self._width
            self._cut[size, chunks] = self._there[:used], self._here[:used]
        return self._cut[size, chunks]


def parts_of(size: int, width: int) -> list[int]:
    """Numbers in each part of what a graph reads."""
    tiles = -(-size // PASS_STEP) + min(size, MOST_CHUNKS)
    return [1, MOST_LOGITS, size, size, size, tiles * TILE_FIELDS, MOST_CHUNKS * width]


class CapturedPass(NamedTuple):
    """A graph of a pass, with its logits [MOST_LOGITS, vocab]."""

    graph: torch.cuda.CUDAGraph
    logits: Tensor


class CapturedPlan(Plan):
    """The plan of a pass under capture; stored [1 + TURNS, layers] gets the times at which K/V were in the cache, in
    the row of this pass."""

    phase = "prefill"

    def __init__(self, cache: KVCache, kernel: PagedKernel, inputs: PassPlaces, stored: Tensor) -> None:
        self.cache, self.kernel, self.stored, self._inputs = cache, kernel, stored, inputs

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        self.kernel.store(self.cache, layer, self._inputs.slots, key, value)
        places = self._inputs.tables, self._inputs.tiles, self.stored[:, layer:], self._inputs.row
        self.kernel.tiled(query.flatten(1, 2), *self.cache.layer(layer), places, options.scaling, out.flatten(1, 2))
        return out


class PrefillGraphs:
    """Captured passes of one worker; `prepare` makes them on the worker's stream, `run` replays them there."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        kernel: PagedKernel,
        chunk_tokens: int,
        hand_off: CapturedHandOff | None = None,
    ) -> None:
        self.model, self.cache, self.kernel, self.hand_off = model, cache, kernel, hand_off
        self._sizes, self._captured = sizes(chunk_tokens), dict[int, CapturedPass]()
        width = min(-(-model.context_limit // cache.block_size), cache.num_blocks)
        self._inputs = PassInputs(chunk_tokens, width, cache.device)
        self._stored = torch.zeros(1 + TURNS, model.layers, dtype=torch.long, device=cache.device)
        pinned = cache.device.type == "cuda"
        self._seen = torch.zeros(1 + TURNS, model.layers, dtype=torch.long, pin_memory=pinned)
        self._picked = torch.zeros(2, MOST_LOGITS, dtype=torch.int32, pin_memory=pinned)
        self._row = 0  # of the last pass

    def close(self) -> None:
        """Frees graphs while their streams exist, once their last copy has ended."""
        if self.hand_off is not None:
            self.hand_off.close()
        self._captured.clear()

    @torch.inference_mode()
    def prepare(self, progress: Callable[[str], None]) -> None:
        """Captures the largest size first: the others use its memory. Then half of it and so on, and last the sizes in
        between; it stops where time or memory runs out, since a larger graph holds a smaller pass."""
        self._prepare_hand_off()
        pool, began, falling = torch.cuda.graph_pool_handle(), now_ns(), self._sizes[::-1]
        for done, size in enumerate(sorted(falling, key=lambda size: falling.index(size) % 4 > 0)):
            if self._captured and now_ns() - began > MOST_CAPTURE_NS:
                break
            progress(f"capture of a prefill pass, {done + 1} of {len(falling)}")
            what = f"the graphs of a pass of {size} tokens", self.cache.device, ADVICE, RESERVE_BYTES
            try:
                with room_for(*what):
                    self._captured[size] = self._capture(size, pool)
                check_reserve(*what)
            except EngineError as error:
                self._captured.pop(size, None)
                if not self._captured:
                    warnings.warn(f"Prefill runs without graphs: {error}", RuntimeWarning, stacklevel=2)
                break
        self._sizes = sorted(self._captured)
        settle(self.cache.device)
        torch.cuda.empty_cache()  # what a capture that failed had taken

    def _prepare_hand_off(self) -> None:
        """Where it can't be prepared, passes with a hand-off run without graphs."""
        if self.hand_off is None:
            return
        try:
            with room_for("the hand-off of captured passes", self.cache.device, ADVICE):
                self.hand_off.prepare(self._stored, self._seen)
        except EngineError as error:
            warnings.warn(f"Passes that hand off run without graphs: {error}", RuntimeWarning, stacklevel=2)
            self.hand_off = None

    def fits(self, batch: PrefillBatch) -> bool:
        """Where sizes are missing, padding is no more than the pass."""
        few, count = len(batch.wants_logits) <= MOST_LOGITS and len(batch.segments) <= MOST_CHUNKS, len(batch.tokens)
        size = next((size for size in self._sizes if size >= count), None)
        return few and size is not None and size - count <= max(PASS_STEP, count)

    @torch.inference_mode()
    def run(self, batch: PrefillBatch, departing: Sequence[Departing] = ()) -> Tensor:
        """One packed pass, which hands off what departs -> logits [len(batch.wants_logits), vocab], which the next pass
        overwrites."""
        size = next(size for size in self._sizes if size >= len(batch.tokens))
        hand_off, graph = self.hand_off if departing else None, self._captured[size]
        turn = None if hand_off is None else hand_off.free_turn()
        self._row = 0 if turn is None else 1 + turn
        slots = self._inputs.fill(batch, size, self.cache.block_size, self._row)
        graph.graph.replay()
        if hand_off is not None and (turn is None or not hand_off.launch(turn, departing, slots)):
            hand_off.send_late(batch, departing)
        return graph.logits[: len(batch.wants_logits)]

    def answered(self) -> None:
        """The last pass has picked its tokens, or failed: what was handed off may land."""
        if self._row and self.hand_off is not None:
            self.hand_off.turns[self._row - 1].answered.set()

    def picked(self, count: int) -> Tensor:
        """What `greedy` gives for the last pass, which has ended, on the host."""
        return self._picked[:, :count]

    def moments(self) -> tuple[int, ...]:
        """Host times in ns at which the last pass, which has ended, had each layer's K/V in the cache."""
        return tuple(map(timer_of(self.cache.device).ns, self._seen[self._row].tolist()))

    def _capture(self, size: int, pool: Any) -> CapturedPass:
        inputs = self._inputs.blank(size)
        self._logits(inputs)  # compiles and allocates before the capture, which must not
        settle(self.cache.device)
        torch.cuda.empty_cache()  # a capture has memory of its own
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            logits = self._logits(inputs)
        finally:
            graph.capture_end()
        return CapturedPass(graph, logits)

    def _logits(self, inputs: PassPlaces) -> Tensor:
        """The pass; its tokens and times go to the host with it."""
        plan = CapturedPlan(self.cache, self.kernel, inputs, self._stored)
        logits = self.model.logits(plan, inputs.ids, inputs.positions, inputs.wanted)
        write_out(greedy(logits), self._picked)
        write_out(self._stored, self._seen)
        return logits


def write_out(source: Tensor, target: Tensor) -> None:
    """Copies a few numbers to pinned memory by a kernel: a graph's own copy would stand in one queue with those of the
    hand-off beside it, and hold them up until the pass ends."""
    if source.device.type == "cpu":
        target.copy_(source)
        return
    from disagg.run.gpu import device_kernels  # needs triton

    count = source.numel()
    device_kernels.write_out[(1,)](source, target, COUNT=count, PAD=power_of_two(count))
