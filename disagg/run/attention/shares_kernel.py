"""The kernel that cuts a decode step's tokens into shares. Imported only where it runs: it needs triton.

A program a row: it works out how all rows are cut, which is quicker than to be told, and writes its own row's items.
"""

import triton
import triton.language as tl


@triton.jit
def cut(
    lengths, items, rows, programs,
    KV_HEADS: tl.constexpr, TILE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    ROWS_PAD: tl.constexpr, FIELDS: tl.constexpr,
) -> None:  # fmt: skip
    """lengths [rows] -> items [.., FIELDS]: row, start, stop, the row's first item, the row's shares."""
    row, every = tl.program_id(0), tl.arange(0, ROWS_PAD)
    length, all_lengths = tl.load(lengths + row), tl.load(lengths + every, every < rows, other=0)
    work = tl.maximum(tl.sum(all_lengths.to(tl.int64), 0), 1) * KV_HEADS  # tokens that some program reads
    count, size = shares_of(length, work, programs, TILE, LEAST, MOST)
    counts, sizes = shares_of(all_lengths, work, programs, TILE, LEAST, MOST)

    # lanes beyond the rows are never earlier, since no share is of fewer tokens than theirs
    earlier = (sizes > size) | ((sizes == size) & (every < row))
    first = tl.sum(tl.where(earlier, counts, 0), 0)
    share = tl.arange(0, MOST)
    item, mine = items + (first + share) * FIELDS, share < count
    tl.store(item, row, mine)
    tl.store(item + 1, share * size, mine)
    tl.store(item + 2, tl.minimum(share * size + size, length), mine)
    tl.store(item + 3, first, mine)
    tl.store(item + 4, count, mine)


@triton.jit
def shares_of(length, work, programs, TILE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """How many shares a row has and of how many tokens, the last perhaps of fewer.

    As many as a KV head of the row deserves programs, rounded: rows of one length keep to the programs that there are,
    and a share is at most half as large again as a fair one.
    """
    deserved = (2 * length.to(tl.int64) * programs + work) // (2 * work)
    count = tl.maximum(tl.minimum(deserved, tl.minimum(tl.cdiv(length, LEAST), MOST)), 1).to(tl.int32)
    size = tl.maximum(tl.cdiv(tl.cdiv(length, count), TILE), 1) * TILE
    return tl.maximum(tl.cdiv(length, size), 1), size
