"""Exercises of notebooks/04_cpu_paging.ipynb."""

import math

from disagg.course.exercise import exercise
from disagg.plan.blocks import blocks_for


def slot_of(position: int, table: list[int], block_size: int) -> int:
    return table[position // block_size] * block_size + position % block_size


def crossover(prefill_s: float, fixed_s: float, copy_s: float) -> float:
    gain_s = prefill_s - 2 * copy_s
    return 2 * fixed_s / gain_s if gain_s > 0 else math.inf


def one_way(prefill_s: float, fixed_s: float, copy_s: float) -> float:
    return fixed_s / (prefill_s - copy_s) if prefill_s > copy_s else math.inf


def one_fixed_cost(prefill_s: float, fixed_s: float, copy_s: float) -> float:
    return crossover(prefill_s, fixed_s / 2, copy_s)


EXERCISES = [
    exercise(
        slot_of,
        "The slot of a token, from its position and its request's block table.",
        "position // block_size is the entry of the table, position % block_size the place in that block.",
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
    ),
    exercise(
        blocks_for,
        "Blocks that a number of tokens needs.",
        "Divide, and round up.",
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
        crossover,
        "Tokens from which spilling costs less than computing again; infinity where it never does.",
        "Set tokens × prefill_s equal to 2 × (fixed_s + tokens × copy_s), and solve for tokens.",
        (
            (0.002, 0.01, 0.0005),
            (0.004, 0.05, 0.0009216),
            (0.004, 0.0, 0.001),
            (0.001, 0.05, 0.001),
            (0.002, 0.05, 0.001),
        ),
        one_way,
        "spilled K/V travel twice: out, and back",
        lambda p, f, c: f / (p - c),
        "K/V travel twice, out and back; and a slow link may need float('inf')",
        one_fixed_cost,
        "the fixed cost is paid for each of the two copies",
        lambda p, f, c: f / (p - 2 * c),
        "each of the two copies has its fixed cost; and think of a slow link",
        lambda p, f, c: 2 * f / (p - 2 * c),
        "where copying a token twice costs as much as computing it, spilling never pays: give float('inf')",
        lambda p, f, c: 2 * f / (p - 2 * c) if p != 2 * c else math.inf,
        "a negative number of tokens is no answer: where copying is the slower one, give float('inf')",
    ),
]
