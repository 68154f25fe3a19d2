"""Random arrivals, equal for equal seeds: times of requests, and lengths of prompts and answers.

    arrivals = poisson(500, per_s=4, prompt=Lengths(median=400, spread=1.0), new=Lengths(median=60), seed=1)
    requests = requests_of(arrivals, vocab=49_152)

They have the type of a trace's arrivals (traces.py), so both can be scaled, served or simulated.
"""

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from disagg.plan.checks import is_number, is_whole, short
from disagg.plan.errors import RequestError
from disagg.plan.request import Request
from disagg.twin.traces import Arrival

DAY_S = 86_400.0
KNOWN_VOCAB = 1_000_000
MOST_BLOCKS = 2**24  # of a conversation: more than its tokens


@dataclass(frozen=True)
class Lengths:
    """Tokens, log-normal: half are shorter than the median; a `spread` of 0 makes all alike, 1 gives a long tail."""

    median: float
    spread: float = 0.0  # standard deviation of the logarithm
    least: int = 1
    most: int = 100_000

    def __post_init__(self) -> None:
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
    """Requests come independently of one another: gaps are exponential."""
    return _arrivals(count, per_s, prompt, new, seed, lambda dice, at_s: dice.expovariate(per_s))


def bursts(
    count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int = 0, variation: float = 3.0
) -> list[Arrival]:
    """Gaps are gamma distributed with this coefficient of variation: 1 is Poisson, more gives bursts, as BurstGPT
    measured (Wang and others, 2024)."""
    if not is_number(variation, 0.05, 20):
        raise RequestError(f"variation must be a number from 0.05 to 20; got {short(variation)}")
    shape = 1 / variation**2
    return _arrivals(count, per_s, prompt, new, seed, lambda dice, at_s: dice.gammavariate(shape, 1 / (shape * per_s)))


def day(
    count: int, per_s: float, prompt: Lengths, new: Lengths, seed: int = 0, swing: float = 0.8, day_s: float = DAY_S
) -> list[Arrival]:
    """Poisson, more by day than by night: the rate is per_s · (1 + swing · sin), one period a day, from noon's rise on,
    by thinning (Lewis and Shedler, 1979)."""
    if not is_number(swing, 0, 1):
        raise RequestError(f"swing must be a number from 0 to 1; got {short(swing)}")
    _check_seconds("day_s", day_s)

    def gap(dice: random.Random, at_s: float) -> float:
        start, top = at_s, per_s * (1 + swing)
        while True:
            at_s += dice.expovariate(top)
            if dice.random() * top <= per_s * (1 + swing * math.sin(2 * math.pi * at_s / day_s)):
                return at_s - start

    return _arrivals(count, per_s, prompt, new, seed, gap)


def conversations(
    count: int,
    per_s: float,
    prompt: Lengths,
    new: Lengths,
    seed: int = 0,
    turns: int = 4,
    pause_s: float = 20.0,
    system: int = 0,
) -> list[Arrival]:
    """Conversations of `turns` questions each: a prompt is the conversation so far and a new question. All begin with
    the same `system` tokens; `blocks` of an arrival shows the prefixes that prompts share."""
    _check("turns", turns, 1, 1000)
    _check("system", system, 0, 1_000_000)
    _check_seconds("pause_s", pause_s)
    dice, found = random.Random(f"conversations {seed}"), []
    for number, first in enumerate(poisson(count, per_s, prompt, new, seed)):
        at_s, so_far = first.at_s, system
        for turn in range(turns):
            so_far += first.prompt_tokens if turn == 0 else prompt.draw(dice)
            answer = first.new_tokens if turn == 0 else new.draw(dice)
            found.append(_turn(at_s, so_far, answer, number, system))
            so_far += answer
            at_s += dice.expovariate(1 / pause_s)
    return sorted(found, key=lambda arrival: arrival.at_s)


def _turn(at_s: float, prompt_tokens: int, new_tokens: int, conversation: int, system: int) -> Arrival:
    """The system prompt is one block, 0, and the conversation's own blocks follow, in the same size."""
    size, first = system or 512, 1 + conversation * MOST_BLOCKS
    own = range(first, first + math.ceil((prompt_tokens - system) / size))
    return Arrival(at_s, prompt_tokens, new_tokens, (*((0,) if system else ()), *own), size)


def requests_of(arrivals: list[Arrival], vocab: int, seed: int = 0, most: int | None = None) -> list[Request]:
    """Requests with random token ids of these lengths; blocks of one name are equal. `most` cuts prompt and answer to a
    model's context."""
    _check("vocab", vocab, 1, 2**31)
    made: list[Request] = []
    # In a list equal ids are one object: an hour of a trace has millions. No tokenizer has more than KNOWN_VOCAB.
    ids: Sequence[int] = list(range(vocab)) if vocab <= KNOWN_VOCAB else range(vocab)
    for index, arrival in enumerate(arrivals):
        new = max(1, arrival.new_tokens)
        length = max(1, arrival.prompt_tokens if most is None else min(arrival.prompt_tokens, most - new))
        prompt = _prompt(arrival, length, ids, f"ids {seed}", index)
        made.append(Request(tuple(prompt), new, arrival.at_s, ignore_eos=True))
    return made


def _prompt(arrival: Arrival, length: int, ids: Sequence[int], seed: str, index: int) -> list[int]:
    """The named blocks in order, the last one cut, and random tokens where no block is named."""
    prompt: list[int] = []
    for name in arrival.blocks:
        if len(prompt) >= length:
            break
        size = min(arrival.block_tokens, length - len(prompt))
        prompt += random.Random(f"{seed} block {name}").choices(ids, k=size)
    return prompt + random.Random(f"{seed} alone {index}").choices(ids, k=length - len(prompt))


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


def _check(name: str, value: Any, least: int, most: int) -> None:
    if not is_whole(value) or not least <= value <= most:
        raise RequestError(f"{name} must be a whole number, {least} to {most:,}; got {short(value)}")


def _check_seconds(name: str, value: Any) -> None:
    if not is_number(value, 1e-9, 1e9):
        raise RequestError(f"{name} must be seconds, above 0; got {short(value)}")


def common(one: Sequence[int], other: Sequence[int]) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(index for index in range(shorter) if one[index] != other[index])


def reusable_tokens(requests: Iterable[Request]) -> int:
    """Prompt tokens in a prefix of an earlier prompt, which an ideal prefix cache would save. A prompt's last token is
    always computed, since it gives token 1; K/V of answers do not count."""
    seen: list[tuple[Any, ...]] = []  # sorted: a neighbour has the longest common prefix
    saved = 0
    for request in sorted(requests, key=lambda request: request.arrival_s):
        prompt: tuple[Any, ...] = tuple(request.prompt)
        place = bisect(seen, prompt)
        longest = max((common(prompt, other) for other in seen[max(0, place - 1) : place + 1]), default=0)
        saved += min(longest, len(prompt) - 1)
        seen.insert(place, prompt)
    return saved
