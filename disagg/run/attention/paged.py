"""Attention by kernels that read the paged cache in place, through block tables: chunks by flash-attn or
PyTorch's own, whole prompts and decode steps by ours (causal, split_decode).

A kernel takes keys and values of one layer as [num_blocks, block_size, kv_heads, head_dim], and tables of int32.
"""

import torch

from disagg.run.attention.causal import attend_packed, power_of_two
from disagg.run.attention.gathered import Options
from disagg.run.attention.split_decode import SplitDecode
from disagg.run.batch import PrefillBatch
from disagg.run.kv_cache import KVCache, slots_of


class PagedKernel:
    """What all share: whole prompts and decode steps run kernels of our own, whoever computes chunks."""

    def packed(self, query, key, value, cu, longest: int, scale, out) -> None:
        """Causal attention of whole prompts [T, heads, head_dim] that lie one after the other, into `out`."""
        attend_packed(query, key, value, cu, longest, scale, out)

    def store(self, cache: KVCache, layer: int, slots, key, value) -> None:
        """Stores key and value [T, kv_heads, head_dim] of one layer at slots [T]."""
        from disagg.run.attention import store_kernel  # needs triton

        key, value = (x if x[0].is_contiguous() else x.contiguous() for x in (key, value))
        width = key[0].numel()
        store_kernel.store[(len(key),)](
            key, value, slots, *cache.layer(layer), key.stride(0), value.stride(0), WIDTH=width,
            WIDTH_PAD=power_of_two(width),
        )  # fmt: skip

    def decoder(self, cache: KVCache, table: torch.Tensor, lengths: torch.Tensor) -> SplitDecode:
        """Attention of one step, called layer after layer; it stores the new tokens' K/V as well."""
        return SplitDecode(cache, table, lengths)


class FlashKernel(PagedKernel):
    """flash-attn 2 (Dao, 2023)."""

    name = "flash-attn"

    def __init__(self) -> None:
        import flash_attn  # CUDA only, and an extra

        self._varlen = flash_attn.flash_attn_varlen_func

    def chunked(self, query, keys, values, table, cu, cu_keys, longest: int, longest_keys: int, scale):
        """Causal attention of chunks to their prompts so far, which lie in the cache."""
        return self._varlen(
            query, keys, values, cu, cu_keys, longest, longest_keys, softmax_scale=scale, causal=True, block_table=table
        )


class VarlenKernel(PagedKernel):
    """PyTorch's `varlen_attn`, which takes a block table from version 2.13 on."""

    name = "varlen_attn of PyTorch"

    def __init__(self) -> None:
        import inspect

        from torch.nn.attention.varlen import varlen_attn

        if "block_table" not in inspect.signature(varlen_attn).parameters:
            raise ImportError(f"varlen_attn of torch {torch.__version__} takes no block table; 2.13 does")
        self._attend = varlen_attn

    def chunked(self, query, keys, values, table, cu, cu_keys, longest: int, longest_keys: int, scale):
        return self._attend(
            query, keys, values, cu, None, longest, longest_keys, scale=scale, window_size=(-1, 0), enable_gqa=True,
            seqused_k=cu_keys.diff(), block_table=table,
        )  # fmt: skip


class PagedPrefill:
    """The plan of a packed prefill pass: [T] tokens of several requests, whole prompts or chunks."""

    phase = "prefill"

    def __init__(self, batch: PrefillBatch, cache: KVCache, kernel) -> None:
        self.batch, self.cache, self.kernel = batch, cache, kernel
        segments, size, device = batch.segments, cache.block_size, cache.device
        self.count = len(batch.tokens)
        self.whole = all(segment.start == 0 for segment in segments)
        self.longest, self.longest_keys = max(s.num_tokens for s in segments), max(s.stop for s in segments)
        slots = torch.cat([slots_of(s.blocks, s.start, s.stop, size) for s in segments])
        cu = torch.tensor([0, *(s.num_tokens for s in segments)]).cumsum(0)
        cu_keys = torch.tensor([0, *(s.stop for s in segments)]).cumsum(0)
        width = max(len(segment.blocks) for segment in segments)
        table = torch.zeros(len(segments), width, dtype=torch.long)
        for row, segment in zip(table, segments, strict=True):
            row[: len(segment.blocks)] = torch.as_tensor(segment.blocks)
        sent = to_device([slots, cu, cu_keys, table.flatten()], device)
        self.slots, self.cu, self.cu_keys = sent[0], sent[1].int(), sent[2].int()
        self.table = sent[3].int().view(len(segments), width)

    def run(self, layer: int, query, key, value, options: Options) -> torch.Tensor:
        """As the gathered plan's; rows beyond the pass's tokens are padding, and come back as zeros."""
        make = torch.zeros if len(query) > self.count else torch.empty
        out = make(query.shape, dtype=query.dtype, device=query.device)
        self.attend(layer, query, key, value, options, out)
        return out

    def attend(self, layer: int, query, key, value, options: Options, out: torch.Tensor) -> None:
        """Stores the layer's K/V, hands it off and attends, into the first rows of `out`; it leaves padding alone."""
        query, key, value, out = (x[: self.count] for x in (query, key, value, out))
        self.kernel.store(self.cache, layer, self.slots, key, value)
        if self.batch.on_layer is not None:
            self.batch.on_layer(layer, key, value)
        query, out = query.flatten(1, 2), out.flatten(1, 2)
        if self.whole:
            self.kernel.packed(query, key, value, self.cu, self.longest, options.scaling, out)
            return
        out.copy_(
            self.kernel.chunked(
                query, *self.cache.layer(layer), self.table, self.cu, self.cu_keys, self.longest, self.longest_keys,
                options.scaling,
            )
        )  # fmt: skip


class PagedDecode:
    """The plan of a decode step: one token a row, `lengths` [B] tokens before it, `table` [B, blocks]; both int32."""

    phase = "decode"

    def __init__(self, cache: KVCache, kernel, table: torch.Tensor, lengths: torch.Tensor) -> None:
        self.cache = cache
        self._attend = kernel.decoder(cache, table, lengths)

    def run(self, layer: int, query, key, value, options: Options) -> torch.Tensor:
        return self._attend(query.flatten(1, 2), key, value, *self.cache.layer(layer), options.scaling).view_as(query)


def to_device(parts: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Host tensors of one dtype in one copy, which the stream orders before what follows."""
    joined = torch.cat(parts)
    if device.type == "cuda":
        joined = joined.pin_memory().to(device, non_blocking=True)
    return list(joined.split([part.numel() for part in parts]))
