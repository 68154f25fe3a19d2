"""Prompts for notebooks, the demo and `watch`: real English text, cut to given lengths, and questions."""

import random
from pydoc_data.topics import topics  # Python's own language reference: real text on every machine, no download

from disagg.run.model.model import Model


def prompts(model: Model, lengths: list[int], skip: int = 0) -> list[list[int]]:
    """Token ids of real text, a different prompt for each length."""
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


def long_tail(count: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths as chats have them: most short, a few very long (log-normal)."""
    draw = random.Random(seed)
    return [min(longest, max(8, round(draw.lognormvariate(4.2, 1.0)))) for _ in range(count)]


QUESTIONS = (
    "Why is the sky blue?",
    "Name three primary colours and say what you get when you mix them.",
    "What is the capital of France?",
    "Write a short poem about the sea, the wind and a small boat.",
    "Count from one to ten.",
    "What is a list in Python?",
    "List the days of the week.",
)
