"""Exercises and questions of notebooks/03_layer_streaming.ipynb."""

from disagg.course.exercise import exercise
from disagg.course.questions import ask


def exposed_uneven(ready: list[float], x: float, token_1: float) -> float:
    free = 0.0
    for at in ready:
        free = max(free, at) + x
    return max(0, free - token_1)


def links_for_all(ready: list[float], x: float, token_1: float) -> float:
    """What the repair begins with: each layer has a link of its own, and E may be less than nothing."""
    return max(at + x for at in ready) - token_1


def copies_on_one_link(ready: list[float], x: float) -> float:
    free = 0.0
    for at in ready:
        free = max(free, at) + x
    return free


def exposed_in_groups(layers: int, group: int, c: float, b: float, fixed: float) -> float:
    copies = layers // group
    one_copy = fixed + group * b
    return one_copy + (copies - 1) * max(0, one_copy - group * c)


def bandwidth_for(wanted: float, layers: int, c_s: float, layer_bytes: float) -> float | None:
    ceiling = 1 - 1 / layers
    if wanted > ceiling:
        return None
    return layer_bytes * wanted / (ceiling * c_s)


EXERCISES = [
    exercise(
        exposed_uneven,
        """
        **1. Repair** (2 to 4 lines). Layers are not always alike: `ready` lists, in ms and in order, when the
        K/V of each layer are there. A copy takes `x`, all go over one link, and token 1 exists at `token_1`.
        The code below should give E. It is wrong in two ways. Find for each a case in which it shows, then
        repair it.

        ```text
        ready     1   2      3
        prefill  -|---|------|~~~~~|token 1
        link      |▒▒▒▒▒|▒▒▒▒▒|▒▒▒▒▒|
        ```

        ```python
        def exposed_uneven(ready, x, token_1):
            return max(at + x for at in ready) - token_1
        ```
        """,
        (
            "How many copies are on the link at the same time, by that code? And what is E where all copies are early?",
            "A copy begins when its layer is ready and the link is free, whichever is later.",
            "Keep `free`: for each layer free = max(free, at) + x. E is free - token_1, but never less than 0.",
        ),
        (
            ([10, 20, 30], 15, 30),
            ([10, 20, 30], 5, 30),
            ([10, 12, 40], 5, 60),
            ([5, 6, 7, 50], 10, 52),
            ([5, 6, 7, 20], 10, 21),
        ),
        lambda ready, x, token_1: max(0, links_for_all(ready, x, token_1)),
        "nothing is negative now; but a copy still begins while another one has the link",
        lambda ready, x, token_1: copies_on_one_link(ready, x) - token_1,
        "the copies take turns now; but copies that are all over early expose nothing, and not less than that",
        lambda ready, x, token_1: max(0, ready[0] + len(ready) * x - token_1),
        "the link rests while the next layer is not ready",
        lambda ready, x, token_1: max(0, ready[-1] + x * len(ready) - token_1),
        "copies do not wait for the last layer: each begins once its own is ready",
        broken=links_for_all,
    ),
    exercise(
        exposed_in_groups,
        "E where `group` layers share a copy: a copy costs `fixed` once, and `b` for each layer in it. No tail.",
        (
            "A group behaves like one large layer: what is its compute, and what is its copy?",
            "There are layers // group copies of fixed + group × b each, and prefill computes group × c meanwhile.",
            "The last copy is exposed whole, and before it (copies - 1) times what a copy takes longer than a "
            "group's compute.",
        ),
        ((30, 1, 10, 6, 8), (30, 2, 10, 6, 8), (30, 5, 10, 6, 8), (30, 30, 10, 6, 8), (24, 3, 4, 5, 1)),
        lambda n, g, c, b, f: g * (f + b) + (n // g - 1) * max(0, g * (f + b) - g * c),
        "the fixed cost is paid once a copy, however many layers are in it",
        lambda n, g, c, b, f: f + g * b + (n // g - 1) * max(0, f + g * b - c),
        "while one copy is on the link, prefill computes the whole next group: `group` layers of c each",
        lambda n, g, c, b, f: f + g * b + (n - 1) * max(0, f + g * b - g * c),
        "copies queue, not layers: there are layers // group of them",
        lambda n, g, c, b, f: f + b + (n // g - 1) * max(0, f + g * b - g * c),
        "the last copy carries a whole group too",
    ),
    exercise(
        bandwidth_for,
        "Bytes a second that the link needs for a wanted H over one hop; None where no link is fast enough.",
        (
            "Below the ceiling a faster link gives more H. What can no link give?",
            "On the ramp H = (1 - 1/L) × c/x: how many seconds x may a layer take?",
            "x = (1 - 1/L) × c_s / wanted, and the link carries layer_bytes in x seconds. Look at the ceiling first.",
        ),
        ((0.25, 2, 0.01, 200_000), (0.58, 30, 0.01, 200_000), (0.9, 24, 0.004, 50_000), (0.99, 30, 0.01, 200_000)),
        lambda h, n, c, nbytes: nbytes * h / ((1 - 1 / n) * c),
        "no link reaches an H above the ceiling 1 - 1/L; say None there",
        lambda h, n, c, nbytes: None if h > 1 - 1 / n else nbytes * h / c,
        "H is c/x times the ceiling 1 - 1/L, and the ceiling is missing",
        lambda h, n, c, nbytes: nbytes * h / c,
        "H is c/x times the ceiling 1 - 1/L: put the ceiling in, and say None for an H above it",
        lambda h, n, c, nbytes: None if h > 1 - 1 / n else (1 - 1 / n) * c / h,
        "those are the seconds x that a layer may take; the link has to carry layer_bytes in them",
        lambda h, n, c, nbytes: None if h > 1 - 1 / n else nbytes / (h * (1 - 1 / n) * c),
        "a higher H needs a faster link, and yours gets slower: solve H = (1 - 1/L) * c/x for x again",
    ),
]

QUIZ = (
    ask(
        "b",
        "10 layers, c = 4 ms to compute one, x = 6 ms to copy one, no tail. How long is E?",
        "6 ms: only the last layer is exposed",
        "That would be so if the link kept up. It falls behind by 2 ms between every two layers.",
        "24 ms",
        "E = x + (L - 1) × (x - c) = 6 + 9 × 2. The link never rests from the first layer on.",
        "60 ms: all copies",
        "All copies take 60 ms, but the first one starts after 4 ms of 40. 36 ms of them are hidden.",
        "20 ms: 2 ms for each layer",
        "What queues is 2 ms between two layers, so nine times; and the last layer's own copy comes on top.",
    ),
    ask(
        "a",
        "c = x. Then the link becomes ten times as fast. What happens to H and E?",
        "H stays, E falls to a tenth",
        "H is at its ceiling 1 - 1/L from c = x on: one layer of L is exposed. How long that one takes is E.",
        "H rises to nearly 100 %, E stays",
        "The last layer is computed last, so without a tail its copy is outside: one of L. Its time does shrink.",
        "both stay: the link kept up before",
        "It did, and so nothing queued. But the last copy is exposed in both cases, and is now a tenth as long.",
        "H rises and E falls, each tenfold",
        "H cannot exceed 1 - 1/L without a tail, and it was there already.",
    ),
    ask(
        "c",
        "One request goes over two hops, one link after the other, and its H is above W. Why?",
        "H counts the copies of all requests, W those of one",
        "It is the other way round: H is of a request and what it waits for, W of all that was copied in the run.",
        "the second link is the faster one, so it has no part in E",
        "Both are alike. And the last layer has to cross the second one after token 1: that is part of E.",
        "while both links are at work, H counts two copies, W one stretch of time",
        "The hops also hide behind each other. W asks only how long anything was copied, and for how much of that time "
        "prefill ran.",
    ),
    ask(
        "b",
        "Six requests on `split`: W is high and H is 0. Who is content, and who is not?",
        "users are, since their copies overlap with prefill; the devices are idle",
        "W is about devices: while K/V travel some prefill runs, so they are busy. H is about what a request waits "
        "for.",
        "devices are busy, and each user waits for a whole copy",
        "While one request's K/V travel, the next one is in prefill. That helps nobody who waits for token 2.",
        "nobody: H = 0 says that nothing overlaps",
        "Copies and prefills do overlap, of different requests. That is what W says.",
    ),
    ask(
        "a",
        "A layer's bytes take 6 ms, c is 10 ms. With 8 ms of fixed cost two layers a copy are best. And with none?",
        "one: the link keeps up alone, and the last copy is shortest",
        "6 ms are below 10: nothing queues. Then only the last copy is exposed, and a smaller one ends sooner.",
        "two, as before",
        "They were needed to share the fixed cost. Without it one layer a copy keeps up, and E is 6 ms, not 12.",
        "thirty: one copy has the least overhead",
        "Then E is 30 × 6 ms: all of it after prefill.",
    ),
)
