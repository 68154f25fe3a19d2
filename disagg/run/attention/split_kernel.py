"""The kernel of split-KV decode attention. Imported only where it runs: it needs triton.

Grid (rows · kv_heads, splits): a program attends the query heads of one group to its share of the row's tokens, and
the last one to finish joins the shares. Products add up in fp32; the new token's K/V enter from registers, and the
first share's program stores them.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query, new_keys, new_values, keys, values, tables, lengths, out, shares, sums, finished, scale,
    query_row, query_head, key_row, key_head, value_row, value_head, table_row, block_step, slot_step, head_step,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    GROUP_PAD: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """`scale` includes log2(e): the softmax is taken in powers of two.

    shares [rows · kv_heads, SPLITS, GROUP, DIM] and sums [rows · kv_heads, 2, SPLITS, GROUP_PAD] (largest score, sum)
    are scratch in fp32; finished [rows · kv_heads] counts programs, from zero and back to it.
    """
    pair, split = tl.program_id(0), tl.program_id(1)
    row, head = pair // KV_HEADS, pair % KV_HEADS
    group, dims, tokens = tl.arange(0, GROUP_PAD), tl.arange(0, DIM_PAD), tl.arange(0, TILE)
    length = tl.load(lengths + row)
    table = tables + row * table_row
    in_group = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    q = tl.load(
        query + row * query_row + (head * GROUP + group)[:, None] * query_head + dims[None, :], in_group, other=0.0
    )
    new_key = tl.load(new_keys + row * key_row + head * key_head + dims, dims < DIM, other=0.0)
    new_value = tl.load(new_values + row * value_row + head * value_head + dims, dims < DIM, other=0.0)

    # the first share holds the new token: its score is the first maximum
    first = split == 0
    score = tl.sum(q.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
    top = tl.where(first, score, float("-inf"))
    total = tl.where(first, 1.0, 0.0) + tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.where(first, 1.0, 0.0) * new_value.to(tl.float32)[None, :] + tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    if first:
        block = tl.load(table + length // BLOCK).to(tl.int64)
        place = block * block_step + (length % BLOCK) * slot_step + head * head_step + dims
        tl.store(keys + place, new_key, dims < DIM)
        tl.store(values + place, new_value, dims < DIM)

    share = tl.cdiv(tl.cdiv(length, SPLITS), TILE) * TILE
    start = split * share
    stop = tl.minimum(start + share, length)
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
    if SPLITS == 1:
        tl.store(
            result + group[:, None] * DIM + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty), in_group
        )
    else:
        mine = shares + (pair * SPLITS + split) * GROUP * DIM
        tl.store(mine + group[:, None] * DIM + dims[None, :], acc, in_group)
        tops = sums + pair * 2 * SPLITS * GROUP_PAD
        totals = tops + SPLITS * GROUP_PAD
        tl.store(tops + split * GROUP_PAD + group, top)
        tl.store(totals + split * GROUP_PAD + group, total)
        tl.debug_barrier()  # all of this program's stores are done before it is counted
        if tl.atomic_add(finished + pair, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            tl.store(finished + pair, 0)
            splits = tl.arange(0, SPLITS)
            for member in tl.static_range(GROUP):
                part_top = tl.load(tops + splits * GROUP_PAD + member)
                weight = tl.exp2(part_top - tl.max(part_top, 0))
                whole = tl.sum(weight * tl.load(totals + splits * GROUP_PAD + member), 0)
                parts = tl.load(
                    shares + ((pair * SPLITS + splits)[:, None] * GROUP + member) * DIM + dims[None, :],
                    (splits >= 0)[:, None] & (dims < DIM)[None, :], other=0.0,
                )  # fmt: skip
                joined = tl.sum(parts * weight[:, None], 0) / whole
                tl.store(result + member * DIM + dims, joined.to(out.dtype.element_ty), dims < DIM)
