"""Prefill passes as piecewise CUDA graphs, as in vLLM: all work between two attentions is one replay.

Hand-offs run in Python, so a capture ends before a layer's attention and the next one begins after it.
Notebook: notebooks/07_on_a_gpu.ipynb.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from disagg.run.attention.interface import Options, Plan
from disagg.run.attention.paged import PagedKernel, PagedPrefill
from disagg.run.gpu.device import settle
from disagg.run.gpu.memory import RESERVE_BYTES, room_for
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch
from disagg.run.model.model import PASS_STEP, Model

ADVICE = "Lower chunk_tokens, decode_blocks or prefill_blocks of the Config."
MOST_LOGITS = PASS_STEP  # rows of logits in a graph; a pass with more ending prompts runs without a graph


def sizes(most: int) -> list[int]:
    """Tokens of passes with a graph: four sizes in each doubling, so padding is an eighth at most on average."""
    found, size = [], PASS_STEP
    while size < most:
        found.append(size)
        size += max(PASS_STEP, 1 << (size.bit_length() - 3))
    return [*found, most]


class Cut(NamedTuple):
    """A layer's attention; its tensors have the same addresses in every replay."""

    layer: int
    query: Tensor  # [T, kv_heads, group, head_dim]
    key: Tensor  # [T, kv_heads, head_dim]
    value: Tensor
    out: Tensor  # contiguous, of the shape of `query`
    options: Options


class Pieces(NamedTuple):
    """A pass of one size: a graph before each cut and one after the last; logits [MOST_LOGITS, vocab]."""

    graphs: list[torch.cuda.CUDAGraph]
    cuts: list[Cut]
    logits: Tensor


class DryPlan(Plan):
    """The plan of a pass without attention, which does not touch the cache."""

    phase = "prefill"

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        return torch.zeros(query.shape, dtype=query.dtype, device=query.device)


class CutPlan(DryPlan):
    """The plan of a pass under capture: at a layer's attention one graph ends and the next one begins."""

    def __init__(self, cache: KVCache, pool: Any) -> None:
        super().__init__(cache)
        self._pool = pool
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.cuts: list[Cut] = []

    def begin(self) -> None:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self.graphs.append(graph)

    def end(self) -> None:
        self.graphs[-1].capture_end()

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        self.end()
        self.cuts.append(Cut(layer, unowned(query), unowned(key), unowned(value), unowned(out), options))
        self.begin()
        return out


class PrefillGraphs:
    """Captured passes of one worker; `prepare` makes them on the worker's stream, `run` replays them there."""

    def __init__(self, model: Model, cache: KVCache, kernel: PagedKernel, chunk_tokens: int) -> None:
        self.model, self.cache, self.kernel = model, cache, kernel
        self._sizes = sizes(chunk_tokens)
        self._pieces: dict[int, Pieces] = {}
        lengths = [chunk_tokens, chunk_tokens, MOST_LOGITS]
        device, pinned = cache.device, cache.device.type == "cuda"
        self._ids, self._places, self._wanted = (torch.zeros(n, dtype=torch.long, device=device) for n in lengths)
        self._staged = [torch.zeros(length, dtype=torch.long, pin_memory=pinned) for length in lengths]

    def close(self) -> None:
        """Frees graphs while their stream exists."""
        self._pieces.clear()
        self._staged.clear()

    @torch.inference_mode()
    def prepare(self, progress: Callable[[str], None]) -> None:
        """Captures the largest size first: the others use its memory."""
        pool = torch.cuda.graph_pool_handle()
        for done, size in enumerate(reversed(self._sizes)):
            progress(f"capture of a prefill pass, {done + 1} of {len(self._sizes)}")
            with room_for(f"the graphs of a pass of {size} tokens", self.cache.device, ADVICE, RESERVE_BYTES):
                self._pieces[size] = self._capture(size, pool)
        settle(self.cache.device)

    def fits(self, batch: PrefillBatch) -> bool:
        return len(batch.tokens) <= self._sizes[-1] and len(batch.wants_logits) <= MOST_LOGITS

    @torch.inference_mode()
    def run(self, batch: PrefillBatch) -> Tensor:
        """One packed pass -> logits [len(batch.wants_logits), vocab], which the next pass overwrites."""
        size = next(size for size in self._sizes if size >= len(batch.tokens))
        pieces, plan = self._pieces[size], PagedPrefill(batch, self.cache, self.kernel)
        inputs = (batch.tokens, batch.positions(), batch.logit_rows())
        for kept, staged, new in zip((self._ids, self._places, self._wanted), self._staged, inputs, strict=True):
            length = min(size, len(kept))
            staged[: len(new)] = new
            staged[len(new) : length] = 0  # padding must not point beyond this pass
            kept[:length].copy_(staged[:length], non_blocking=True)
        for graph, cut in zip(pieces.graphs, pieces.cuts, strict=False):
            graph.replay()
            plan.attend(cut.layer, cut.query, cut.key, cut.value, cut.options, cut.out)
        pieces.graphs[-1].replay()
        return pieces.logits[: len(batch.wants_logits)]

    def _capture(self, size: int, pool: Any) -> Pieces:
        inputs = (self._ids[:size], self._places[:size], self._wanted)
        self.model.logits(DryPlan(self.cache), *inputs)  # compiles and allocates before the capture, which must not
        settle(self.cache.device)
        plan = CutPlan(self.cache, pool)
        plan.begin()
        try:
            logits = self.model.logits(plan, *inputs)
        finally:
            plan.end()
        return Pieces(plan.graphs, plan.cuts, unowned(logits))


def unowned(tensor: Tensor) -> Tensor:
    """A view that does not keep its memory alive: the graphs reuse it from layer to layer."""
    bits = tensor.view(torch.int16)  # a dtype that numpy has too
    strides = tuple(2 * step for step in bits.stride())
    layout = dict(shape=tuple(bits.shape), strides=strides, typestr="<i2", version=3)
    memory = SimpleNamespace(__cuda_array_interface__=dict(data=(bits.data_ptr(), False), **layout))
    return torch.as_tensor(memory, device=tensor.device).view(tensor.dtype)
