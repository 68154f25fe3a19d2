"""Exercises and questions of notebooks/04_cpu_paging.ipynb."""

import math

from disagg.course.exercise import exercise
from disagg.course.questions import ask


def steps_until_full(lengths: list[int], block_size: int, blocks: int) -> int:
    steps = 0
    while sum(math.ceil((length + steps + 1) / block_size) for length in lengths) <= blocks:
        steps += 1
    return steps


def left_prefill(ready: list[int], down: int, up: int, slots: int) -> list[int]:
    first = second = 0
    left: list[int] = []
    landed: list[int] = []
    for at in ready:
        slot = landed[-slots] if len(landed) >= slots else 0
        first = max(first, at, slot) + down
        second = max(second, first) + up
        left.append(first)
        landed.append(second)
    return left


def ring_without_end(ready: list[int], down: int, up: int, slots: int) -> list[int]:
    """What the repair begins with: nobody waits for a slot."""
    return left_prefill(ready, down, up, len(ready))


def slot_free_early(ready: list[int], down: int, up: int, slots: int) -> list[int]:
    """A slot is free as soon as hop two begins."""
    first = second = 0
    left: list[int] = []
    emptied: list[int] = []
    for at in ready:
        first = max(first, at, emptied[-slots] if len(emptied) >= slots else 0) + down
        emptied.append(max(second, first))
        second = emptied[-1] + up
        left.append(first)
    return left


def all_in_one_buffer(lengths: list[int], block_size: int, blocks: int) -> int:
    return max(0, (block_size * blocks - sum(lengths)) // len(lengths))


def crossover(prefill_s: float, fixed_s: float, copy_s: float) -> float:
    gain_s = prefill_s - 2 * copy_s
    return 2 * fixed_s / gain_s if gain_s > 0 else math.inf


def one_way(prefill_s: float, fixed_s: float, copy_s: float) -> float:
    return fixed_s / (prefill_s - copy_s) if prefill_s > copy_s else math.inf


def one_fixed_cost(prefill_s: float, fixed_s: float, copy_s: float) -> float:
    return crossover(prefill_s, fixed_s / 2, copy_s)


EXERCISES = [
    exercise(
        steps_until_full,
        """
        **1. The first who finds no block** (4 lines; a prediction). Rows of `lengths` tokens decode on a device
        with `blocks` blocks of `block_size` tokens. Each step adds a token to every row, and a row whose last
        block is full takes another one. How many steps can run before some row finds none?

        ```text
        blocks = 5, block_size = 4
        lengths 6 and 4      [■■■■][■■··]   [■■■■]         3 blocks
        after step 1         [■■■■][■■■·]   [■■■■][■···]   4
        after step 3         [■■■■][■■■■][■···]   [■■■■][■■■·]   5: no block is left
        ```

        Skeleton: `def steps_until_full(lengths, block_size, blocks): ...`
        """,
        (
            "How many blocks do the rows need after one step? After two?",
            "A row of n tokens needs n / block_size blocks, rounded up, and rows do not share blocks.",
            "Count up: while the sum of math.ceil((length + steps + 1) / block_size) is at most `blocks`, steps += 1.",
        ),
        (([6, 4], 4, 5), ([16], 16, 1), ([36, 113, 17], 16, 13), ([36, 113, 17], 16, 20), ([5, 5, 5], 1, 20)),
        all_in_one_buffer,
        "what is free in the last block of one row is of no use to another row",
        lambda lengths, size, blocks: steps_until_full(lengths, size, blocks) + 1,
        "the step that needs one block too many does not run",
        lambda lengths, size, blocks: steps_until_full([sum(lengths)], size, blocks),
        "every row gets a token in each step, and has blocks of its own",
        lambda lengths, size, blocks: steps_until_full([length + 1 for length in lengths], size, blocks),
        "a block that is just full is enough until the next token comes",
        lambda lengths, size, blocks: size * (blocks - sum(-(-length // size) for length in lengths)),
        "that counts the tokens that the free blocks hold; they go to several rows, and the last blocks have room, too",
    ),
    exercise(
        left_prefill,
        """
        **2. Repair: a ring has an end** (1 or 2 lines more). A layer takes `down` ms to the ring in host memory
        and `up` ms from there to decode; `ready` lists when each layer is there. The code says when each layer
        has left the prefill device. It forgets that the ring has `slots` slots: a slot is taken from the moment
        at which hop one starts until hop two has landed. Let hop one wait for a slot.

        ```text
        1 slot    hop one   |0|         |1|         |2|       layers 1 and 2 are ready, and stay in the blocks
                  hop two     |▒▒▒0▒▒▒|   |▒▒▒1▒▒▒|           of the prefill device
        ```

        ```python
        def left_prefill(ready, down, up, slots):
            first = second = 0
            left, landed = [], []
            for at in ready:
                first = max(first, at) + down     # hop one ends
                second = max(second, first) + up  # hop two ends
                left.append(first)
                landed.append(second)
            return left
        ```
        """,
        (
            "With 2 slots: which landing does the copy of layer 2 have to wait for?",
            "Layer i can start once layer i - slots has landed. The first `slots` layers wait for no slot.",
            "Once len(landed) >= slots, the max for `first` also has landed[-slots] in it.",
        ),
        (
            ([2, 4, 6, 8, 10, 12], 4, 4, 1),
            ([2, 4, 6, 8, 10, 12], 2, 9, 2),
            ([0, 0, 0, 0, 0, 0], 2, 5, 3),
            ([0, 0, 0, 30, 30], 5, 5, 1),
            ([2, 4, 6, 8, 10, 12], 4, 4, 8),
        ),
        slot_free_early,
        "a slot is still taken while hop two empties it: it is free when the copy has landed",
        lambda ready, down, up, slots: left_prefill(ready, down, up, 1),
        "a copy waits for the layer `slots` before it, not always for the one just before it",
        lambda ready, down, up, slots: [at + down for at in ready],
        "the copies of hop one take turns on their link, too",
        broken=ring_without_end,
    ),
    exercise(
        crossover,
        "Tokens from which spilling costs less than computing again; infinity where it never does.",
        (
            "What is paid for each token, and what is paid however few there are?",
            "Spilling n tokens costs 2 × (fixed_s + n × copy_s), computing them again n × prefill_s.",
            "A token saves prefill_s - 2 × copy_s. If that is not above 0, it never pays; else divide 2 × "
            "fixed_s by it.",
        ),
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

QUIZ = (
    ask(
        "c",
        "The ring is full. What stops, and what goes on?",
        "everything stops until a slot is free",
        "Only who needs a slot has to wait. What can be done without one?",
        "prefill stops at once, since its K/V have nowhere to go",
        "They have: the blocks that they were written to. Prefill goes on until it has no free blocks.",
        "hop one waits; prefill computes on while it has blocks, hop two and decode go on",
        "Hop two is what empties slots. K/V stay on the prefill device meanwhile; if its blocks run out, the next "
        "prompt waits too.",
    ),
    ask(
        "b",
        "A hand-off by way of the host. When can the prefill device give the request's blocks to another one?",
        "as soon as token 1 is there",
        "Layers may still wait there for a slot. Whoever got the blocks would write over K/V that were not sent yet.",
        "when prefill has ended and the last layer has left for the ring",
        "Nothing reads them after that. What is still in the ring has slots there, and goes on by itself.",
        "when all layers have landed on decode, and its first step has read them",
        "That is later than needed: from the ring on, nobody reads the blocks of prefill.",
    ),
    ask(
        "a",
        "A row is spilled to make room. When are its blocks on the decode device free? And those of a row that ends?",
        "when the copy has ended; when no step that reads them still runs",
        "A block is free when nothing reads or writes it any more. Until then both ends of a copy are held.",
        "both at once: they are not needed any more",
        "The copy still reads the one, and a step in flight may read the other. Given away now, they would be "
        "written over.",
        "when the row is fetched again; when its caller has read the whole answer",
        "Then a spill would make no room at all, and a slow reader would hold memory.",
    ),
    ask(
        "b",
        "What is the difference between K/V that are parked and K/V that are spilled?",
        "parked ones are in host memory, spilled ones are thrown away",
        "Both are in host memory. Thrown away are the K/V that are computed again.",
        "parked ones had no blocks on decode yet; spilled ones had, and lost them",
        "Parking takes them from the prefill device for the next prompt, on a way they had to go anyway. A spill "
        "takes decode's blocks from a row.",
        "none: two names for a wait in host memory",
        "Both wait there. But one frees prefill and the other decode, and a spill costs two copies "
        "that nobody had planned.",
        "parking makes the last token come sooner, spilling does not",
        "Decode is what parked requests wait for, and it gets no faster. What comes sooner is token 1 of the next "
        "prompt.",
    ),
    ask(
        "d",
        "Some requests lost their blocks and were computed again, none was spilled. H is 98 %, W 72 %. How is that?",
        "H is above W in any case, by what the tail hides",
        "It need not be: in chapter 03 six requests on `split` had a high W, and an H of 0.",
        "28 % of the requests were not streamed: their K/V left in one piece after prefill",
        "Then they would have waited for these copies after token 1, and H would be lower.",
        "W counts the time for which K/V lay on the prefill device, too",
        "W is about copies alone. K/V that lie somewhere and wait are not on a link.",
        "those computed again were handed off a second time, and that counts in W alone",
        "H asks what was left of a request's first hand-off when token 1 was there. The second ones waited for blocks "
        "on decode and ran when no prefill did. No H knows them.",
    ),
)
