"""Requests that benches and the demo serve: real English text, cut to given lengths."""

import random
from pydoc_data.topics import topics  # Python's own language reference: real text on every machine, no download

from disagg.plan.request import Request
from disagg.run.model import Model


def prompts(model: Model, lengths: list[int], skip: int = 0) -> list[list[int]]:
    """Token ids of real text, one prompt a length, no two alike."""
    need = skip + sum(lengths)
    ids: list[int] = []
    for name in sorted(topics):
        if len(ids) >= need:
            break
        ids += model.encode(topics[name], chat=False)
    cut, start = [], skip
    for length in lengths:
        cut.append((ids * (need // len(ids) + 1))[start : start + length])
        start += length
    return cut


def work_c(model: Model, times: int = 1) -> list[Request]:
    """16 prompts of 32 to 256 tokens, 32 new tokens each, greedy, end of sequence ignored; more with other texts."""
    lengths = [32 + round(224 * index / 15) for index in range(16)]
    random.Random(0).shuffle(lengths)
    lengths *= times
    return [Request(prompt, 32, ignore_eos=True) for prompt in prompts(model, lengths)]


def long_tail(count: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths as chats have them: most short, a few very long (log-normal)."""
    draw = random.Random(seed)
    return [min(longest, max(8, round(draw.lognormvariate(4.2, 1.0)))) for _ in range(count)]
