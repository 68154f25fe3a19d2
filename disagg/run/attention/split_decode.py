"""Decode attention that splits each row's tokens among the GPU's processors (FlashDecoding, Dao and others, 2023).

One query a row leaves most of a GPU idle when a row and head is one program's work.
"""

import math

import torch

from disagg.run.attention.causal import power_of_two
from disagg.run.attention.shares import FIELDS, PROGRAMS_PER_SM, cut
from disagg.run.gpu.sm_split import sm_count
from disagg.run.kv_cache import KVCache

SHORT = 32, dict(num_warps=2, num_stages=3)  # tile and launch of short shares: small programs
LONG = 64, dict(num_warps=4, num_stages=2)


class SplitDecode:
    """Attention of one decode step, layer after layer on one stream; stores the new tokens' K/V.

    `table` [rows, blocks] and `lengths` [rows] before the new token, both int32, are those of the step. The tokens are
    cut into shares when it is made, which a step's graph captures: once for all layers.
    """

    def __init__(self, cache: KVCache, table: torch.Tensor, lengths: torch.Tensor) -> None:
        from disagg.run.attention import kernels  # needs triton

        self._kernel, self._table, self._lengths, self._block = kernels.attend, table, lengths, cache.block_size
        kv_heads, sms = cache.shape.kv_heads, sm_count(cache.device)
        pairs = len(lengths) * kv_heads
        tile, self._launch = SHORT if PROGRAMS_PER_SM * sms >= 2 * pairs else LONG
        self._tile = min(tile, cache.block_size & -cache.block_size)  # a tile lies in one block
        if self._tile < 16:
            raise ValueError(
                f"block_size is {self._block}; the decode kernel reads tiles of 16 tokens or more of a block"
            )
        self._items = cut(lengths, kv_heads, sms, self._tile)
        self._finished = lengths.new_zeros(pairs)
        self._shares = self._sums = None

    def __call__(self, query, key, value, keys, values, scale) -> torch.Tensor:
        """query [B, heads, head_dim], key and value [B, kv_heads, head_dim] -> [B, heads, head_dim]."""
        rows, heads, dim = query.shape
        kv_heads, items = key.shape[1], len(self._items)
        group = heads // kv_heads
        group_pad, dim_pad = max(16, power_of_two(group)), max(16, power_of_two(dim))
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        out = torch.empty(rows, heads, dim, dtype=query.dtype, device=query.device)
        if self._shares is None:
            self._shares = torch.empty(items, kv_heads, group, dim, device=query.device)
            self._sums = torch.empty(items, kv_heads, 2, group_pad, device=query.device)
        scale = math.log2(math.e) * (dim**-0.5 if scale is None else scale)
        self._kernel[(kv_heads, items)](
            query, key, value, keys, values, self._table, self._lengths, self._items, out, self._shares, self._sums,
            self._finished, scale, *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], self._table.stride(0),
            *keys.stride()[:3], KV_HEADS=kv_heads, GROUP=group, DIM=dim, BLOCK=self._block, GROUP_PAD=group_pad,
            DIM_PAD=dim_pad, TILE=self._tile, FIELDS=FIELDS, **self._launch,
        )  # fmt: skip
        return out
