"""Exercises of notebooks/03_layer_streaming.ipynb."""

from disagg.course.exercise import exercise


def exposed_one_hop(layers: int, c: float, x: float, tail: float) -> float:
    return max(0, x + (layers - 1) * max(0, x - c) - tail)


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
        exposed_one_hop,
        "E of a streamed hand-off over one hop, where prefill still works for `tail` after the last hand-off.",
        "Add the last copy and what has queued before it, then take away the tail.",
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
    ),
    exercise(
        exposed_in_groups,
        "E where `group` layers share a copy: a copy costs `fixed` once, and `b` for each layer in it. No tail.",
        "The law with copies in place of layers: how many are there, how long is one, how long is a group computed?",
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
        "Solve H = (1 - 1/L) * c/x for x; the link carries layer_bytes in x seconds.",
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
