"""Triton kernels of a decode step around its attention; import them where they are launched, since a CPU install lacks
triton.

Weights [N, K] are read once for up to ROWS rows, and products run with rows padded to ROWS. K is a multiple of INNER
and N one of COLS; norms are in fp32. With CHAINED, a launch may start while the kernel before it runs (programmatic
dependent launch): it asks for its first weights, waits for that kernel's end, and only then lets the next one start. So
at most two run, and what was launched two before a kernel is complete when it starts.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads annotations, so pointers and strides have none.

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def norm_project(
    x,
    norm,
    weight,
    bias,
    out,
    rows,
    eps,
    K: tl.constexpr,
    N: tl.constexpr,
    BIASED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
    AHEAD: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """out [rows, N] = RMSNorm of x [rows, K] · weight [N, K]ᵀ (+ bias), grid (row tiles, column tiles).

    The norm's 1 / √(mean + eps) is one number a row, so it is applied to the sums, and x is read once.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    if CHAINED:
        ask_for(weight + tl.program_id(1) * COLS * K, K, COLS, AHEAD)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    here = (row < rows)[:, None]
    acc = tl.zeros([ROWS, COLS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for at in range(0, K, INNER):
        w = tl.load(weight + col[:, None] * K + (at + inner)[None, :], eviction_policy="evict_first")
        part = tl.load(x + row[:, None] * K + (at + inner)[None, :], here, other=0.0).to(tl.float32)
        scaled = part * tl.load(norm + at + inner)[None, :]
        squares += tl.sum(part * part, 1)
        acc = tl.dot(scaled.to(w.dtype), tl.trans(w), acc)
    acc *= tl.rsqrt(squares / K + eps)[:, None]
    if BIASED:
        acc += tl.load(bias + col).to(tl.float32)[None, :]
    tl.store(out + row[:, None] * N + col[None, :], acc.to(out.dtype.element_ty), here)


@triton.jit(do_not_specialize=["rows"])
def norm_gate_up(
    x,
    norm,
    weight,
    out,
    rows,
    eps,
    K: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
    AHEAD: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """out [rows, N] = silu(gate) · up of the RMSNorm of x [rows, K], grid (row tiles, column tiles).

    weight [2N, K]: the rows of gate, then those of up.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    if CHAINED:
        ask_for(weight + tl.program_id(1) * COLS * K, K, COLS, AHEAD)
        ask_for(weight + (N + tl.program_id(1) * COLS) * K, K, COLS, AHEAD)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    here = (row < rows)[:, None]
    gate = tl.zeros([ROWS, COLS], tl.float32)
    up = tl.zeros([ROWS, COLS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for at in range(0, K, INNER):
        places = weight + col[:, None] * K + (at + inner)[None, :]
        w = tl.load(places, eviction_policy="evict_first")
        w_up = tl.load(places + N * K, eviction_policy="evict_first")
        part = tl.load(x + row[:, None] * K + (at + inner)[None, :], here, other=0.0).to(tl.float32)
        scaled = (part * tl.load(norm + at + inner)[None, :]).to(w.dtype)
        squares += tl.sum(part * part, 1)
        gate = tl.dot(scaled, tl.trans(w), gate)
        up = tl.dot(scaled, tl.trans(w_up), up)
    factor = tl.rsqrt(squares / K + eps)[:, None]
    gate *= factor
    result = gate / (1.0 + tl.exp2(gate * -1.4426950408889634)) * (up * factor)  # e^x = 2^(x · log2 e)
    tl.store(out + row[:, None] * N + col[None, :], result.to(out.dtype.element_ty), here)


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
    AHEAD: tl.constexpr,
    CHAINED: tl.constexpr,
) -> None:
    """stream [rows, N] += x [rows, K] · weight [N, K]ᵀ, grid (row tiles, column tiles, SPLIT).

    Where N gives too few programs, K is split, and the last program of a tile to finish joins the parts in their order.
    Scratch: parts [SPLIT, rows, N] in fp32; finished [tiles] counts programs, from zero to zero.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inner = tl.arange(0, INNER)
    start = tl.program_id(2) * (K // SPLIT)
    if CHAINED:
        ask_for(weight + tl.program_id(1) * COLS * K + start, K, COLS, AHEAD)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
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


@triton.jit
def ask_for(weight, K: tl.constexpr, COLS: tl.constexpr, AHEAD: tl.constexpr):
    """Starts to bring the first AHEAD columns (a power of two) of COLS rows of 16-bit weights into the L2 cache."""
    if AHEAD >= 128:
        col, piece = tl.arange(0, COLS), tl.arange(0, AHEAD // 128)
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], 256; // $0",
            "=r,l",
            [weight + col[:, None] * K + piece[None, :] * 128],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
