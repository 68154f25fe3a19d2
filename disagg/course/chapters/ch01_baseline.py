"""Exercises of notebooks/01_baseline.ipynb."""

import math

from disagg.course.exercise import exercise


def prefill_flops(tokens: int, weights: float, head: float, layers: int, width: float) -> float:
    products = 2 * (tokens * weights + head)
    looked_at = tokens * (tokens + 1) // 2
    return products + 4 * layers * width * looked_at


def step_bytes(contexts: list[int], weight_bytes: float, token_bytes: float) -> float:
    return weight_bytes + token_bytes * sum(contexts)


def balanced_rows(
    context: float, flops_per_s: float, bytes_per_s: float, row_flops: float, weight_bytes: float, token_bytes: float
) -> int | None:
    compute_s = row_flops / flops_per_s
    read_s = token_bytes * context / bytes_per_s
    if compute_s <= read_s:
        return None
    return math.ceil(weight_bytes / bytes_per_s / (compute_s - read_s))


def _not_rounded(c: float, f: float, b: float, row: float, w: float, t: float) -> float | None:
    spare = row / f - t * c / b
    return None if spare <= 0 else w / b / spare


#: SmolLM2's output head and layers, and a model of two small layers.
SMOL, SMALL = (106_168_320, 28_311_552, 30, 576), (1_000, 300, 2, 16)
PAPER = (100e9, 10e9)  # FLOP/s and bytes/s
ROW = (268_959_744, 537_919_488, 46_080)  # FLOPs of a row, bytes of the weights, bytes of K/V a token


EXERCISES = [
    exercise(
        prefill_flops,
        "FLOPs of a prompt in one prefill pass: matrix products and attention.",
        "Add the products of all tokens, the head of one token, and attention over 1 + 2 + … + tokens.",
        ((1, *SMALL), (7, *SMALL), (256, *SMOL)),
        lambda n, w, h, layers, width: 2 * n * (w + h) + 4 * layers * width * (n * (n + 1) // 2),
        "the output head is asked for the last token only: no other needs a successor",
        lambda n, w, h, layers, width: 2 * (n * w + h),
        "those are the matrix products; attention adds 4 × width FLOPs a layer for each token looked at",
        lambda n, w, h, layers, width: 2 * (n * w + h) + 4 * layers * width * n * n,
        "no token looks ahead: the first one looks at 1 token, the second at 2, the last at all",
        lambda n, w, h, layers, width: n * w + h + 4 * layers * width * (n * (n + 1) // 2),
        "each weight is multiplied and added: that makes 2 FLOPs a token",
        lambda n, w, h, layers, width: 2 * (n * w + h) + 4 * width * (n * (n + 1) // 2),
        "that is the attention of one layer; every layer looks again",
        lambda n, w, h, layers, width: 2 * (n * w * layers + h) + 4 * layers * width * (n * (n + 1) // 2),
        "`weights` are those of all layers together: do not multiply them by `layers` again",
    ),
    exercise(
        step_bytes,
        "Bytes that a decode step reads; `contexts` has the tokens of each row.",
        "Weights once, and the K/V of every token of every row.",
        (([1], 1_000, 8), ([5, 9, 40], 1_000, 8), ([256] * 4, 537_919_488, 46_080)),
        lambda c, w, t: len(c) * w + t * sum(c),
        "the weights are read once for all rows: so rows share a step",
        lambda c, w, t: w,
        "those are the weights; each row also reads its own K/V",
        lambda c, w, t: w + t * max(c),
        "every row reads the K/V of its own context, not only the longest one",
        lambda c, w, t: w + t * len(c),
        "a row reads the K/V of its whole context, not of one token",
        lambda c, w, t: w + t * max(c) * len(c),
        "here each row reads its own context, not the longest one",
    ),
    exercise(
        balanced_rows,
        "Rows of equal context from which a decode step takes at least as long to compute as to read; None: never.",
        "With B rows: B × compute of a row ≥ weights + B × K/V of a row, all in seconds. Solve for B.",
        (
            (0, 1000, 100, 50, 100, 2),
            (0, *PAPER, *ROW),
            (256, *PAPER, *ROW),
            (256, 50e9, 10e9, *ROW),
            (1000, *PAPER, *ROW),
        ),
        lambda c, f, b, row, w, t: math.ceil(w / b / (row / f)),
        "this leaves out the K/V, and every row that joins brings its own to read",
        lambda c, f, b, row, w, t: math.ceil((w + c * t) / b / (row / f)),
        "each row reads K/V of its own; only the weights are shared",
        _not_rounded,
        "rows are whole: round up, or the step is still short of work",
        lambda c, f, b, row, w, t: math.ceil(w / b / (row / f - t * c / b)),
        "where a row's K/V take longer to read than its FLOPs to compute, no batch is large enough: return None",
    ),
]
