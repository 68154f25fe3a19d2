"""The kernel of split-KV decode attention. Imported only where it runs: it needs triton.

Grid (kv_heads, items): a program attends the query heads of one group to one item's share of a row's tokens, and the
last one to finish joins the row's shares. Products add up in fp32; the new token's K/V enter from registers, and the
first share's program stores them.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query, new_keys, new_values, keys, values, tables, lengths, items, out, shares, sums, finished, scale,
    query_row, query_head, key_row, key_head, value_row, value_head, table_row, block_step, slot_step, head_step,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr, FIELDS: tl.constexpr,
) -> None:  # fmt: skip
    """`scale` includes log2(e): the softmax is taken in powers of two.

    shares [items, kv_heads, GROUP, DIM] and sums [items, kv_heads, 2, GROUP_PAD] (largest score, sum) are scratch in
    fp32; finished [rows, kv_heads] counts programs, from zero and back to it.
    """
    head, item = tl.program_id(0), tl.program_id(1)
    fields = items + item * FIELDS
    row, start, stop = tl.load(fields), tl.load(fields + 1), tl.load(fields + 2)
    row_item, count = tl.load(fields + 3), tl.load(fields + 4)
    if count == 0:
        return  # an item to spare
    group, dims, tokens = tl.arange(0, GROUP_PAD), tl.arange(0, DIM_PAD), tl.arange(0, TILE)
    table = tables + row * table_row
    in_group = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    q = tl.load(
        query + row * query_row + (head * GROUP + group)[:, None] * query_head + dims[None, :], in_group, other=0.0
    )
    new_key = tl.load(new_keys + row * key_row + head * key_head + dims, dims < DIM, other=0.0)
    new_value = tl.load(new_values + row * value_row + head * value_head + dims, dims < DIM, other=0.0)

    # the first share holds the new token: its score is the first maximum
    first = start == 0
    score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
    top = tl.where(first, score, float("-inf"))
    total = tl.where(first, 1.0, 0.0) + tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.where(first, 1.0, 0.0) * new_value.to(tl.float32)[None, :] + tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    if first:
        length = tl.load(lengths + row)
        block = tl.load(table + length // BLOCK).to(tl.int64)
        place = block * block_step + (length % BLOCK) * slot_step + head * head_step + dims
        tl.store(keys + place, new_key, dims < DIM)
        tl.store(values + place, new_value, dims < DIM)

    for at in range(start, stop, TILE):
        block = tl.load(table + at // BLOCK).to(tl.int64)
        base = block * block_step + (at % BLOCK) * slot_step + head * head_step
        places = base + tokens[:, None] * slot_step + dims[None, :]
        here = at + tokens < stop
        held = here[:, None] & (dims < DIM)[None, :]
        k = tl.load(keys + places, held, other=0.0)
        v = tl.load(values + places, held, other=0.0)
        scores = tl.where(here[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        faded = tl.exp2(top - higher)
        total = total * faded + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None])
        top = higher

    result = out + (row * KV_HEADS + head) * GROUP * DIM
    if count == 1:
        tl.store(
            result + group[:, None] * DIM + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty), in_group
        )
    else:
        mine = item * KV_HEADS + head
        tl.store(shares + (mine * GROUP + group[:, None]) * DIM + dims[None, :], acc, in_group)
        tl.store(sums + mine * 2 * GROUP_PAD + group, top)
        tl.store(sums + mine * 2 * GROUP_PAD + GROUP_PAD + group, total)
        tl.debug_barrier()  # all of this program's stores are done before it is counted
        if tl.atomic_add(finished + row * KV_HEADS + head, 1, sem="acq_rel", scope="gpu") == count - 1:
            tl.store(finished + row * KV_HEADS + head, 0)
            first_share = row_item * KV_HEADS + head
            shares += first_share * GROUP * DIM
            sums += first_share * 2 * GROUP_PAD
            if count <= 4:  # the fewer there are, the less code runs
                join(shares, sums, result, count, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, 4)
            elif count <= 16:
                join(shares, sums, result, count, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, 16)
            else:
                for member in range(GROUP):
                    join_head(shares, sums, result, count, member, count, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, 32)


@triton.jit
def join(
    shares, sums, result, count,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, ROOM: tl.constexpr,
) -> None:  # fmt: skip
    """A row's shares, ROOM or fewer, for a group of query heads -> result [GROUP, DIM]; no head waits for another."""
    for member in tl.static_range(GROUP):
        join_head(shares, sums, result, count, member, ROOM, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, ROOM)


@triton.jit
def join_head(
    shares, sums, result, count, member, stop,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, ROOM: tl.constexpr,
) -> None:  # fmt: skip
    """One query head's `count` shares -> result [member, DIM]; ROOM at a time, up to `stop`."""
    dims = tl.arange(0, DIM_PAD)
    top, total, acc = float("-inf"), 0.0, tl.zeros([DIM_PAD], tl.float32)
    for at in range(0, stop, ROOM):
        share = at + tl.arange(0, ROOM)
        held, place = share < count, share * KV_HEADS
        tops = tl.load(sums + place * 2 * GROUP_PAD + member, held, other=float("-inf"))
        totals = tl.load(sums + place * 2 * GROUP_PAD + GROUP_PAD + member, held, other=0.0)
        parts = tl.load(
            shares + (place[:, None] * GROUP + member) * DIM + dims[None, :],
            held[:, None] & (dims < DIM)[None, :], other=0.0,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(tops, 0))
        weights, faded = tl.exp2(tops - higher), tl.exp2(top - higher)
        total = total * faded + tl.sum(weights * totals, 0)
        acc = acc * faded + tl.sum(parts * weights[:, None], 0)
        top = higher
    tl.store(result + member * DIM + dims, (acc / total).to(result.dtype.element_ty), dims < DIM)
