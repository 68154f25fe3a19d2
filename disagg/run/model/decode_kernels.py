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
def project_add(
    x,
    weight,
    stream,
    parts,
    finished,
    rows,
    K: tl.constexpr,
    N: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """stream [rows, N] += x [rows, K] · weight [N, K]ᵀ, grid (row tiles, column tiles, SPLIT).

    Where N gives too few programs, K is split, and the last program of a tile to finish joins the parts in their order.
    Scratch: parts [SPLIT, rows, N] in fp32; finished [tiles] counts programs, from zero to zero.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    start = tl.program_id(2) * (K // SPLIT)
    here = (row < rows)[:, None]
    places = row[:, None] * N + col[None, :]
    total = tl.load(stream + places, here, other=0.0).to(tl.float32)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for at in range(start, start + K // SPLIT, INNER):
        w = tl.load(weight + col[:, None] * K + (at + inner)[None, :], eviction_policy="evict_first")
        part = tl.load(x + row[:, None] * K + (at + inner)[None, :], here, other=0.0)
        acc = tl.dot(part, tl.trans(w), acc)
    if SPLIT == 1:
        tl.store(stream + places, (total + acc).to(stream.dtype.element_ty), here)
    else:
        tl.store(parts + tl.program_id(2) * rows * N + places, acc, here)
        tl.debug_barrier()  # a program is counted after all of its stores
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(finished + tile, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            tl.store(finished + tile, 0)
            for each in tl.static_range(SPLIT):
                total += tl.load(parts + each * rows * N + places, here, other=0.0)
            tl.store(stream + places, total.to(stream.dtype.element_ty), here)
