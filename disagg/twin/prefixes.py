"""Prompts that begin alike: how many of a workload's tokens an ideal prefix cache would not compute again.

Nothing here is cached: the engine computes every prompt whole (README, "What is left out").
"""

from bisect import bisect
from collections.abc import Iterable, Sequence

from disagg.plan.request import Request


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(index for index in range(shorter) if one[index] != other[index])


def reusable_tokens(requests: Iterable[Request]) -> int:
    """Prompt tokens that an earlier prompt began with too: what a cache without limits would save.

    A prompt's last token is always computed, for token 1 comes out of it. K/V of answers count for nothing: drawn
    prompts hold other words than were answered.
    """
    seen: list[Sequence[int]] = []  # sorted: the longest common beginning is a neighbour's
    saved = 0
    for request in sorted(requests, key=lambda request: request.arrival_s):
        prompt, place = tuple(request.prompt), bisect(seen, tuple(request.prompt))
        longest = max((common(prompt, other) for other in seen[max(0, place - 1) : place + 1]), default=0)
        saved += min(longest, len(prompt) - 1)
        seen.insert(place, prompt)
    return saved
