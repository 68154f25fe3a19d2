"""Decode attention that splits each row's tokens among the GPU's processors (FlashDecoding, Dao and others, 2023).

One query a row leaves most of a GPU idle when a row and head is one program's work.
"""

import math

import torch

from disagg.run.attention.causal import power_of_two
from disagg.run.kv_cache import KVCache
from disagg.run.sm_split import sm_count

PROGRAMS_PER_SM = 4  # enough in flight to keep the memory busy
MOST_SPLITS = 16
SHORT = dict(num_warps=2, num_stages=3)  # small programs for short shares


def splits_of(pairs: int, sms: int) -> int:
    """Into how many shares, a power of two, the tokens of each row and KV head are cut so that all SMs have work."""
    wanted = max(1, PROGRAMS_PER_SM * sms // pairs)
    return min(MOST_SPLITS, 1 << (wanted.bit_length() - 1))


class SplitDecode:
    """Attention of one decode step of `rows` rows, layer after layer on one stream; stores the new tokens' K/V."""

    def __init__(self, cache: KVCache, rows: int):
        from disagg.run.attention import split_kernel  # needs triton

        self._kernel = split_kernel.attend
        self._pairs, self._block = rows * cache.shape.kv_heads, cache.block_size
        self._splits = splits_of(self._pairs, sm_count(cache.device))
        tile, self._launch = (64, dict(num_warps=4, num_stages=2)) if self._splits == 1 else (32, SHORT)
        self._tile = min(tile, cache.block_size & -cache.block_size)  # a tile lies in one block
        if self._tile < 16:
            raise ValueError(
                f"block_size is {self._block}; the decode kernel reads tiles of 16 tokens or more of a block"
            )
        self._finished = torch.zeros(self._pairs, dtype=torch.int32, device=cache.device)
        self._shares = self._sums = None

    def __call__(self, query, key, value, keys, values, table, lengths, scale) -> torch.Tensor:
        """query [B, heads, head_dim], key and value [B, kv_heads, head_dim] -> [B, heads, head_dim]."""
        rows, heads, dim = query.shape
        kv_heads = key.shape[1]
        group = heads // kv_heads
        group_pad, dim_pad = max(16, power_of_two(group)), max(16, power_of_two(dim))
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        out = torch.empty(rows, heads, dim, dtype=query.dtype, device=query.device)
        if self._shares is None:
            self._shares = torch.empty(self._pairs, self._splits, group, dim, device=query.device)
            self._sums = torch.empty(self._pairs, 2, self._splits, group_pad, device=query.device)
        scale = math.log2(math.e) * (dim**-0.5 if scale is None else scale)
        self._kernel[(self._pairs, self._splits)](
            query, key, value, keys, values, table, lengths, out, self._shares, self._sums, self._finished, scale,
            *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], table.stride(0), *keys.stride()[:3],
            KV_HEADS=kv_heads, GROUP=group, DIM=dim, BLOCK=self._block, GROUP_PAD=group_pad, DIM_PAD=dim_pad,
            TILE=self._tile, SPLITS=self._splits, **self._launch,
        )  # fmt: skip
        return out
