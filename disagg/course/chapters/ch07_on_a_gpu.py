"""Exercises of notebooks/07_on_a_gpu.ipynb."""

from disagg.course.exercise import exercise


def step_floor_ms(weight_bytes: float, token_bytes: float, contexts: list[int], bytes_per_s: float) -> float:
    return 1e3 * (weight_bytes + token_bytes * sum(contexts)) / bytes_per_s


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
        step_floor_ms,
        "Milliseconds that the bytes of a decode step take; contexts has a number of tokens for each row.",
        "Bytes of the weights, once, and of the K/V of all rows; divide by bytes a second.",
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
    ),
    exercise(
        eager_us,
        "When the last kernel ends: the host launches one every `host` µs, the device runs them in order.",
        "A kernel begins when the one before has ended and its own launch is over, whichever is later.",
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
        "Keep the rows whose gap is at most `limit`; of those, which has the largest share? None, if none is left.",
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
