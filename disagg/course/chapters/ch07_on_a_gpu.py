"""Exercises and questions of notebooks/07_on_a_gpu.ipynb."""

from disagg.course.exercise import exercise
from disagg.course.questions import ask


def readers_on(memory: int, per_ms: int, gap: int, weights: int, row: int) -> tuple[int, str]:
    held, read = (memory - weights) // row, (per_ms * gap - weights) // row
    return max(0, min(held, read)), "memory" if held < read else "gap"


def eager_us(host: int, kernels: list[int]) -> int:
    end = 0
    for number, device in enumerate(kernels, 1):
        end = max(end, number * host) + device
    return end


def decode_sms(table: list, limit: float) -> int | None:
    within = [(kept, sms) for sms, gap, kept in table if gap <= limit]
    return max(within)[1] if within else None


def shortest_gap(table: list, limit: float) -> int | None:
    gap, sms = min((gap, sms) for sms, gap, kept in table)
    return sms if gap <= limit else None


def share_within(table: list, limit: float) -> float | None:
    return max((kept for sms, gap, kept in table if gap <= limit), default=None)


def strictly_below(table: list, limit: float) -> int | None:
    within = [(kept, sms) for sms, gap, kept in table if gap < limit]
    return max(within)[1] if within else None


def launched_from_zero(host: int, kernels: list[int]) -> int:
    end = 0
    for number, device in enumerate(kernels):
        end = max(end, number * host) + device
    return end


EXERCISES = [
    exercise(
        readers_on,
        """
        **1. How many readers?** (2 lines; a design). All readers of a GPU have the same context, whose K/V take
        `row` MB; the weights take `weights` MB. Two limits: everything has to fit into `memory` MB, and a step,
        at the floor, may take at most `gap` ms where memory gives `per_ms` MB a ms. How many readers, and which
        limit is it: `"memory"` or `"gap"`? Give a pair. (Where both say the same, say `"gap"`. Where not even
        the weights are in time or have room, there are 0 readers.)

        ```text
        memory    |■■■■■■ weights ■■■■■■|▒row▒|▒row▒|▒row▒|▒row▒|▒
        gap       |■■■■■■ weights ■■■■■■|▒row▒|▒row▒|                per_ms × gap can be read
        ```

        Skeleton: `def readers_on(memory, per_ms, gap, weights, row): ...`
        """,
        (
            "Each limit is a number of MB. What is in those MB besides the rows?",
            "Both hold the weights once, whatever the number of rows: take them off, and divide by `row`.",
            "(memory - weights) // row and (per_ms × gap - weights) // row. The smaller one counts, and never below 0.",
        ),
        (
            (24_000, 300, 60, 16_000, 134),
            (80_000, 3_000, 30, 16_000, 134),
            (80_000, 2_000, 10, 16_000, 1_074),
            (20_000, 300, 50, 16_000, 134),
            (20_000, 2_000, 10, 16_000, 500),
        ),
        lambda memory, per_ms, gap, weights, row: ((memory - weights) // row, "memory"),
        "those have room; but can a step read all of it within the gap?",
        lambda memory, per_ms, gap, weights, row: (max(0, (per_ms * gap - weights) // row), "gap"),
        "those are read in time; but do all of them have room?",
        lambda memory, per_ms, gap, weights, row: (
            min(memory // row, per_ms * gap // row),
            "memory" if memory < per_ms * gap else "gap",
        ),
        "the weights need room too, and are read in every step",
        lambda memory, per_ms, gap, weights, row: (
            min(memory, per_ms * gap) // (weights + row),
            "memory" if memory < per_ms * gap else "gap",
        ),
        "the rows share the weights: they are there, and are read, once",
        lambda memory, per_ms, gap, weights, row: (
            min((memory - weights) // row, (per_ms * gap - weights) // row),
            readers_on(memory, per_ms, gap, weights, row)[1],
        ),
        "there are no negative readers: where the weights alone are too much, give 0",
    ),
    exercise(
        eager_us,
        "When the last kernel ends: the host launches one every `host` µs, the device runs them in order.",
        (
            "Draw two rows, host and device, and mark what each kernel waits for.",
            "Launch number n is over at n × host. The kernel before is over at `end`.",
            "For number, device in enumerate(kernels, 1): end = max(end, number × host) + device.",
        ),
        ((10, [3, 3, 3, 3]), (10, [40, 40, 40]), (10, [5, 60, 5, 5]), (8, [1]), (4, [9, 1, 1, 1, 1, 30])),
        lambda host, kernels: sum(host + device for device in kernels),
        "host and device work at the same time: the next launch does not wait for the kernel before",
        lambda host, kernels: max(host * len(kernels), sum(kernels)),
        "nearly: but no kernel begins before its own launch, and the last one still runs after that",
        lambda host, kernels: host + sum(kernels),
        "that is a graph, with one launch for all; here each kernel waits for a launch of its own",
        launched_from_zero,
        "the first launch takes `host` too: kernel 1 can begin at `host`, not at 0",
    ),
    exercise(
        decode_sms,
        "How many SMs decode gets: of the splits whose gap is at most `limit`, the one that keeps most of prefill.",
        (
            "First sort out, then choose: which rows keep the promise?",
            "Keep the rows with gap <= limit. Among them the largest share of prefill counts.",
            "max over the rows left, with key=lambda row: row[2], and its first entry; None if no row is left.",
        ),
        (
            ([(10, 40, 0.9), (20, 25, 0.8), (30, 20, 0.6)], 25),
            ([(10, 40, 0.9), (20, 25, 0.8), (30, 20, 0.6)], 22),
            ([(10, 40, 0.9), (20, 25, 0.8), (30, 20, 0.6)], 100),
            ([(10, 40, 0.9), (20, 25, 0.8), (30, 20, 0.6)], 5),
            ([(64, 9, 0.4), (16, 30, 0.85), (48, 11, 0.55)], 30),
        ),
        shortest_gap,
        "the shortest gap is more than was asked for, and prefill pays for it",
        strictly_below,
        "a gap of exactly `limit` is within it",
        share_within,
        "that is the share of prefill; the exercise asks for the number of SMs",
        lambda table, limit: max(table, key=lambda row: row[2])[0],
        "the gap has to stay within `limit` first, and where no split does that the answer is None",
    ),
]

QUIZ = (
    ask(
        "b",
        "16 rows with a context of 1,024 tokens become 16 rows with 8,192. Which part of the floor grows?",
        "the weights: longer texts need more of them",
        "A step reads every weight once, whatever it is used for.",
        "the K/V: eight times as many bytes for each row",
        "K/V are read for each token that a row looks back on. The weights are as before, so the floor grows by "
        "less than eight.",
        "none: the floor depends on the number of rows",
        "It depends on rows and contexts: the bytes are weights plus K/V of all tokens of all rows.",
    ),
    ask(
        "c",
        "Eager: 400 kernels of 10 µs, and 50 µs of the host for each. You buy a GPU that takes 5 µs a kernel. The "
        "step?",
        "half as long: the device does the work",
        "The device waits for launches in most of that time. It would only wait longer.",
        "a tenth shorter: the device's part of the time is half as long",
        "They run at the same time. Only the slower of the two is the length of the step.",
        "practically as long: the host takes 400 × 50 µs",
        "20 ms for launches, and the last kernel behind them. One launch for all, a graph, is what helps here.",
    ),
    ask(
        "b",
        "Two workers on one GPU, each with a stream. Decode's stream gets the highest priority. Why do gaps stay long?",
        "priority is for copies, not for kernels",
        "It is for kernels, and it does choose which one comes next. But next is not now.",
        "a kernel that runs is not taken off its SMs",
        "A large product fills all SMs, and each of hundreds of small kernels of a step waits until some are free.",
        "the link is full of K/V, so decode waits for its copies",
        "Both workers are on one GPU and share its memory. What they wait for is SMs.",
    ),
    ask(
        "a",
        "Decode gets a quarter of the SMs. Why does a step not take four times as long?",
        "it is limited by memory, and a quarter of the SMs reads more than a quarter",
        "Decode needs bytes more than FLOPs, and memory is not divided. A few SMs can ask for a large part of it.",
        "it does take four times as long, and prefill makes up for that by ending sooner",
        "Its steps do get slower beside a prompt. But only FLOPs are divided by four, and a step does not lack those.",
        "the weights are divided, too",
        "Decode reads all weights in each step, with any number of SMs.",
    ),
    ask(
        "c",
        "Two hops of x = 2c each hide a larger share of the copying than one. Does the user wait less?",
        "yes: more is hidden, so less is exposed",
        "H is a share, and its whole has doubled. E is what is waited for.",
        "it is the same: the hops work at the same time, on different layers",
        "They do. But the last layer has to cross both, one after the other.",
        "no: E is longer by one copy, and twice as much is copied",
        "E = 2x + (L - 1)(x - c) against x + (L - 1)(x - c). So never print H alone.",
    ),
)
