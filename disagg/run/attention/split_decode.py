"""Decode attention that splits each row's tokens among the GPU's processors (FlashDecoding, Dao and others, 2023).

Tokens are cut into shares of about equal work for rows of any lengths; once a step, for all layers, on the device,
which alone has the lengths.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from disagg.run.gpu.sm_split import sm_count
from disagg.run.kv_cache import KVCache

PROGRAMS_PER_SM = 4  # enough in flight to keep the memory busy
LEAST_SHARE = 64  # tokens: joining one more share takes longer than reading fewer
MOST_SHARES = 64  # of a row, since one program joins them all
FIELDS = 5  # of an item: row, start, stop, the row's first item, the row's shares
SHORT = 32, dict(num_warps=2, num_stages=3)  # tile and launch of short shares: small programs
LONG = 64, dict(num_warps=4, num_stages=2)


class Rotation(NamedTuple):
    """What the kernel does to query and new key before it attends."""

    cos: Tensor  # [rows, head_dim]
    sin: Tensor
    query_norm: Tensor | None = None  # [head_dim], of the RMSNorm of each head before RoPE
    key_norm: Tensor | None = None
    eps: float = 0.0


class SplitDecode:
    """Attention of one decode step, layer after layer on one stream; it also stores the new tokens' K/V.

    `table` [rows, blocks] and `lengths` [rows] before the new token are int32. A step's graph captures the constructor.
    """

    def __init__(self, cache: KVCache, table: Tensor, lengths: Tensor) -> None:
        from disagg.run.attention import kernels  # needs triton

        self._kernel, self._table, self._lengths = kernels.attend_shares, table, lengths
        self._block = cache.block_size
        kv_heads, sms = cache.shape.kv_heads, sm_count(cache.device)
        pairs = len(lengths) * kv_heads
        tile, self._launch = SHORT if PROGRAMS_PER_SM * sms >= 2 * pairs else LONG
        self._tile = min(tile, self._block & -self._block)  # a tile lies in one block
        if self._tile < 16:
            raise ValueError(f"block_size is {self._block}; the decode kernel reads tiles of 16 or more tokens of it")
        self._items = cut(lengths, kv_heads, sms, self._tile)
        self._finished = lengths.new_zeros(pairs)
        self._scratch: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """query [B, heads, head_dim], key and value [B, kv_heads, head_dim] -> [B, heads, head_dim]."""
        heads, dim = query.shape[1:]
        kv_heads, items = key.shape[1], len(self._items)
        group = heads // kv_heads
        group_pad, dim_pad = max(16, power_of_two(group)), max(16, power_of_two(dim))
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if self._scratch is None:
            shares = torch.empty(items, kv_heads, group, dim, device=query.device)
            self._scratch = shares, torch.empty(items, kv_heads, 2, group_pad, device=query.device)
        step = (self._table, self._lengths, self._items, out, *self._scratch, self._finished)
        strides = [stride for x in (query, key, value) for stride in x.stride()[:2]]
        strides += [self._table.stride(0), *keys.stride()[:3]]
        sizes = dict(KV_HEADS=kv_heads, GROUP=group, DIM=dim, BLOCK=self._block, GROUP_PAD=group_pad, DIM_PAD=dim_pad)
        launch: dict[str, Any] = dict(TILE=self._tile, FIELDS=FIELDS, TURNED=rotation is not None, **self._launch)
        rotation = rotation or Rotation(out, out)  # unread
        launch |= dict(NORMED=rotation.query_norm is not None)
        given = query, key, value, keys, values, *step, *rotation[:4], log2_scale(scale, dim), rotation.eps
        self._kernel[(kv_heads, items)](*given, *strides, **sizes, **launch)
        return out


def cut(lengths: Tensor, kv_heads: int, sms: int, tile: int) -> Tensor:
    """lengths [rows] -> items [most_items, FIELDS], both int32; a share starts at a multiple of `tile` tokens.

    Long shares come first, so that none starts late. Spare items come last and are zero; others have a share or more.
    """
    from disagg.run.attention import kernels  # needs triton

    rows = len(lengths)
    items = lengths.new_zeros(most_items(rows, kv_heads, sms), FIELDS)
    sizes = dict(KV_HEADS=kv_heads, TILE=tile, LEAST=LEAST_SHARE, MOST=MOST_SHARES, ROWS_PAD=power_of_two(rows))
    kernels.cut_shares[(rows,)](lengths, items, rows, PROGRAMS_PER_SM * sms, FIELDS=FIELDS, **sizes)
    return items


def most_items(rows: int, kv_heads: int, sms: int) -> int:
    """The most items: those beyond each row's first are fewer than the programs of a KV head."""
    return min(rows * MOST_SHARES, rows + PROGRAMS_PER_SM * sms // kv_heads)


def log2_scale(scale: float | None, head_dim: int) -> float:
    """The kernels' scale of scores, which includes log2(e); None: 1 / √head_dim."""
    return math.log2(math.e) * (head_dim**-0.5 if scale is None else scale)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
