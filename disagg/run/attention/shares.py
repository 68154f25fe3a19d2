"""The shares that a decode step's tokens are cut into: about the same work for each program, however the rows' lengths
differ. Every layer cuts alike, so this is done once a step; on the device, which alone knows the lengths.
"""

import torch

from disagg.run.attention.causal import power_of_two

PROGRAMS_PER_SM = 4  # enough in flight to keep the memory busy
LEAST_SHARE = 64  # tokens: less is read sooner than one more share is joined
MOST_SHARES = 64  # of a row, since one program joins them all
FIELDS = 5  # of an item: row, start, stop, the row's first item, the row's shares


def most_items(rows: int, kv_heads: int, sms: int) -> int:
    """Items beyond a row's first are less than the programs that there are for each KV head."""
    return min(rows * MOST_SHARES, rows + PROGRAMS_PER_SM * sms // kv_heads)


def cut(lengths: torch.Tensor, kv_heads: int, sms: int, tile: int) -> torch.Tensor:
    """lengths [rows] -> items [most_items, FIELDS], both int32; a share starts at a multiple of `tile` tokens.

    Long shares come first, so that none starts late; items to spare come last, all zero: a real one has a share.
    """
    from disagg.run.attention import shares_kernel  # needs triton

    rows = len(lengths)
    items = lengths.new_zeros(most_items(rows, kv_heads, sms), FIELDS)
    shares_kernel.cut[(rows,)](
        lengths, items, rows, PROGRAMS_PER_SM * sms, KV_HEADS=kv_heads, TILE=tile, LEAST=LEAST_SHARE, MOST=MOST_SHARES,
        ROWS_PAD=power_of_two(rows), FIELDS=FIELDS,
    )  # fmt: skip
    return items
