"""Attention over slots that are copied out of the cache, on every device and in every dtype."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from disagg.run.attention.interface import Options, Plan
from disagg.run.kv_cache import KVCache, slots_of
from disagg.run.model.batch import DecodeBatch, PrefillBatch, Segment

STRIP_BYTES = 4 << 20  # 16 rows of 1,024 tokens took 174 ms in strips of 3 MB and 241 ms at once; 256 tokens: 38 and 39


class Workspace:
    """Gather buffers of one worker thread, kept between layers and steps: new large buffers cost page faults."""

    def __init__(self, kind: str = "sdpa") -> None:
        self.kind = kind
        self._buffer: Tensor | None = None

    def needs_plain(self, options: Options) -> bool:
        """Whether plain attention must run: SDPA has neither softcap nor sinks."""
        return self.kind == "plain" or options.softcap is not None or options.sinks is not None

    def gather(self, cache: KVCache, layer: int, slots: Tensor) -> Tensor:
        """K and V of the slots [n] as [2, n, kv_heads, head_dim]; the next call overwrites it."""
        size = (2, len(slots), cache.shape.kv_heads, cache.shape.head_dim)
        count = math.prod(size)
        if self._buffer is None or self._buffer.numel() < count or self._buffer.device != cache.device:
            self._buffer = torch.empty(count + count // 2, dtype=cache.shape.dtype, device=cache.device)
        return cache.gather(layer, slots, out=self._buffer[:count].view(size))


class GatheredView:
    """The slots that a segment or strip reads in every layer with the same window, and their mask.

    The mask is 0 where a query may attend, -inf elsewhere; in the cache's dtype, so that no layer converts it.
    """

    def __init__(self, slots: Tensor | None, allowed: Tensor | None, cache: KVCache) -> None:
        self.slots = None if slots is None else slots.to(cache.device, non_blocking=True)
        self.mask: Tensor | None = None
        if allowed is not None and not bool(allowed.all()):
            mask = torch.zeros(allowed.shape, dtype=cache.shape.dtype).masked_fill_(~allowed, -math.inf)
            self.mask = mask.to(cache.device, non_blocking=True)


class PrefillPlan(Plan):
    """The plan of a prefill pass: slots of the new tokens, and a view per segment and window."""

    phase = "prefill"

    def __init__(self, batch: PrefillBatch, cache: KVCache, workspace: Workspace) -> None:
        self.batch, self.cache, self.workspace, self.rows = batch, cache, workspace, batch.rows()
        slots = [slots_of(seg.blocks, seg.start, seg.stop, cache.block_size) for seg in batch.segments]
        self.slots = torch.cat(slots).to(cache.device, non_blocking=True)
        self._views: dict[tuple[int, int | None, bool], GatheredView] = {}
        decoding = [segment for segment in batch.segments if segment.start and segment.num_tokens == 1]
        alone = batch.segments[len(batch.segments) - len(decoding) :] != decoding or len(decoding) < 2
        self._rows = None if alone else DecodePlan(rows_of(decoding), cache, workspace)  # of a mixed pass

    def _view(self, index: int, window: int | None, causal_flag: bool) -> GatheredView:
        """The view of one segment; with causal_flag, the kernel's flag replaces a purely causal mask."""
        key = (index, window, causal_flag)
        if key not in self._views:
            self._views[key] = self._make_view(self.batch.segments[index], window, causal_flag)
        return self._views[key]

    def _make_view(self, segment: Segment, window: int | None, causal_flag: bool) -> GatheredView:
        start, stop = segment.start, segment.stop
        first = 0 if window is None else max(0, start - window + 1)
        slots = slots_of(segment.blocks, first, stop, self.cache.block_size) if start > 0 else None
        if causal_flag and start == 0 and (window is None or window >= stop):
            return GatheredView(slots, None, self.cache)
        query, key = torch.arange(start, stop)[:, None], torch.arange(first, stop)[None, :]
        allowed = key <= query if window is None else (key <= query) & (key > query - window)
        return GatheredView(slots, allowed, self.cache)  # [chunk, stop - first]

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        self.cache.write(layer, self.slots, key, value)
        if self.batch.on_layer is not None:
            self.batch.on_layer(layer, key, value)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        plain = self.workspace.needs_plain(options)
        decoding = 0 if self._rows is None else len(self._rows.slots)
        if self._rows is not None:
            out[len(out) - decoding :] = self._rows.attend(layer, query[len(query) - decoding :], options)
        for index, rows in enumerate(self.rows[: len(self.rows) - decoding]):
            here = slice(rows.start, rows.stop)
            view = self._view(index, options.window, not plain)
            k, v = (key[here], value[here])
            if view.slots is not None:
                k, v = self.workspace.gather(self.cache, layer, view.slots)
            out[here] = attend_segment(query[here], k, v, view.mask, plain, options)
        return out


class DecodePlan(Plan):
    """The plan of a decode step: slots of the new tokens, and strips of rows per group and window."""

    phase = "decode"

    def __init__(self, batch: DecodeBatch, cache: KVCache, workspace: Workspace) -> None:
        self.batch, self.cache, self.workspace = batch, cache, workspace
        self.slots = torch.cat([self._new_slots(*group) for group in batch.groups]).to(cache.device, non_blocking=True)
        self._strips: dict[tuple[int, int | None], list[tuple[range, GatheredView]]] = {}

    def _new_slots(self, start: int, stop: int, tables: Tensor) -> Tensor:
        positions, size = self.batch.positions[start:stop], self.cache.block_size
        longest = int(positions.max())
        assert longest < tables.shape[1] * size, f"tables of {tables.shape[1]} blocks hold no position {longest}"
        return tables.gather(1, (positions // size)[:, None])[:, 0] * size + positions % size

    def _strips_of(self, index: int, window: int | None) -> list[tuple[range, GatheredView]]:
        """Rows and view of each strip of a group: slots [rows * longest of the group], mask [rows, 1, 1, longest]."""
        if (index, window) not in self._strips:
            self._strips[index, window] = list(self._make_strips(index, window))
        return self._strips[index, window]

    def _make_strips(self, index: int, window: int | None) -> Iterator[tuple[range, GatheredView]]:
        start, stop, tables = self.batch.groups[index]
        lengths, size = self.batch.positions[start:stop, None] + 1, self.cache.block_size
        first = torch.zeros_like(lengths) if window is None else (lengths - window).clamp(min=0)
        steps = torch.arange(int((lengths - first).max()))[None, :]
        allowed = steps < lengths - first
        positions = torch.where(allowed, first + steps, first)  # padding repeats the row's own first slot
        slots = tables.gather(1, positions // size) * size + positions % size
        height = strip_rows(self.cache, slots.shape[1], stop - start)
        for row in range(0, stop - start, height):
            here = slice(row, min(row + height, stop - start))
            view = GatheredView(slots[here].flatten(), allowed[here, None, None, :], self.cache)
            yield range(start + here.start, start + here.stop), view

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        self.cache.write(layer, self.slots, key, value)
        return self.attend(layer, query, options)

    def attend(self, layer: int, query: Tensor, options: Options) -> Tensor:
        """As `run`, where the layer's K/V are in the cache."""
        plain, outs = self.workspace.needs_plain(options), []
        for index in range(len(self.batch.groups)):
            for rows, view in self._strips_of(index, options.window):
                assert view.slots is not None, "a strip reads the slots of its rows"
                pair = self.workspace.gather(self.cache, layer, view.slots)
                k, v = pair.unflatten(1, (len(rows), -1)).transpose(2, 3)  # [rows, kv_heads, longest, head_dim]
                outs.append(attend(query[rows.start : rows.stop], k, v, view.mask, plain, options))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def rows_of(segments: list[Segment]) -> DecodeBatch:
    """Chunks of one token each as the rows of a step; their tokens are in the pass."""
    tables = [torch.as_tensor(segment.blocks) for segment in segments]
    longest = max(map(len, tables))
    padded = torch.stack([F.pad(table, (0, longest - len(table)), value=int(table[0])) for table in tables])
    positions = torch.tensor([segment.start for segment in segments])
    return DecodeBatch(torch.zeros_like(positions), positions, [(0, len(segments), padded)])


def strip_rows(cache: KVCache, longest: int, rows: int) -> int:
    """Rows gathered at a time: on a CPU as many as its caches hold, on a GPU all."""
    if cache.device.type != "cpu":
        return rows
    return max(1, min(rows, STRIP_BYTES // (longest * cache.shape.layer_token_bytes)))


def attend_segment(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plain: bool, options: Options
) -> Tensor:
    """query [T, kv_heads, group, head_dim], key and value [S, kv_heads, head_dim], mask [T, S] or None for causal."""
    group = query.shape[2]
    # The heads of a group form the batch and share K/V through a stride of zero.
    key, value = (x.transpose(0, 1).expand(group, -1, -1, -1) for x in (key, value))
    query = query.permute(2, 1, 0, 3)  # [group, kv_heads, T, head_dim]
    if plain:
        sinks = None if options.sinks is None else options.sinks.view(-1, group).t()[:, :, None, None]
        out = attend_plain(query, key, value, mask, options._replace(sinks=sinks))
    else:
        causal, scale = mask is None and query.shape[2] > 1, options.scaling
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return out.permute(2, 1, 0, 3)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plain: bool, options: Options) -> Tensor:
    """query [b, kv_heads, group, head_dim] of one token a row, key and value [b, kv_heads, S, head_dim]."""
    if plain:
        sinks = None if options.sinks is None else options.sinks.view(query.shape[1], -1, 1)
        return attend_plain(query, key, value, mask, options._replace(sinks=sinks))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scaling)


def attend_plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Options) -> Tensor:
    """Two matrix products and a softmax in fp32; sinks are logits, one a head, without a value."""
    softcap, sinks = options.softcap, options.sinks
    scaling = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if mask is None else scores + mask
    if sinks is None:
        return scores.softmax(dim=-1).to(query.dtype) @ value
    scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(dim=-1)[..., :-1].to(query.dtype) @ value
