"""Exercises of notebooks/06_twin_and_claims.ipynb."""

import math
import statistics

from disagg.course.exercise import exercise


def even_tokens(itemsize: int, flops_per_s: float, products: float, bytes_per_s: float, reading: float) -> float:
    return math.ceil(itemsize * products * flops_per_s / (2 * reading * bytes_per_s))


def fitted_share(counted: list[float], took: list[float]) -> float:
    ratios = [least / seconds for least, seconds in zip(counted, took, strict=True)]
    return sum(ratio**2 for ratio in ratios) / sum(ratios)


def gain_factors(rates: dict[str, float]) -> tuple[float, float, float]:
    one, shared, both, split = (rates[who] for who in ("baseline", "colocated", "two_colocated", "dynamic"))
    return shared / one, both / shared, split / both


def ratios_of(counted: list[float], took: list[float]) -> list[float]:
    return [least / seconds for least, seconds in zip(counted, took, strict=True)]


EXERCISES = [
    exercise(
        even_tokens,
        "The least number of prompt tokens for which a pass computes as long as it reads its weights, or longer.",
        (
            "The number of weights stands on both sides: what is left when it is gone?",
            "2 × tokens / (products × flops_per_s) is at least itemsize / (reading × bytes_per_s).",
            "Solve for tokens, and round up with math.ceil: half a token can't be prefilled.",
        ),
        ((2, 121e12, 0.66, 300e9, 0.75), (2, 989e12, 0.5, 3350e9, 0.8), (4, 0.1e12, 0.83, 11e9, 0.9)),
        lambda itemsize, flops, products, rate, reading: math.ceil(itemsize * flops / (2 * rate)),
        "those are the peaks of a data sheet; each is reached to its own share",
        lambda itemsize, flops, products, rate, reading: math.ceil(itemsize * products * flops / (reading * rate)),
        "each weight costs two FLOPs for every token: a product and a sum",
        lambda itemsize, flops, products, rate, reading: math.ceil(products * flops / (2 * reading * rate)),
        "a weight is read in bytes, and it has `itemsize` of them",
        lambda itemsize, flops, products, rate, reading: math.floor(itemsize * products * flops / (2 * reading * rate)),
        "with one token fewer it still reads longer than it computes: round up",
        lambda itemsize, flops, products, rate, reading: itemsize * products * flops / (2 * reading * rate),
        "a part of a token is no token: round up to a whole one",
    ),
    exercise(
        fitted_share,
        "The share of a peak for which the squares of the relative errors have the least sum.",
        (
            "Write down the sum of squares for two works before you think of many.",
            "With r = counted / took and s = 1 / share, the sum of (r × s - 1)² has to be least over s.",
            "Its derivative is 0 where s × sum(r²) = sum(r). And the share is 1 / s.",
        ),
        (([10, 20, 40], [25, 30, 50]), ([3, 3, 3], [4, 5, 6]), ([1, 2], [4, 2.5]), ([5, 500, 50], [8, 900, 60])),
        lambda counted, took: sum(counted) / sum(took),
        "so a long work counts more than a short one: make the relative errors small, not the seconds",
        lambda counted, took: statistics.mean(ratios_of(counted, took)),
        "the mean of the ratios fits their mean, and not the squares of the relative errors",
        lambda counted, took: statistics.median(ratios_of(counted, took)),
        "the median makes the sum of the distances small; here it is the sum of squares",
        lambda counted, took: 1 / fitted_share(counted, took),
        "that is one over the share: the model takes counted / share, so a share is below 1 here",
        lambda counted, took: sum(c * t for c, t in zip(counted, took, strict=True)) / sum(t * t for t in took),
        "these are squares of seconds; divide each error by what was measured first",
    ),
    exercise(
        gain_factors,
        "What sharing steps, a second device, and splitting each multiply the tokens a second by.",
        (
            "Between two neighbours of the chain exactly one thing changes.",
            "Divide each rate by that of the preset just before it: colocated by baseline, and so on.",
            "The last factor is dynamic / two_colocated: both have two devices. The product of all is dynamic / "
            "baseline.",
        ),
        (
            ({"baseline": 10, "colocated": 40, "two_colocated": 80, "dynamic": 50},),
            ({"baseline": 16, "colocated": 20, "two_colocated": 32, "dynamic": 48},),
            ({"dynamic": 6, "two_colocated": 3, "colocated": 2, "baseline": 1},),
        ),
        lambda rates: tuple(rates[who] / rates["baseline"] for who in ("colocated", "two_colocated", "dynamic")),
        "all of these are over the baseline; divide each by the one before it, so that one thing changes",
        lambda rates: (
            rates["colocated"] / rates["baseline"],
            rates["two_colocated"] / rates["colocated"],
            rates["dynamic"] / rates["colocated"],
        ),
        "splitting takes two devices, so its rival has two as well",
        lambda rates: (
            rates["colocated"] - rates["baseline"],
            rates["two_colocated"] - rates["colocated"],
            rates["dynamic"] - rates["two_colocated"],
        ),
        "those are differences in tokens a second; the exercise asks for factors",
        lambda rates: tuple(1 / factor for factor in gain_factors(rates)),
        "upside down: a gain is what comes later over what was before",
    ),
]

QUIZ = ()
