"""From logits to token ids. A drawn token depends on its logits, seed and position, never on who shares the batch."""

import random
from dataclasses import dataclass

import torch

from disagg.plan.errors import RequestError


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy; top_p keeps the likeliest tokens up to that mass; seed fixes the draws."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0.0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature is {self.temperature!r}; it must be a number of at least 0 (0 is greedy)")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"top_p is {self.top_p!r}; it must lie above 0 and not above 1")


def sample(logits: torch.Tensor, params: list[SamplingParams], positions: list[int]) -> list[int]:
    """Next token of each row of logits [B, vocab]; positions name the place that the new token will take."""
    tokens = logits.argmax(dim=-1).tolist()  # the one wait of a step: the token ids are needed on the host
    for row, (_, param, position) in enumerate(zip(tokens, params, positions, strict=True)):
        if param.temperature > 0.0:
            tokens[row] = draw(logits[row], param, position)
    return tokens


def draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """One token by inverse CDF in fp64 over the smallest set of tokens whose mass reaches top_p."""
    scores, order = logits.double().sort(descending=True, stable=True)
    mass = torch.softmax(scores / params.temperature, dim=-1).cumsum(dim=-1)
    kept = int((mass < params.top_p * float(mass[-1])).sum()) + 1
    kept = min(kept, len(mass))
    target = uniform(params.seed, position) * mass[kept - 1]
    chosen = int(torch.searchsorted(mass[:kept], target, right=True))
    return int(order[min(chosen, kept - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) made of seed and position alone; the string seed is hashed by sha512, equal everywhere."""
    return random.Random(f"disagg {seed} {position}").random()
