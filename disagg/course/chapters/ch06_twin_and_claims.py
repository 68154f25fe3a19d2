"""Exercises and questions of notebooks/06_twin_and_claims.ipynb."""

import math
import statistics

from disagg.course.exercise import exercise
from disagg.course.questions import ask


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

QUIZ = (
    ask(
        "b",
        "All predicted TTFTs are below the measured ones. What helps?",
        "to average over more runs, until errors cancel",
        "An average makes noise small. This error has the same sign each time, and an average keeps it.",
        "to find what the price list leaves out",
        "Errors with one sign are a bias: some part of a pass is not in the prices. The picture shows where the "
        "boxes part.",
        "nothing is wrong as long as H is right",
        "H is a share and is easily right. Whoever plans by the TTFT is misled each time, in the same direction.",
    ),
    ask(
        "a",
        "25 GbE costs two L4s nothing and two H100s half of their hiding. Why?",
        "the H100 computes a layer faster, so c/x is smaller",
        "x stayed, c shrank. The same link is behind a fast device and keeps up with a slow one.",
        "the H100 has to send more bytes",
        "K/V have the same bytes on both: the model is the same.",
        "the H100 cannot use so slow a link, and waits for it all the time",
        "It does use it, for as many bytes a second as the L4. What differs is the time it has to hide them in.",
    ),
    ask(
        "c",
        "Under a tight TPOT limit, with chunks of 2,048 tokens, the split has several times the goodput of its rival. "
        "What makes that gain vanish?",
        "more requests",
        "Goodput is already the highest rate at which limits are kept. It is a number of the limit, not of one rate.",
        "a faster link",
        "The split's link is not its problem here; a faster one could only help it.",
        "a limit that is less than twice as wide, or smaller chunks",
        "With room for a slower token now and then, the rival keeps its promise too. Smaller chunks do it as well, "
        "under the old limit.",
    ),
    ask(
        "b",
        '"The pipeline gives 20 × the tokens a second of one request at a time." What do you ask first?',
        "whether the link was fast enough",
        "It was, or the gain would be less. The question is what else differs from the rival.",
        "what one device gives that shares its steps and splits nothing",
        "`colocated` gives nearly as much on one device. So the gain is that of shared steps, and no evidence for "
        "splitting.",
        "on which GPU it was measured, and how many of its FLOPs were really used",
        "That matters for every number. But on the same GPU too, the rival decides what the factor says.",
    ),
    ask(
        "d",
        "On the map the split wins with prompts of middle length. Why does it lose where prompts are longer still?",
        "their K/V are so many that the link is busy for longer than the answer takes",
        "A link carries any number of bytes, in its time. Without any limit of the link it loses there too.",
        "long prompts do not disturb others",
        "They do, and the more the longer they are. That is what the split removes.",
        "their decode steps are too long",
        "Steps are alike in both. Look at where prompts have to wait.",
        "they queue for the one device that prefills, and the rival has two",
        "What they spare the others is less than what they wait for each other.",
    ),
)
