"""Exercises of notebooks/02_disaggregation.ipynb."""

import math

from disagg.course.exercise import exercise


def kv_bytes(tokens: int, layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    return 2 * tokens * layers * kv_heads * head_dim * itemsize


def second_token_gap(tokens: int, token_bytes: float, block_size: int, link_bytes_per_s: float, step_s: float) -> float:
    blocks = math.ceil(tokens / block_size)
    return blocks * block_size * token_bytes / link_bytes_per_s + step_s


def break_even_bandwidth(tokens: int, token_bytes: float, pass_s: float, token_s: float, running: int) -> float:
    prefill_s = pass_s + tokens * token_s
    return tokens * token_bytes / (running * prefill_s)


EXERCISES = [
    exercise(
        kv_bytes,
        "Bytes of K/V that a prompt leaves behind, in all layers.",
        "Count K and V, layers, heads, the width of a head, and the bytes of a number.",
        ((1, 30, 3, 64, 4), (100, 30, 3, 64, 4), (128, 2, 1, 16, 2)),
        lambda t, n, h, d, i: t * n * h * d * i,
        "every layer keeps two tensors for a token: K and V",
        lambda t, n, h, d, i: 2 * t * h * d * i,
        "that is one layer's share; every layer has its own K/V",
        lambda t, n, h, d, i: 2 * t * n * h * d,
        "those are numbers, not bytes: each takes `itemsize` bytes",
        lambda t, n, h, d, i: math.ceil(t / 16) * 16 * 2 * n * h * d * i,
        "that is what travels, in whole blocks; here count the tokens as they are",
    ),
    exercise(
        second_token_gap,
        "Seconds from token 1 to token 2 of a request with a bulk hand-off, alone on its devices and link.",
        "First the number of blocks, rounded up; then their bytes over the link, and one step.",
        ((128, 46_080, 16, 10e6, 0.07), (113, 46_080, 16, 5e6, 0.07), (1, 1_024, 32, 1e6, 0.01)),
        lambda t, b, k, link, s: t * b / link + s,
        "whole blocks travel, also the last one, full or not",
        lambda t, b, k, link, s: t // k * k * b / link + s,
        "that rounds down; the last tokens have a block too, so round the number of blocks up",
        lambda t, b, k, link, s: math.ceil(t / k) * k * b / link,
        "that is when the K/V have arrived; token 2 exists one decode step later",
        lambda t, b, k, link, s: s,
        "that is a later gap; before token 2 the K/V have to travel",
        lambda t, b, k, link, s: math.ceil(t / k) * b / link + s,
        "that sends one token of every block; a block holds `block_size` tokens",
        lambda t, b, k, link, s: (t // k + 1) * k * b / link + s,
        "where the last block is just full, that sends one block too many: round up instead",
    ),
    exercise(
        break_even_bandwidth,
        "The link speed at which a hand-off takes as long as the waits that it removes.",
        "First the seconds of the pass; then the bytes of the prompt over all the waiting.",
        ((256, 46_080, 0.005, 0.004, 1), (256, 46_080, 0.005, 0.004, 4), (16, 1_024, 0.1, 0.001, 2)),
        lambda t, b, p, s, r: t * b / (p + t * s),
        "every running answer waits for the whole pass, not only one",
        lambda t, b, p, s, r: t * b / (r * t * s),
        "a pass also takes `pass_s`, however many tokens it has",
        lambda t, b, p, s, r: r * t * b / (p + t * s),
        "more waiting answers make a slower link good enough: `running` belongs below the line",
        lambda t, b, p, s, r: r * (p + t * s) / (t * b),
        "a speed is bytes over seconds, not seconds over bytes",
        lambda t, b, p, s, r: t * b / (r * p + t * s),
        "each of the waits is a whole pass: its fixed part and its tokens, both times `running`",
        lambda t, b, p, s, r: b / (r * (p + s)),
        "a pass pays `pass_s` once, and only `token_s` for every token",
    ),
]
