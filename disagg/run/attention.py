"""Attention over the paged KV cache, under the name that Hugging Face models know it by.

Transformers calls `paged_attention` in every layer, once it is the model's `attn_implementation`. It
1. writes the new K/V into the cache,
2. tells the batch's `on_layer` that this layer may be handed off, and only then
3. attends: PyTorch's `scaled_dot_product_attention`, or plain matrix products where a model asks for softcap or sinks.
Slots that hold no token of a row are never read: a padded slot repeats the first slot of the same row, under the mask.
No function for masks is registered beside it, which is how transformers learns to build none.
"""

import math

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from disagg.plan.errors import ConfigError, ModelError

from .batch import DecodeBatch, LayerHook, PrefillBatch, Segment
from .kv_cache import KVCache, slots_of

__all__ = ["NAME", "DecodeBatch", "LayerHook", "PrefillBatch", "Segment", "Workspace", "choose", "describe"]

NAME = "disagg_paged"
KINDS = ("sdpa", "plain")
STRIP_BYTES = 4 << 20  # 16 rows of 1,024 tokens took 174 ms in strips of 3 MB and 241 ms at once; 256 tokens: 38 and 39


def choose(requested: str, device) -> str:
    """The kind of attention that runs for Config.attention on a device: "sdpa" or "plain"."""
    if requested == "flash":
        raise ConfigError(f"attention='flash' on {device}: not built in; {describe(device)}. Use 'auto' or 'sdpa'.")
    if requested not in ("auto", *KINDS):
        raise ConfigError(f"attention is {requested!r}; it must be 'auto' or one of {', '.join(map(repr, KINDS))}")
    return "sdpa" if requested == "auto" else requested


def describe(device="cpu") -> str:
    """One sentence for `doctor`: which attention runs on the device, and why not another."""
    runs = f"PyTorch SDPA over gathered slots runs on {torch.device(device).type}"
    if torch.device(device).type == "cpu":
        return f"{runs}, because flash-attn has kernels for GPUs only"
    return f"{runs}, because it reads the same cache as the CPU path and needs no package that must be compiled"


class Workspace:
    """Gather buffers of one worker thread, kept between layers and steps: fresh large ones cost page faults."""

    def __init__(self, kind: str = "sdpa"):
        self.kind = kind
        self._buffer = None

    def gather(self, cache: KVCache, layer: int, slots: torch.Tensor) -> torch.Tensor:
        """K and V of the slots [n] as [2, n, kv_heads, head_dim]; the next call overwrites it."""
        size = (2, len(slots), cache.shape.kv_heads, cache.shape.head_dim)
        count = math.prod(size)
        if self._buffer is None or self._buffer.numel() < count or self._buffer.device != cache.device:
            self._buffer = torch.empty(count + count // 2, dtype=cache.shape.dtype, device=cache.device)
        return cache.gather(layer, slots, out=self._buffer[:count].view(size))


class View:
    """Which slots one segment or group reads in every layer with the same window, and the mask over them."""

    def __init__(self, slots: torch.Tensor | None, allowed: torch.Tensor | None, cache: KVCache):
        self.slots = None if slots is None else slots.to(cache.device, non_blocking=True)
        self.mask = None  # 0 where a query may look, -inf elsewhere; in the cache's dtype, so that no layer converts it
        if allowed is not None and not bool(allowed.all()):
            mask = torch.zeros(allowed.shape, dtype=cache.shape.dtype).masked_fill_(~allowed, -math.inf)
            self.mask = mask.to(cache.device, non_blocking=True)


class PrefillPlan:
    """What every layer of a prefill pass shares: slots of the new tokens, and a view per segment and window."""

    def __init__(self, batch: PrefillBatch, cache: KVCache):
        self.batch, self.cache, self.rows = batch, cache, batch.rows()
        slots = [slots_of(seg.blocks, seg.start, seg.stop, cache.block_size) for seg in batch.segments]
        self.slots = torch.cat(slots).to(cache.device, non_blocking=True)
        self._views: dict[tuple[int, int | None, bool], View] = {}

    def view(self, index: int, window: int | None, causal_flag: bool) -> View:
        """View of one segment. With causal_flag, a mask that says nothing but "causal" is left to the kernel's flag."""
        key = (index, window, causal_flag)
        if key not in self._views:
            self._views[key] = self._make_view(self.batch.segments[index], window, causal_flag)
        return self._views[key]

    def _make_view(self, segment: Segment, window: int | None, causal_flag: bool) -> View:
        start, stop = segment.start, segment.stop
        first = 0 if window is None else max(0, start - window + 1)
        slots = slots_of(segment.blocks, first, stop, self.cache.block_size) if start > 0 else None
        if causal_flag and start == 0 and (window is None or window >= stop):
            return View(slots, None, self.cache)
        query, key = torch.arange(start, stop)[:, None], torch.arange(first, stop)[None, :]
        allowed = key <= query if window is None else (key <= query) & (key > query - window)
        return View(slots, allowed, self.cache)  # [chunk, stop - first]

    def attend(self, layer, query, key, value, workspace, window, options) -> torch.Tensor:
        """query [T, kv_heads, group, head_dim], key and value [T, kv_heads, head_dim] -> like query."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        flag = not needs_plain(workspace, options)
        for index, rows in enumerate(self.rows):
            here = slice(rows.start, rows.stop)
            view = self.view(index, window, flag)
            k, v = (key[here], value[here]) if view.slots is None else workspace.gather(self.cache, layer, view.slots)
            out[here] = attend_segment(query[here], k, v, view.mask, workspace, options)
        return out


class DecodePlan:
    """What every layer of a decode step shares: slots of the new tokens, and the strips per group and window."""

    def __init__(self, batch: DecodeBatch, cache: KVCache):
        self.batch, self.cache = batch, cache
        self.slots = torch.cat([self._new_slots(*group) for group in batch.groups]).to(cache.device, non_blocking=True)
        self._strips: dict[tuple[int, int | None], list[tuple[range, View]]] = {}

    def _new_slots(self, start: int, stop: int, tables: torch.Tensor) -> torch.Tensor:
        positions, size = self.batch.positions[start:stop], self.cache.block_size
        longest = int(positions.max())
        assert longest < tables.shape[1] * size, f"tables of {tables.shape[1]} blocks hold no position {longest}"
        return tables.gather(1, (positions // size)[:, None])[:, 0] * size + positions % size

    def strips(self, index: int, window: int | None) -> list[tuple[range, View]]:
        """Rows and view of each strip of a group: slots [rows * longest of the group], mask [rows, 1, 1, longest]."""
        if (index, window) not in self._strips:
            self._strips[index, window] = list(self._make_strips(*self.batch.groups[index], window))
        return self._strips[index, window]

    def _make_strips(self, start: int, stop: int, tables: torch.Tensor, window: int | None):
        lengths, size = self.batch.positions[start:stop, None] + 1, self.cache.block_size
        first = torch.zeros_like(lengths) if window is None else (lengths - window).clamp(min=0)
        steps = torch.arange(int((lengths - first).max()))[None, :]
        allowed = steps < lengths - first
        positions = torch.where(allowed, first + steps, first)  # padding repeats the row's own first slot
        slots = tables.gather(1, positions // size) * size + positions % size
        height = strip_rows(self.cache, slots.shape[1], stop - start)
        for row in range(0, stop - start, height):
            here = slice(row, min(row + height, stop - start))
            view = View(slots[here].flatten(), allowed[here, None, None, :], self.cache)
            yield range(start + here.start, start + here.stop), view

    def attend(self, layer, query, key, value, workspace, window, options) -> torch.Tensor:
        """query [B, kv_heads, group, head_dim] -> the same shape; key and value are in the cache already."""
        outs = []
        for index in range(len(self.batch.groups)):
            for rows, view in self.strips(index, window):
                pair = workspace.gather(self.cache, layer, view.slots)
                k, v = pair.unflatten(1, (len(rows), -1)).transpose(2, 3)  # [rows, kv_heads, longest, head_dim]
                outs.append(attend(query[rows.start : rows.stop], k, v, view.mask, workspace, options))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def strip_rows(cache: KVCache, longest: int, rows: int) -> int:
    """Rows that a CPU gathers at a time, so that attention finds them still in its caches; a GPU takes all."""
    if cache.device.type != "cpu":
        return rows
    return max(1, min(rows, STRIP_BYTES // (longest * cache.shape.layer_token_bytes)))


def plan_of(batch: PrefillBatch | DecodeBatch, cache: KVCache) -> PrefillPlan | DecodePlan:
    """The plan that every layer of one model call shares."""
    return PrefillPlan(batch, cache) if isinstance(batch, PrefillBatch) else DecodePlan(batch, cache)


def paged_attention(
    module,
    query: torch.Tensor,  # [1, heads, T, head_dim]
    key: torch.Tensor,  # [1, kv_heads, T, head_dim]
    value: torch.Tensor,
    attention_mask=None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    plan: PrefillPlan | DecodePlan,
    workspace: Workspace,
    **unused,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer as transformers calls it: [1, T, heads, head_dim] and no weights."""
    check_call(module, key, value, attention_mask, plan.cache, unused)
    layer, kv_heads = module.layer_idx, plan.cache.shape.kv_heads
    key, value = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [T, kv_heads, head_dim]
    plan.cache.write(layer, plan.slots, key, value)
    hook = getattr(plan.batch, "on_layer", None)
    if hook is not None:
        hook(layer, key, value)
    query = query[0].transpose(0, 1).unflatten(1, (kv_heads, -1))  # [T, kv_heads, group, head_dim]
    out = plan.attend(layer, query, key, value, workspace, sliding_window, (scaling, softcap, s_aux))
    return out.flatten(1, 2).unsqueeze(0), None


def check_call(module, key, value, attention_mask, cache: KVCache, unused: dict) -> None:
    """Refuse in words what this attention would compute wrongly."""
    if attention_mask is not None or unused.get("position_bias") is not None:
        raise ModelError(f"{type(module).__name__} brings its own mask or position bias; paged attention has neither")
    want = (cache.shape.kv_heads, cache.shape.head_dim)
    if (key.shape[1], key.shape[3]) != want or (value.shape[1], value.shape[3]) != want:
        raise ModelError(
            f"layer {module.layer_idx} makes keys of {key.shape[1]} x {key.shape[3]} and values of {value.shape[1]} x "
            f"{value.shape[3]} a token, where the cache holds {want[0]} x {want[1]} in every layer"
        )


def needs_plain(workspace: Workspace, options) -> bool:
    """SDPA knows neither softcap nor sinks."""
    _, softcap, sinks = options
    return workspace.kind == "plain" or softcap is not None or sinks is not None


def attend_segment(query, key, value, mask, workspace: Workspace, options) -> torch.Tensor:
    """query [T, kv_heads, group, head_dim], key and value [S, kv_heads, head_dim], mask [T, S] or None for causal.

    The heads of a group form the batch and share K/V through a stride of zero, so nothing is repeated in memory.
    """
    group = query.shape[2]
    key, value = (x.transpose(0, 1).expand(group, -1, -1, -1) for x in (key, value))
    query = query.permute(2, 1, 0, 3)  # [group, kv_heads, T, head_dim]
    if needs_plain(workspace, options):
        scaling, softcap, sinks = options
        sinks = None if sinks is None else sinks.view(-1, group).t()[:, :, None, None]
        out = attend_plain(query, key, value, mask, scaling, softcap, sinks)
    else:
        causal = mask is None and query.shape[2] > 1
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=options[0])
    return out.permute(2, 1, 0, 3)


def attend(query, key, value, mask, workspace: Workspace, options) -> torch.Tensor:
    """query [b, kv_heads, group, head_dim] of one token a row, key and value [b, kv_heads, S, head_dim]."""
    scaling, softcap, sinks = options
    if needs_plain(workspace, options):
        sinks = None if sinks is None else sinks.view(query.shape[1], -1, 1)
        return attend_plain(query, key, value, mask, scaling, softcap, sinks)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def attend_plain(query, key, value, mask, scaling, softcap, sinks) -> torch.Tensor:
    """Two matrix products and a softmax in fp32; sinks are logits, one a head, that take mass and give no value."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if mask is None else scores + mask
    if sinks is None:
        return scores.softmax(dim=-1).to(query.dtype) @ value
    scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(dim=-1)[..., :-1].to(query.dtype) @ value


AttentionInterface.register(NAME, paged_attention)
