"""The kernel that stores a pass's K/V in the paged cache. Imported only where it runs: it needs triton.

A program stores one token's keys and values: one launch a layer, in whole rows.
"""

import triton
import triton.language as tl


@triton.jit
def store(key, value, slots, keys, values, key_row, value_row, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr) -> None:
    """key and value: rows of WIDTH numbers, `key_row` and `value_row` apart; keys and values [slots, WIDTH]."""
    token, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH_PAD)
    place = tl.load(slots + token) * WIDTH + cols
    tl.store(keys + place, tl.load(key + token * key_row + cols, cols < WIDTH), cols < WIDTH)
    tl.store(values + place, tl.load(value + token * value_row + cols, cols < WIDTH), cols < WIDTH)
