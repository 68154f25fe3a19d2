"""Attention by kernels that read the paged cache in place: our own, and flash-attn beside them for chunks.

A kernel takes keys and values of one layer as [num_blocks, block_size, kv_heads, head_dim], and tables of int64.
"""

from collections.abc import Callable
from itertools import chain, pairwise, repeat
from operator import itemgetter
from struct import pack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from disagg.run.attention.interface import Options, Plan
from disagg.run.attention.split_decode import SplitDecode, log2_scale, power_of_two
from disagg.run.kv_cache import KVCache
from disagg.run.model.batch import PrefillBatch

ROWS, TILE = 64, 64  # queries of a program, and keys that it reads at a time
MOST_STAGES = 3  # tiles of keys and values loaded ahead
TILE_FIELDS = 4  # of a tile of queries: table row, first row of the pass, rows, place of the first in its prompt


class Chunks(NamedTuple):
    """Places of the chunks of a pass, on the device; int32 is what flash-attn takes."""

    table: Tensor  # [chunks, blocks] int64 block ids
    tiles: Tensor  # [.., TILE_FIELDS] int64
    cu: Tensor  # [chunks + 1] int32, first row of each chunk in the pass
    cu_keys: Tensor  # [chunks + 1] int32, the same for the keys of each prompt so far
    longest: int  # tokens of the longest chunk
    longest_keys: int
    whole: bool  # every chunk begins its prompt


class PagedKernel:
    """Kernels of this package: chunks of a pass, stores, decode steps."""

    name, version = "kernels of our own", ""

    def chunked(
        self, query: Tensor, keys: Tensor, values: Tensor, chunks: Chunks, scale: float | None, out: Tensor
    ) -> None:
        """Causal attention of chunks [T, heads, head_dim] to their prompts so far in the cache."""
        unread = torch.zeros(2, 1, dtype=torch.long, device=out.device)
        self.tiled(query, keys, values, (chunks.table, chunks.tiles, unread, unread[1]), scale, out)

    def tiled(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        places: tuple[Tensor, Tensor, Tensor, Tensor],
        scale: float | None,
        out: Tensor,
    ) -> None:
        """The same for chunks that table and tiles describe on the device, as a graph has them; and stored [rows, ..]
        gets, in the row that stands in the last tensor, the time at which the layer's K/V were in the cache."""
        from disagg.run.attention import kernels  # needs triton

        _, heads, dim = query.shape
        query = query if query.stride(2) == 1 else query.contiguous()
        table, tiles, stored, row = places
        block, dim_pad = keys.shape[1], max(16, power_of_two(dim))
        tile = min(TILE, block & -block)  # a tile of keys lies in one block
        sizes = dict(GROUP=heads // keys.shape[2], HEADS=heads, DIM=dim, DIM_PAD=dim_pad, BLOCK=block, ROWS=ROWS)
        launch = dict(num_warps=4, num_stages=stages(query.device, ROWS, dim_pad * query.dtype.itemsize))
        strides = [stored.stride(0), *query.stride()[:2], table.stride(0), *keys.stride()[:3]]
        given = query, keys, values, table, tiles, out, stored, row, log2_scale(scale, dim), *strides
        kernels.attend_chunks[(heads, len(tiles))](*given, TILE=tile, FIELDS=TILE_FIELDS, **sizes, **launch)

    def store(self, cache: KVCache, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Stores key and value [T, kv_heads, head_dim] of one layer at slots [T]."""
        from disagg.run.attention import kernels  # needs triton

        key, value = (x if x[0].is_contiguous() else x.contiguous() for x in (key, value))
        width, strides = key[0].numel(), (key.stride(0), value.stride(0))
        sizes = dict(WIDTH=width, WIDTH_PAD=power_of_two(width))
        kernels.store_tokens[(len(key),)](key, value, slots, *cache.layer(layer), *strides, **sizes)

    def decoder(self, cache: KVCache, table: Tensor, lengths: Tensor) -> Callable[..., Tensor]:
        """Attention of one step, called layer after layer; it also stores the new tokens' K/V."""
        return SplitDecode(cache, table, lengths)


def stages(device: torch.device, rows: int, row_bytes: int) -> int:
    """The number of tiles that fit beside the queries in an SM's shared memory."""
    properties: Any = torch.cuda.get_device_properties(device)  # torch's stub lacks the field below
    room = properties.shared_memory_per_block_optin - rows * row_bytes
    return max(1, min(MOST_STAGES, room // (2 * TILE * row_bytes)))


class FlashKernel(PagedKernel):
    """flash-attn 2 (Dao, 2023) for chunks of passes without a graph."""

    name = "flash-attn"

    def __init__(self) -> None:
        import flash_attn  # an extra, only for CUDA

        self._varlen, self.version = flash_attn.flash_attn_varlen_func, flash_attn.__version__

    def chunked(
        self, query: Tensor, keys: Tensor, values: Tensor, chunks: Chunks, scale: float | None, out: Tensor
    ) -> None:
        if chunks.whole:
            return super().chunked(query, keys, values, chunks, scale, out)  # in half of its time
        lengths = chunks.cu, chunks.cu_keys, chunks.longest, chunks.longest_keys
        options = dict(softmax_scale=scale, causal=True, block_table=chunks.table.int())
        out.copy_(self._varlen(query, keys, values, *lengths, **options))
        return None


class PagedPrefill(Plan):
    """The plan of a packed prefill pass without a graph: [T] tokens of several requests, whole prompts or chunks."""

    phase = "prefill"

    def __init__(self, batch: PrefillBatch, cache: KVCache, kernel: PagedKernel) -> None:
        self.batch, self.cache, self.kernel = batch, cache, kernel
        self.count, segments, tiles = len(batch.tokens), batch.segments, torch.from_numpy(tiles_of(batch))
        cu = torch.tensor([0, *(s.num_tokens for s in segments)]).cumsum(0)
        cu_keys = torch.tensor([0, *(s.stop for s in segments)]).cumsum(0)
        table = torch.zeros(len(segments), max(len(s.blocks) for s in segments), dtype=torch.long)
        for row, segment in zip(table, segments, strict=True):
            row[: len(segment.blocks)] = torch.as_tensor(segment.blocks)
        parts = [batch.slots(cache.block_size), cu, cu_keys, table.flatten(), tiles.flatten()]
        self.slots, cu, cu_keys, flat, flat_tiles = to_device(parts, cache.device)
        longest, longest_keys = max(s.num_tokens for s in segments), max(s.stop for s in segments)
        places = flat.view(table.shape), flat_tiles.view(tiles.shape), cu.int(), cu_keys.int()
        self.chunks = Chunks(*places, longest, longest_keys, all(segment.start == 0 for segment in segments))

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        """Returns zeros in rows beyond the pass's tokens, which are padding."""
        count, make = self.count, torch.zeros if len(query) > self.count else torch.empty
        out = make(query.shape, dtype=query.dtype, device=query.device)
        key, value = key[:count], value[:count]
        self.kernel.store(self.cache, layer, self.slots, key, value)
        if self.batch.on_layer is not None:
            self.batch.on_layer(layer, key, value)
        query, rows = (x[:count].flatten(1, 2) for x in (query, out))
        self.kernel.chunked(query, *self.cache.layer(layer), self.chunks, options.scaling, rows)
        return out


def tiles_of(batch: PrefillBatch) -> np.ndarray:
    """The tiles of a pass's queries, int64 [.., TILE_FIELDS]; those that read most keys first, so that the
    programs of a wave end together."""
    tiles: list[tuple[int, int, int, int]] = []
    for row, (segment, (first, stop)) in enumerate(zip(batch.segments, pairwise(batch.edges), strict=True)):
        places = range(first, stop, ROWS), repeat(ROWS), range(segment.start, segment.stop, ROWS)
        tiles += zip(repeat(row), *places, strict=False)  # no loop of Python's: a pass waits for it
        if rest := (stop - first) % ROWS:
            tiles[-1] = row, stop - rest, rest, segment.stop - rest
    tiles.sort(key=itemgetter(3), reverse=True)
    flat = bytearray(pack(f"{TILE_FIELDS * len(tiles)}q", *chain.from_iterable(tiles)))
    return np.frombuffer(flat, np.int64).reshape(-1, TILE_FIELDS)


class PagedDecode(Plan):
    """The plan of a decode step: one token a row, `lengths` [B] tokens before it, `table` [B, blocks]; both int32."""

    phase = "decode"

    def __init__(self, cache: KVCache, kernel: PagedKernel, table: Tensor, lengths: Tensor) -> None:
        self.cache = cache
        self._attend = kernel.decoder(cache, table, lengths)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        return self._attend(query.flatten(1, 2), key, value, *self.cache.layer(layer), options.scaling).view_as(query)


def to_device(parts: list[Tensor], device: torch.device) -> list[Tensor]:
    """Uploads host tensors of one dtype in one copy, in stream order before later work."""
    joined = torch.cat(parts)
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return list(joined.split([part.numel() for part in parts]))
