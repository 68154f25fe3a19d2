"""Exercises that the chapters no longer have. The stored notebooks still check them: once none does, this file goes,
with what names it in checking.py and in the tests.
"""

import math

from disagg.course.exercise import exercise
from disagg.plan.blocks import blocks_for

#: What takes the place of each of them.
REPLACED = {
    "prefill_flops": "computed_again",
    "step_bytes": "chunk_for",
    "kv_bytes": "tokens_at",
    "second_token_gap": "longest_prompt",
    "exposed_one_hop": "exposed_uneven",
    "slot_of": "steps_until_full",
    "blocks_for": "left_prefill",
    "step_waste": "best_bound",
    "step_floor_ms": "readers_on",
}


def prefill_flops(tokens: int, weights: float, head: float, layers: int, width: float) -> float:
    products = 2 * (tokens * weights + head)
    looked_at = tokens * (tokens + 1) // 2
    return products + 4 * layers * width * looked_at


def step_bytes(contexts: list[int], weight_bytes: float, token_bytes: float) -> float:
    return weight_bytes + token_bytes * sum(contexts)


def kv_bytes(tokens: int, layers: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    return 2 * tokens * layers * kv_heads * head_dim * itemsize


def second_token_gap(tokens: int, token_bytes: float, block_size: int, link_bytes_per_s: float, step_s: float) -> float:
    blocks = math.ceil(tokens / block_size)
    return blocks * block_size * token_bytes / link_bytes_per_s + step_s


def exposed_one_hop(layers: int, c: float, x: float, tail: float) -> float:
    return max(0, x + (layers - 1) * max(0, x - c) - tail)


def slot_of(position: int, table: list[int], block_size: int) -> int:
    return table[position // block_size] * block_size + position % block_size


def step_waste(bins: list[list[int]]) -> int:
    return sum(len(lengths) * max(lengths) - sum(lengths) for lengths in bins)


def waste_in_one_bin(bins: list[list[int]]) -> int:
    rows = [length for lengths in bins for length in lengths]
    return len(rows) * max(rows) - sum(rows)


def step_floor_ms(weight_bytes: float, token_bytes: float, contexts: list[int], bytes_per_s: float) -> float:
    return 1e3 * (weight_bytes + token_bytes * sum(contexts)) / bytes_per_s


SMOL, SMALL = (106_168_320, 28_311_552, 30, 576), (1_000, 300, 2, 16)

_ALL = [
    exercise(
        prefill_flops,
        "FLOPs of a prompt in one prefill pass: matrix products and attention.",
        ("Add the products of all tokens, the head of one token, and attention over 1 + 2 + … + tokens.",),
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
        chapter="01_baseline",
    ),
    exercise(
        step_bytes,
        "Bytes that a decode step reads; `contexts` has the tokens of each row.",
        ("Weights once, and the K/V of every token of every row.",),
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
        chapter="01_baseline",
    ),
    exercise(
        kv_bytes,
        "Bytes of K/V that a prompt leaves behind, in all layers.",
        ("Count K and V, layers, heads, the width of a head, and the bytes of a number.",),
        ((1, 30, 3, 64, 4), (100, 30, 3, 64, 4), (128, 2, 1, 16, 2)),
        lambda t, n, h, d, i: t * n * h * d * i,
        "every layer keeps two tensors for a token: K and V",
        lambda t, n, h, d, i: 2 * t * h * d * i,
        "that is one layer's share; every layer has its own K/V",
        lambda t, n, h, d, i: 2 * t * n * h * d,
        "those are numbers, not bytes: each takes `itemsize` bytes",
        lambda t, n, h, d, i: math.ceil(t / 16) * 16 * 2 * n * h * d * i,
        "that is what travels, in whole blocks; here count the tokens as they are",
        chapter="02_disaggregation",
    ),
    exercise(
        second_token_gap,
        "Seconds from token 1 to token 2 of a request with a bulk hand-off, alone on its devices and link.",
        ("First the number of blocks, rounded up; then their bytes over the link, and one step.",),
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
        chapter="02_disaggregation",
    ),
    exercise(
        exposed_one_hop,
        "E of a streamed hand-off over one hop, where prefill still works for `tail` after the last hand-off.",
        ("Add the last copy and what has queued before it, then take away the tail.",),
        ((30, 10, 8, 0), (30, 10, 8, 5), (30, 10, 8, 20), (30, 10, 15, 0), (30, 10, 15, 12), (2, 10, 11, 3)),
        lambda n, c, x, tail: x + (n - 1) * max(0, x - c) - tail,
        "a long tail covers the last copy whole; what is left is 0, never less",
        lambda n, c, x, tail: max(0, x + (n - 1) * max(0, x - c)),
        "prefill goes on for `tail` after the last hand-off, and copying during that time is not exposed",
        lambda n, c, x, tail: max(0, (n - 1) * max(0, x - c) - tail),
        "the last layer has nothing left to hide behind: its own copy, x, is missing",
        lambda n, c, x, tail: max(0, x + (n - 1) * (x - c) - tail),
        "a fast link waits for the next layer and can't save up time: where x is below c, nothing queues",
        lambda n, c, x, tail: max(0, x + n * max(0, x - c) - tail),
        "the link falls behind once between two layers: of L layers that makes L - 1 times",
        chapter="03_layer_streaming",
    ),
    exercise(
        slot_of,
        "The slot of a token, from its position and its request's block table.",
        ("position // block_size is the entry of the table, position % block_size the place in that block.",),
        (
            (0, [5], 4),
            (3, [5], 4),
            (37, [0, 1, 4, 6], 16),
            (16, [0, 1, 4, 6], 16),
            (9, [7, 2, 9, 0], 4),
            (2, [8, 3, 1], 1),
        ),
        lambda p, t, b: p,
        "that is right only where the blocks happen to be 0, 1, 2, …; ask the table",
        lambda p, t, b: t[p // b] * b,
        "that is the first slot of the right block; where in it is the token?",
        lambda p, t, b: t[p // b] + p % b,
        "a block has block_size slots, so block 4 does not begin at slot 4",
        lambda p, t, b: t[p % b] * b + p // b,
        "// and % have changed places: // finds the entry, % the place",
        chapter="04_cpu_paging",
    ),
    exercise(
        blocks_for,
        "Blocks that a number of tokens needs.",
        ("Divide, and round up.",),
        ((1, 16), (15, 16), (16, 16), (17, 16), (113, 16), (7, 1), (64, 32)),
        lambda t, b: t // b,
        "the tokens that do not fill a block need one too",
        lambda t, b: t // b + 1,
        "16 tokens fill one block of 16 to the last slot, and need no second one",
        lambda t, b: round(t / b),
        "round() may go down; the last tokens need a block however few they are",
        chapter="04_cpu_paging",
    ),
    exercise(
        step_waste,
        "Slots that attention reads for nothing in one step; bins is a list of lists of lengths.",
        ("Each bin is read as rows × its longest; what its rows do not fill is padding.",),
        (([[20, 24, 30, 90, 110, 400]],), ([[20, 24, 30], [90, 110], [400]],), ([[5]],), ([[3, 5], [8, 8, 9]],)),
        waste_in_one_bin,
        "that pads each row to the longest of the whole step; a bin has a longest of its own",
        lambda bins: sum(len(b) * max(b) for b in bins),
        "those are all slots read; take off those with a token",
        lambda bins: sum(max(b) - min(b) for b in bins),
        "every row of a bin is padded to the longest, not only the shortest row",
        lambda bins: step_waste(bins) / sum(len(b) * max(b) for b in bins),
        "that is the share; the exercise asks how many slots",
        chapter="05_dynamic_batching",
    ),
    exercise(
        step_floor_ms,
        "Milliseconds that the bytes of a decode step take; contexts has a number of tokens for each row.",
        ("Bytes of the weights, once, and of the K/V of all rows; divide by bytes a second.",),
        (
            (16e9, 131_072, [1024], 4e12),
            (16e9, 131_072, [1024] * 16, 4e12),
            (2e9, 32_768, [100, 4000, 9000], 1e12),
            (1e9, 50_000, [10], 2e11),
        ),
        lambda weights, token, contexts, speed: 1e3 * (weights * len(contexts) + token * sum(contexts)) / speed,
        "the rows share the weights: a step reads them once, however many rows it has",
        lambda weights, token, contexts, speed: 1e3 * weights / speed,
        "each row also reads the K/V of every token that it looks back on",
        lambda weights, token, contexts, speed: 1e3 * (weights + token * len(contexts)) / speed,
        "a row reads the K/V of all tokens of its context, not of one",
        lambda weights, token, contexts, speed: (weights + token * sum(contexts)) / speed,
        "those are seconds; the exercise asks for milliseconds",
        chapter="07_on_a_gpu",
    ),
]
OLD = {old.name: old for old in _ALL}
