"""Arrivals made by chance, the same for the same seed: how requests come, and how long they and their answers are.

    arrivals = poisson(500, per_s=4, prompt=Lengths(median=400, spread=1.0), new=Lengths(median=60), seed=1)
    requests = requests_of(arrivals, vocab=49_152)

They are of the same kind as those of a trace (traces.py), so either may be scaled, served or simulated.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from disagg.plan.checks import is_number, is_whole, short
from disagg.plan.errors import RequestError
from disagg.plan.request import Request
from disagg.plan.traces import Arrival

DAY_S = 86_400.0


@dataclass(frozen=True)
class Lengths:
    """Tokens, log-normal: half are shorter than the median; a `spread` of 0 makes all alike, 1 gives a long tail."""

    median: float
    spread: float = 0.0  # standard deviation of the logarithm
    least: int = 1
    most: int = 100_000

    def __post_init__(self):
        if not is_number(self.median, 1, 1e7) or not is_number(self.spread, 0, 5):
            raise RequestError(
                f"Lengths takes a median of 1 token or more, and a spread from 0 to 5; got {short(self.median)} and "
                f"{short(self.spread)}"
            )
        if not is_whole(self.least) or not is_whole(self.most) or not 1 <= self.least <= self.most:
            raise RequestError(f"Lengths needs 1 ≤ least ≤ most; got {short(self.least)} and {short(self.most)}")

    def draw(self, dice: random.Random) -> int:
        drawn = self.median * math.exp(self.spread * dice.gauss(0.0, 1.0)) if self.spread else self.median
        return min(self.most, max(self.least, round(drawn)))


def poisson(count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int = 0) -> list[Arrival]:
    """Nobody knows of anybody else: gaps are exponential."""
    return _arrivals(count, per_s, prompt, new, seed, lambda dice, at_s: dice.expovariate(per_s))


def bursts(
    count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int = 0, variation: float = 3.0
) -> list[Arrival]:
    """Gaps are gamma distributed, with this coefficient of variation: 1 is Poisson, more comes in bursts.

    (BurstGPT measured such arrivals; Wang and others, 2024.)
    """
    if not is_number(variation, 0.05, 20):
        raise RequestError(f"variation must be a number from 0.05 to 20; got {short(variation)}")
    shape = 1 / variation**2
    return _arrivals(count, per_s, prompt, new, seed, lambda dice, at_s: dice.gammavariate(shape, 1 / (shape * per_s)))


def day(
    count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int = 0, swing: float = 0.8, day_s: float = DAY_S
) -> list[Arrival]:
    """Poisson, more by day than by night: the rate is per_s · (1 + swing · sin), one period a day, from noon's rise on.

    By thinning (Lewis and Shedler, 1979).
    """
    if not is_number(swing, 0, 1):
        raise RequestError(f"swing must be a number from 0 to 1; got {short(swing)}")
    top = per_s * (1 + swing)

    def gap(dice: random.Random, at_s: float) -> float:
        start = at_s
        while True:
            at_s += dice.expovariate(top)
            if dice.random() * top <= per_s * (1 + swing * math.sin(2 * math.pi * at_s / day_s)):
                return at_s - start

    return _arrivals(count, per_s, prompt, new, seed, gap)


def conversations(
    count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int = 0, turns: int = 4, pause_s: float = 20.0
) -> list[Arrival]:
    """So many conversations of `turns` questions each: every prompt is all that was said before, and a new question.

    `blocks` names the conversation and the turn: by it `requests_of` gives the prompts of one their common beginning.
    """
    _check("turns", turns, 1, 1000)
    dice, found = random.Random(f"conversations {seed}"), []
    for number, first in enumerate(poisson(count, per_s, prompt, new, seed)):
        at_s, said = first.at_s, 0
        for turn in range(turns):
            asked = first.prompt_tokens if turn == 0 else prompt.draw(dice)
            answer = first.new_tokens if turn == 0 else new.draw(dice)
            found.append(Arrival(at_s, said + asked, answer, (number, turn)))
            said += asked + answer
            at_s += dice.expovariate(1 / pause_s)
    return sorted(found, key=lambda arrival: arrival.at_s)


def requests_of(arrivals: list[Arrival], vocab: int, seed: int = 0, most: int | None = None) -> list[Request]:
    """Requests with drawn token ids of these lengths; prompts of one conversation begin alike. `most` cuts prompt and
    answer to a model's context."""
    _check("vocab", vocab, 1, 2**31)
    made, words = [], list(range(vocab))  # equal ids are one object: an hour of a trace has millions
    for index, arrival in enumerate(arrivals):
        dice = random.Random(f"ids {seed} {arrival.blocks[0] if arrival.blocks else f'alone {index}'}")
        new = max(1, arrival.new_tokens)
        length = max(1, arrival.prompt_tokens if most is None else min(arrival.prompt_tokens, most - new))
        made.append(Request(tuple(dice.choices(words, k=length)), new, arrival.at_s, ignore_eos=True))
    return made


def _arrivals(
    count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int, gap: Callable[[random.Random, float], float]
) -> list[Arrival]:
    _check("count", count, 1, 10_000_000)
    if not is_number(per_s, 1e-9, 1e9):
        raise RequestError(f"per_s must be requests a second, above 0; got {short(per_s)}")
    when, sizes, at_s, found = random.Random(f"when {seed}"), random.Random(f"sizes {seed}"), 0.0, []
    for _ in range(count):
        found.append(Arrival(at_s, prompt.draw(sizes), new.draw(sizes)))
        at_s += gap(when, at_s)
    return found


def _check(name: str, value, least: int, most: int):
    if not is_whole(value) or not least <= value <= most:
        raise RequestError(f"{name} must be a whole number, {least} to {most:,}; got {short(value)}")
