"""Exercises of notebooks/02_disaggregation.ipynb."""

from disagg.show.course.exercise import Exercise


def kv_bytes(tokens, layers, kv_heads, head_dim, itemsize):
    return 2 * tokens * layers * kv_heads * head_dim * itemsize


EXERCISES = [
    Exercise(
        "kv_bytes",
        "02_disaggregation",
        "Bytes of K/V that a prompt leaves behind, in all layers.",
        1,
        kv_bytes,
        ((1, 30, 3, 64, 4), (100, 30, 3, 64, 4), (128, 2, 1, 16, 2)),
        (
            (lambda t, n, h, d, i: t * n * h * d * i, "every layer keeps two tensors for a token: K and V"),
            (lambda t, n, h, d, i: 2 * t * h * d * i, "that is one layer's share; every layer has its own K/V"),
            (lambda t, n, h, d, i: 2 * t * n * h * d, "those are numbers, not bytes: each takes `itemsize` bytes"),
        ),
        "Count K and V, layers, heads, the width of a head, and the bytes of a number.",
    ),
]
