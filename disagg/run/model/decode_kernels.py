"""Triton kernels of a decode step around its attention; import them where they are launched, since a CPU install lacks
triton.

Weights [N, K] are read once for up to ROWS rows, and products run with rows padded to ROWS. K is a multiple of INNER
and N one of COLS.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations, so pointers and strides have none.

import triton
import triton.language as tl


@triton.jit
def norm_row(x, norm, out, eps, K: tl.constexpr, K_PAD: tl.constexpr) -> None:
    """RMSNorm of x [rows, K], rounded before it is multiplied by the weight [K]; a program a row."""
    at = tl.arange(0, K_PAD)
    part = tl.load(x + tl.program_id(0) * K + at, at < K, other=0.0).to(tl.float32)
    part *= tl.rsqrt(tl.sum(part * part, 0) / K + eps)
    scaled = part.to(out.dtype.element_ty) * tl.load(norm + at, at < K, other=0.0)
    tl.store(out + tl.program_id(0) * K + at, scaled, at < K)


@triton.jit
def gate(both, out, N: tl.constexpr, COLS: tl.constexpr) -> None:
    """out [rows, N] = silu(gate) · up of both [rows, 2N], grid (rows, tiles)."""
    at = tl.program_id(1) * COLS + tl.arange(0, COLS)
    row = both + tl.program_id(0) * 2 * N + at
    result = silu(tl.load(row, at < N).to(tl.float32)) * tl.load(row + N, at < N).to(tl.float32)
    tl.store(out + tl.program_id(0) * N + at, result.to(out.dtype.element_ty), at < N)


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp2(x * -1.4426950408889634))  # e^x = 2^(x · log2 e)


@triton.jit(do_not_specialize=["rows"])
def gate_up(
    x,
    weight,
    out,
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """out [rows, N] = silu(gate) · up of x [rows, K], grid (row tiles, column tiles).

    weight [2N, K]: the rows of gate, then those of up.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    here = (row < rows)[:, None]
    one = tl.zeros([ROWS, COLS], tl.float32)
    two = tl.zeros([ROWS, COLS], tl.float32)
    for at in range(0, K, INNER):
        places = weight + col[:, None] * K + (at + inner)[None, :]
        w = tl.load(places, eviction_policy="evict_first")
        w_up = tl.load(places + N * K, eviction_policy="evict_first")
        part = tl.load(x + row[:, None] * K + (at + inner)[None, :], here, other=0.0)
        one = tl.dot(part, tl.trans(w), one)
        two = tl.dot(part, tl.trans(w_up), two)
    tl.store(out + row[:, None] * N + col[None, :], (silu(one) * two).to(out.dtype.element_ty), here)


@triton.jit(do_not_specialize=["rows"])
def project(
    x,
    weight,
    out,
    parts,
    finished,
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    ADD: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """out [rows, N] = or with ADD += x [rows, K] · weight [N, K]ᵀ, grid (row tiles, column tiles, SPLIT).

    Where N gives too few programs, K is split, and the last program of a tile to finish joins the parts in their order.
    Scratch: parts [SPLIT, rows, N] in fp32; finished [tiles] counts programs, from zero to zero.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    start = tl.program_id(2) * (K // SPLIT)
    here = (row < rows)[:, None]
    places = row[:, None] * N + col[None, :]
    total = tl.zeros([ROWS, COLS], tl.float32)
    if ADD:
        total += tl.load(out + places, here, other=0.0).to(tl.float32)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for at in range(start, start + K // SPLIT, INNER):
        w = tl.load(weight + col[:, None] * K + (at + inner)[None, :], eviction_policy="evict_first")
        part = tl.load(x + row[:, None] * K + (at + inner)[None, :], here, other=0.0)
        acc = tl.dot(part, tl.trans(w), acc)
    if SPLIT == 1:
        tl.store(out + places, (total + acc).to(out.dtype.element_ty), here)
    else:
        tl.store(parts + tl.program_id(2) * rows * N + places, acc, here)
        tl.debug_barrier()  # a program is counted after all of its stores
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(finished + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            tl.store(finished + tile, 0)
            for each in tl.static_range(SPLIT):
                total += tl.load(parts + each * rows * N + places, here, other=0.0)
            tl.store(out + places, total.to(out.dtype.element_ty), here)


@triton.jit
def take_rows(order, tokens, lengths, tables, token, length, table, WIDTH: tl.constexpr, TILE: tl.constexpr) -> None:
    """Token [rows] int64, length [rows] and block table [rows, WIDTH] of the places in `order`; a program a row."""
    row = tl.program_id(0)
    place = tl.load(order + row)
    tl.store(token + row, tl.load(tokens + place).to(tl.int64))
    tl.store(length + row, tl.load(lengths + place))
    for first in range(0, WIDTH, TILE):
        at = first + tl.arange(0, TILE)
        tl.store(table + row * WIDTH + at, tl.load(tables + place * WIDTH + at, at < WIDTH), at < WIDTH)


@triton.jit
def best_of_part(logits, best, where, vocab, PARTS: tl.constexpr, TILE: tl.constexpr) -> None:
    """The best logit of every PARTS-th tile of a row, and the first token that has it; NaN is best. Grid (rows, PARTS);
    logits [rows, vocab], best and where [rows, PARTS]."""
    row, part, at = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, TILE)
    top = tl.full([TILE], float("-inf"), tl.float32)
    token = tl.full([TILE], 0, tl.int32)
    for first in range(part * TILE, vocab, PARTS * TILE):
        value = tl.load(logits + row * vocab + first + at, first + at < vocab, other=float("-inf")).to(tl.float32)
        value = tl.where(value == value, value, float("inf"))
        token = tl.where(value > top, first + at, token)
        top = tl.maximum(value, top)
    most = tl.max(top, 0)
    tl.store(best + row * PARTS + part, most)
    tl.store(where + row * PARTS + part, tl.min(tl.where(top == most, token, vocab), 0))


@triton.jit
def move_on(best, where, order, tokens, lengths, picked, places, PARTS: tl.constexpr) -> None:
    """From `best_of_part` the token of each row and whether its logit is finite, int32 picked [2, rows]. Its place gets
    the token and a length one longer; the padding place stays empty. A program a row."""
    row, part = tl.program_id(0), tl.arange(0, PARTS)
    value = tl.load(best + row * PARTS + part)
    most = tl.max(value, 0)
    token = tl.min(tl.where(value == most, tl.load(where + row * PARTS + part), 2147483647), 0)
    tl.store(picked + row, token)
    finite = (most < float("inf")) & (most > float("-inf"))
    tl.store(picked + tl.num_programs(0) + row, finite.to(tl.int32))
    place = tl.load(order + row)
    tl.store(tokens + place, token)
    tl.store(lengths + place, tl.where(place < places, tl.load(lengths + place) + 1, 0))


@triton.jit
def turn(lengths, frequencies, cos, sin, scale, HALF: tl.constexpr, HALF_PAD: tl.constexpr) -> None:
    """RoPE's cos and sin [rows, 2 · HALF] of the positions `lengths`; both halves are alike. A program a row."""
    row, at = tl.program_id(0), tl.arange(0, HALF_PAD)
    held, there = at < HALF, tl.program_id(0) * 2 * HALF + at
    angle = tl.load(lengths + row).to(tl.float32) * tl.load(frequencies + at, held, other=0.0).to(tl.float32)
    one, two = (tl.cos(angle) * scale).to(cos.dtype.element_ty), (tl.sin(angle) * scale).to(sin.dtype.element_ty)
    tl.store(cos + there, one, held)
    tl.store(cos + HALF + there, one, held)
    tl.store(sin + there, two, held)
    tl.store(sin + HALF + there, two, held)
