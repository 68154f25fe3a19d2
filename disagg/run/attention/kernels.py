"""Triton kernels of paged attention; import them where they are launched, since a CPU install lacks triton."""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations, so pointers and strides have none.

import triton
import triton.language as tl


@triton.jit
def attend_chunks(
    query,
    keys,
    values,
    tables,
    tiles,
    out,
    stored,
    row,
    scale,
    stored_row,
    query_row,
    query_head,
    table_row,
    block_step,
    slot_step,
    head_step,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    FIELDS: tl.constexpr,
) -> None:
    """Causal attention of packed chunks to their prompts so far in the cache: FlashAttention's online softmax (Dao and
    others, 2022), in powers of two. Grid (heads, tiles), so that programs beside each other read the same keys.

    tiles [.., FIELDS]: table row, first row of the pass, rows (0: a spare tile), place of the first row in its prompt;
    those that read most keys come first. stored [row] gets the time at which the layer's K/V were in the cache. `scale`
    includes log2(e).
    """
    head, tile = tl.program_id(0), tl.program_id(1)
    if head + tile == 0:
        tl.store(stored + tl.load(row) * stored_row, tl.extra.cuda.globaltimer())
    fields = tiles + tile * FIELDS
    count, at = tl.load(fields + 2), tl.load(fields + 3)
    if count == 0:
        return
    rows, cols, dims = tl.arange(0, ROWS), tl.arange(0, TILE), tl.arange(0, DIM_PAD)
    wide, here = (dims < DIM)[None, :], (rows < count)[:, None]
    places = (tl.load(fields + 1) + rows).to(tl.int64)[:, None]
    q = tl.load(query + places * query_row + head * query_head + dims[None, :], here & wide, other=0.0)
    table = tables + tl.load(fields) * table_row
    keys += (head // GROUP) * head_step
    values += (head // GROUP) * head_step
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    seen = ((at + 1) // TILE * TILE).to(tl.int32)
    end = (at + count).to(tl.int32)
    for start in tl.range(0, seen, TILE):  # keys that all rows see
        base = tl.load(table + start // BLOCK).to(tl.int64) * block_step + (start % BLOCK) * slot_step
        k = tl.load(keys + base + cols[None, :] * slot_step + dims[:, None], (dims < DIM)[:, None], other=0.0)
        scores = tl.dot(q, k)
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        faded = tl.exp2(top - higher)
        total = total * faded + tl.sum(weights, 1)
        v = tl.load(values + base + cols[:, None] * slot_step + dims[None, :], wide, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None])
        top = higher
    for start in tl.range(seen, end, TILE):  # the diagonal
        base = tl.load(table + start // BLOCK).to(tl.int64) * block_step + (start % BLOCK) * slot_step
        held = start + cols < end
        k = tl.load(
            keys + base + cols[None, :] * slot_step + dims[:, None], held[None, :] & (dims < DIM)[:, None], other=0.0
        )
        scores = tl.where((at + rows)[:, None] >= (start + cols)[None, :], tl.dot(q, k) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        faded = tl.exp2(top - higher)
        total = total * faded + tl.sum(weights, 1)
        v = tl.load(values + base + cols[:, None] * slot_step + dims[None, :], held[:, None] & wide, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None])
        top = higher
    tl.store(
        out + (places * HEADS + head) * DIM + dims[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty),
        here & wide,
    )


@triton.jit
def attend_shares(
    query,
    new_keys,
    new_values,
    keys,
    values,
    tables,
    lengths,
    items,
    out,
    shares,
    sums,
    finished,
    cos,
    sin,
    query_norm,
    key_norm,
    scale,
    eps,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    table_row,
    block_step,
    slot_step,
    head_step,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr,
    TILE: tl.constexpr,
    FIELDS: tl.constexpr,
    TURNED: tl.constexpr,
    NORMED: tl.constexpr,
) -> None:
    """Split-KV decode attention, grid (kv_heads, items): the query heads of one group read one item's share of a row's
    tokens, and the last program of a row to finish joins the row's shares.

    The new token's K/V enter from registers, and the first share's program stores them. `scale` includes log2(e).
    TURNED: query and new key first get RoPE, cos and sin [rows, DIM]; NORMED: before that the norms of their heads,
    with weights [DIM] and eps.
    Scratch in fp32: shares [items, kv_heads, GROUP, DIM] and sums [items, kv_heads, 2, GROUP_PAD] (largest score, sum).
    finished [rows, kv_heads] counts programs, from zero to zero.
    """
    head, item = tl.program_id(0), tl.program_id(1)
    fields = items + item * FIELDS
    row, start, stop = tl.load(fields), tl.load(fields + 1), tl.load(fields + 2)
    row_item, count = tl.load(fields + 3), tl.load(fields + 4)
    if count == 0:
        return  # a spare item
    group, dims, tokens = tl.arange(0, GROUP_PAD), tl.arange(0, DIM_PAD), tl.arange(0, TILE)
    table = tables + row * table_row
    in_group = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    query += row * query_row + head * GROUP * query_head
    new_keys += row * key_row + head * key_head
    if TURNED:
        turn = row * DIM
        q = turned(query, query_head, query_norm, cos + turn, sin + turn, eps, GROUP, DIM, GROUP_PAD, DIM_PAD, NORMED)
        one = turned(new_keys, key_head, key_norm, cos + turn, sin + turn, eps, 1, DIM, 1, DIM_PAD, NORMED)
        new_key = tl.sum(one.to(tl.float32), 0).to(one.dtype)  # its only row
    else:
        q = tl.load(query + group[:, None] * query_head + dims[None, :], in_group, other=0.0)
        new_key = tl.load(new_keys + dims, dims < DIM, other=0.0)
    new_value = tl.load(new_values + row * value_row + head * value_head + dims, dims < DIM, other=0.0)

    # The first share holds the new token: its score is the first maximum.
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
        tl.debug_barrier()  # a program is counted after all of its stores
        if tl.atomic_add(finished + row * KV_HEADS + head, 1, sem="acq_rel", scope="gpu") == count - 1:
            tl.store(finished + row * KV_HEADS + head, 0)
            first_share = row_item * KV_HEADS + head
            shares += first_share * GROUP * DIM
            sums += first_share * 2 * GROUP_PAD
            if count <= 4:  # few shares need less code, and no head waits for another
                for member in tl.static_range(GROUP):
                    join_head(shares, sums, result, count, member, 4, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, 4)
            elif count <= 16:
                for member in tl.static_range(GROUP):
                    join_head(shares, sums, result, count, member, 16, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, 16)
            else:
                for member in range(GROUP):
                    join_head(shares, sums, result, count, member, count, KV_HEADS, GROUP, DIM, GROUP_PAD, DIM_PAD, 32)


@triton.jit
def turned(
    x,
    head_step,
    norm,
    cos,
    sin,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr,
    NORMED: tl.constexpr,
):
    """A token's heads [HEADS_PAD, DIM_PAD] with RoPE, and NORMED before it; each number turns with the one half a head
    away."""
    head, dims = tl.arange(0, HEADS_PAD)[:, None], tl.arange(0, DIM_PAD)
    other = tl.where(dims < DIM // 2, dims + DIM // 2, dims - DIM // 2)
    here = (head < HEADS) & (dims < DIM)[None, :]
    mine = tl.load(x + head * head_step + dims[None, :], here, other=0.0).to(tl.float32)
    others = tl.load(x + head * head_step + other[None, :], here, other=0.0).to(tl.float32)
    if NORMED:
        factor = tl.rsqrt(tl.sum(mine * mine, 1) / DIM + eps)[:, None]
        mine *= factor * tl.load(norm + dims, dims < DIM, other=0.0).to(tl.float32)[None, :]
        others *= factor * tl.load(norm + other, dims < DIM, other=0.0).to(tl.float32)[None, :]
    c = tl.load(cos + dims, dims < DIM, other=0.0).to(tl.float32)
    s = tl.load(sin + dims, dims < DIM, other=0.0).to(tl.float32)
    return (mine * c[None, :] + others * tl.where(dims < DIM // 2, -s, s)[None, :]).to(x.dtype.element_ty)


@triton.jit
def join_head(
    shares,
    sums,
    result,
    count,
    member,
    stop,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROOM: tl.constexpr,
) -> None:
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
            held[:, None] & (dims < DIM)[None, :],
            other=0.0,
        )
        higher = tl.maximum(top, tl.max(tops, 0))
        weights, faded = tl.exp2(tops - higher), tl.exp2(top - higher)
        total = total * faded + tl.sum(weights * totals, 0)
        acc = acc * faded + tl.sum(parts * weights[:, None], 0)
        top = higher
    tl.store(result + member * DIM + dims, (acc / total).to(result.dtype.element_ty), dims < DIM)


@triton.jit
def cut_shares(
    lengths,
    items,
    rows,
    programs,
    KV_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    ROWS_PAD: tl.constexpr,
    FIELDS: tl.constexpr,
) -> None:
    """lengths [rows] -> items [.., FIELDS]: row, start, stop, the row's first item, the row's shares.

    Each row's program computes all cuts, which is faster than to read them from another program, and writes its own.
    """
    row, every = tl.program_id(0), tl.arange(0, ROWS_PAD)
    length, all_lengths = tl.load(lengths + row), tl.load(lengths + every, every < rows, other=0)
    work = tl.maximum(tl.sum(all_lengths.to(tl.int64), 0), 1) * KV_HEADS  # tokens that all programs read
    count, size = shares_of(length, work, programs, TILE, LEAST, MOST)
    counts, sizes = shares_of(all_lengths, work, programs, TILE, LEAST, MOST)

    # Lanes beyond the rows come last: their shares have the fewest tokens.
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
    """The number of a row's shares and the tokens of each; the last share may have fewer.

    A row gets its part of a KV head's programs, rounded, so a share is at most 1.5 times a fair one.
    """
    deserved = (2 * length.to(tl.int64) * programs + work) // (2 * work)
    count = tl.maximum(tl.minimum(deserved, tl.minimum(tl.cdiv(length, LEAST), MOST)), 1).to(tl.int32)
    size = tl.maximum(tl.cdiv(tl.cdiv(length, count), TILE), 1) * TILE
    return tl.maximum(tl.cdiv(length, size), 1), size


@triton.jit
def store_tokens(
    key, value, slots, keys, values, key_row, value_row, WIDTH: tl.constexpr, WIDTH_PAD: tl.constexpr
) -> None:
    """A program stores one token's K/V, a token with a slot below 0 nowhere. key and value: rows of WIDTH numbers,
    `key_row` and `value_row` apart; keys and values [slots, WIDTH]."""
    token, cols = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH_PAD)
    slot = tl.load(slots + token)
    place, goes = slot * WIDTH + cols, (cols < WIDTH) & (slot >= 0)
    tl.store(keys + place, tl.load(key + token * key_row + cols, goes), goes)
    tl.store(values + place, tl.load(value + token * value_row + cols, goes), goes)
