"""Causal attention of whole prompts that lie one after the other, none of it read back from the cache.

One kernel serves every length; cuDNN's is faster, but plans anew, and slowly, for each length that it meets.
"""

import math

import torch

LONG, TILE = 4096, 64  # tokens: from LONG on, programs of more rows are the faster ones
MOST_STAGES = 3  # tiles of keys and values on their way


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int,
    scale: float | None, out: torch.Tensor,
) -> None:  # fmt: skip
    """query and out [T, heads, head_dim], key and value [T, kv_heads, head_dim], starts [prompts + 1] int32."""
    from disagg.run.attention import causal_kernel  # needs triton

    _, heads, dim = query.shape
    query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
    dim_pad = max(16, power_of_two(dim))
    rows, warps = (128, 8) if longest > LONG else (64, 4)
    causal_kernel.attend[(-(-longest // rows), heads, len(starts) - 1)](
        query, key, value, starts, out, math.log2(math.e) * (dim**-0.5 if scale is None else scale),
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        GROUP=heads // key.shape[1], HEADS=heads, DIM=dim, DIM_PAD=dim_pad, ROWS=rows, TILE=TILE,
        num_warps=warps, num_stages=stages(query.device, rows, dim_pad * query.dtype.itemsize),
    )  # fmt: skip


def stages(device: torch.device, rows: int, row_bytes: int) -> int:
    """As many tiles on their way as fit beside the queries in an SM's shared memory."""
    room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin - rows * row_bytes
    return max(1, min(MOST_STAGES, room // (2 * TILE * row_bytes)))


def power_of_two(count: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()
