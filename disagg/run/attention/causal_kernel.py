"""The kernel of causal attention over packed prompts. Imported only where it runs: it needs triton.

A program attends a tile of one head's queries of one prompt; the largest share of keys comes first, so that programs
of a wave end together. FlashAttention's online softmax (Dao and others, 2022), in powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    query, key, value, starts, out, scale, query_row, query_head, key_row, key_head, value_row, value_head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:  # fmt: skip
    """`starts` [prompts + 1] int32: where each prompt's tokens begin. `scale` includes log2(e)."""
    head, prompt = tl.program_id(1), tl.program_id(2)
    first = tl.load(starts + prompt)
    length = tl.load(starts + prompt + 1) - first
    at = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    if at >= length:
        return
    rows, cols, dims = at + tl.arange(0, ROWS), tl.arange(0, TILE), tl.arange(0, DIM_PAD)
    wide = (dims < DIM)[None, :]
    places = (first + rows).to(tl.int64)[:, None]
    q = tl.load(
        query + places * query_row + head * query_head + dims[None, :], (rows < length)[:, None] & wide, other=0.0
    )
    keys = key + first.to(tl.int64) * key_row + (head // GROUP) * key_head
    values = value + first.to(tl.int64) * value_row + (head // GROUP) * value_head
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    for start in tl.range(0, at, TILE):  # keys that all of the rows see
        k = tl.load(keys + (start + cols)[None, :] * key_row + dims[:, None], (dims < DIM)[:, None], other=0.0)
        scores = tl.dot(q, k)
        higher = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        faded = tl.exp2(top - higher)
        total = total * faded + tl.sum(weights, 1)
        v = tl.load(values + (start + cols)[:, None] * value_row + dims[None, :], wide, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None])
        top = higher
    for start in tl.range(at, tl.minimum(at + ROWS, length), TILE):  # the diagonal
        here = start + cols < length
        k = tl.load(
            keys + (start + cols)[None, :] * key_row + dims[:, None], here[None, :] & (dims < DIM)[:, None], other=0.0
        )
        scores = tl.where(rows[:, None] >= (start + cols)[None, :], tl.dot(q, k) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        faded = tl.exp2(top - higher)
        total = total * faded + tl.sum(weights, 1)
        v = tl.load(values + (start + cols)[:, None] * value_row + dims[None, :], here[:, None] & wide, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * faded[:, None])
        top = higher
    tl.store(
        out + (places * HEADS + head) * DIM + dims[None, :], (acc / total[:, None]).to(out.dtype.element_ty),
        (rows < length)[:, None] & wide,
    )  # fmt: skip
