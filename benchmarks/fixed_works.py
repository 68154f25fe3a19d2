"""The requests that benches serve: works A, B and C, each the same for every engine and on every day."""

import random

from disagg.plan.request import Request
from disagg.run.model.model import Model
from disagg.show.example_prompts import prompts


def work_c(model: Model, times: int = 1) -> list[Request]:
    """16 prompts of 32 to 256 tokens, 32 new tokens each, greedy, end of sequence ignored; more with other texts."""
    lengths = [32 + round(224 * index / 15) for index in range(16)]
    random.Random(0).shuffle(lengths)
    lengths *= times
    return [Request(prompt, 32, ignore_eos=True) for prompt in prompts(model, lengths)]


def work_a(vocab: int, seed: int, count: int = 64, lengths: tuple = (128, 512, 1024), new: int = 64) -> list[Request]:
    """Prompts of lengths drawn from three; the lengths are always the same, the ids follow the seed."""
    drawn = random.Random(0).choices(lengths, k=count)
    return [Request(prompt, new, ignore_eos=True) for prompt in random_ids(drawn, vocab, seed)]


def work_b(vocab: int, seed: int, count: int = 256, least: int = 100, most: int = 1024) -> list[Request]:
    """As nano-vllm's own bench: lengths in and out drawn evenly, always the same; the ids follow the seed."""
    draw = random.Random(0)
    lengths = [(draw.randint(least, most), draw.randint(least, most)) for _ in range(count)]
    texts = random_ids([first for first, _ in lengths], vocab, seed)
    return [Request(ids, new, ignore_eos=True) for ids, (_, new) in zip(texts, lengths, strict=True)]


def random_ids(lengths: list[int], vocab: int, seed: int) -> list[list[int]]:
    """Ids below 10,000 that no other seed gives: no engine may know a prompt from the round before."""
    draw = random.Random(f"ids {seed}")
    return [[draw.randrange(min(10_000, vocab - 1)) for _ in range(length)] for length in lengths]
