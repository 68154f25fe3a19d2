"""Attention by kernels that read the paged cache in place: chunks by flash-attn or PyTorch, the rest by our own.

A kernel takes keys and values of one layer as [num_blocks, block_size, kv_heads, head_dim], and tables of int32.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from disagg.run.attention.interface import Options, Plan
from disagg.run.attention.split_decode import SplitDecode, log2_scale, power_of_two
from disagg.run.kv_cache import KVCache, slots_of
from disagg.run.model.batch import PrefillBatch

LONG, TILE = 4096, 64  # tokens: for longer prompts programs with more rows are faster
MOST_STAGES = 3  # tiles of keys and values loaded ahead


class Chunks(NamedTuple):
    """Places of the chunks of a pass; the tensors are int32 on the device."""

    table: Tensor  # [chunks, blocks] block ids
    cu: Tensor  # [chunks + 1] first row of each chunk in the pass
    cu_keys: Tensor  # [chunks + 1] the same for the keys of each prompt so far
    longest: int  # tokens of the longest chunk
    longest_keys: int


class PagedKernel(ABC):
    """A library's attention of chunks; whole prompts, stores and decode steps use this package's kernels."""

    name: str
    version = ""

    @abstractmethod
    def chunked(self, query: Tensor, keys: Tensor, values: Tensor, chunks: Chunks, scale: float | None) -> Tensor:
        """Causal attention of chunks [T, heads, head_dim] to their prompts so far in the cache."""

    def packed(
        self, query: Tensor, key: Tensor, value: Tensor, cu: Tensor, longest: int, scale: float | None, out: Tensor
    ) -> None:
        """Causal attention of whole prompts, packed one after the other and not read from the cache.

        query and out [T, heads, head_dim], key and value [T, kv_heads, head_dim], cu [prompts + 1] int32.
        cuDNN's kernel is faster, but needs a new, slow plan for each new length.
        """
        from disagg.run.attention import kernels  # needs triton

        _, heads, dim = query.shape
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        dim_pad = max(16, power_of_two(dim))
        rows, warps = (128, 8) if longest > LONG else (64, 4)
        strides = [stride for x in (query, key, value) for stride in x.stride()[:2]]
        sizes = dict(GROUP=heads // key.shape[1], HEADS=heads, DIM=dim, DIM_PAD=dim_pad, ROWS=rows, TILE=TILE)
        launch = dict(num_warps=warps, num_stages=stages(query.device, rows, dim_pad * query.dtype.itemsize))
        grid = (-(-longest // rows), heads, len(cu) - 1)
        kernels.attend_prompts[grid](query, key, value, cu, out, log2_scale(scale, dim), *strides, **sizes, **launch)

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
    """flash-attn 2 (Dao, 2023)."""

    name = "flash-attn"

    def __init__(self) -> None:
        import flash_attn  # an extra, only for CUDA

        self._varlen, self.version = flash_attn.flash_attn_varlen_func, flash_attn.__version__

    def chunked(self, query: Tensor, keys: Tensor, values: Tensor, chunks: Chunks, scale: float | None) -> Tensor:
        lengths = chunks.cu, chunks.cu_keys, chunks.longest, chunks.longest_keys
        options = dict(softmax_scale=scale, causal=True, block_table=chunks.table)
        return self._varlen(query, keys, values, *lengths, **options)


class VarlenKernel(PagedKernel):
    """PyTorch's `varlen_attn`, which takes a block table from version 2.13 on."""

    name = "varlen_attn of PyTorch"

    def __init__(self) -> None:
        from torch.nn.attention.varlen import varlen_attn

        if "block_table" not in inspect.signature(varlen_attn).parameters:
            raise ImportError(f"varlen_attn of torch {torch.__version__} takes no block table; 2.13 does")
        self.version = torch.__version__
        self._attend: Any = varlen_attn  # returns a Tensor unless it is asked for more

    def chunked(self, query: Tensor, keys: Tensor, values: Tensor, chunks: Chunks, scale: float | None) -> Tensor:
        lengths = chunks.cu, None, chunks.longest, chunks.longest_keys
        options = dict(seqused_k=chunks.cu_keys.diff(), block_table=chunks.table, window_size=(-1, 0), enable_gqa=True)
        return self._attend(query, keys, values, *lengths, scale=scale, **options)


class PagedPrefill(Plan):
    """The plan of a packed prefill pass: [T] tokens of several requests, whole prompts or chunks."""

    phase = "prefill"

    def __init__(self, batch: PrefillBatch, cache: KVCache, kernel: PagedKernel) -> None:
        self.batch, self.cache, self.kernel = batch, cache, kernel
        self.count = len(batch.tokens)
        segments = batch.segments
        self.whole = all(segment.start == 0 for segment in segments)
        slots = torch.cat([slots_of(s.blocks, s.start, s.stop, cache.block_size) for s in segments])
        cu = torch.tensor([0, *(s.num_tokens for s in segments)]).cumsum(0)
        cu_keys = torch.tensor([0, *(s.stop for s in segments)]).cumsum(0)
        table = torch.zeros(len(segments), max(len(s.blocks) for s in segments), dtype=torch.long)
        for row, segment in zip(table, segments, strict=True):
            row[: len(segment.blocks)] = torch.as_tensor(segment.blocks)
        self.slots, *sent = to_device([slots, cu, cu_keys, table.flatten()], cache.device)
        cu, cu_keys, flat = (part.int() for part in sent)
        longest, longest_keys = max(s.num_tokens for s in segments), max(s.stop for s in segments)
        self.chunks = Chunks(flat.view(table.shape), cu, cu_keys, longest, longest_keys)

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        """Returns zeros in rows beyond the pass's tokens, which are padding."""
        make = torch.zeros if len(query) > self.count else torch.empty
        out = make(query.shape, dtype=query.dtype, device=query.device)
        self.attend(layer, query, key, value, options, out)
        return out

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options, out: Tensor) -> None:
        """Stores the layer's K/V, hands it off and attends into the first rows of `out`, not into padding."""
        query, key, value, out = (x[: self.count] for x in (query, key, value, out))
        self.kernel.store(self.cache, layer, self.slots, key, value)
        if self.batch.on_layer is not None:
            self.batch.on_layer(layer, key, value)
        query, out, chunks = query.flatten(1, 2), out.flatten(1, 2), self.chunks
        if self.whole:
            self.kernel.packed(query, key, value, chunks.cu, chunks.longest, options.scaling, out)
        else:
            out.copy_(self.kernel.chunked(query, *self.cache.layer(layer), chunks, options.scaling))


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
