"""From logits to token ids. A drawn token depends on its logits, seed and position, never on who shares the batch."""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch

from disagg.plan.request import Sampling


class Draw(NamedTuple):
    """Whose token a row of logits gives: the place it will take in its request, and which new token it is."""

    request: int
    sampling: Sampling
    position: int
    token_index: int


def pick_tokens(logits: torch.Tensor, draws: list[Draw], keep: Callable[[int, torch.Tensor], None]) -> tuple[int, ...]:
    """Next token of each row of logits [B, vocab]: forced, greedy or drawn; rows asked for go to `keep`."""
    tokens = logits.argmax(dim=-1).tolist()  # the one wait of a step: the ids are needed on the host
    for row, draw in enumerate(draws):
        sampling = draw.sampling
        if sampling.keep_logits:
            keep(draw.request, logits[row].clone())
        if sampling.force_ids is not None:
            tokens[row] = sampling.force_ids[draw.token_index]
        elif sampling.temperature > 0.0:
            tokens[row] = draw_token(logits[row], sampling, draw.position)
    return tuple(tokens)


def draw_token(logits: torch.Tensor, sampling: Sampling, position: int) -> int:
    """One token by inverse CDF in fp64 over the smallest set of tokens whose mass reaches top_p."""
    scores, order = logits.double().sort(descending=True, stable=True)
    mass = torch.softmax(scores / sampling.temperature, dim=-1).cumsum(dim=-1)
    kept = min(int((mass < sampling.top_p * float(mass[-1])).sum()) + 1, len(mass))
    target = uniform(sampling.seed, position) * mass[kept - 1]
    chosen = int(torch.searchsorted(mass[:kept], target, right=True))
    return int(order[min(chosen, kept - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) made of seed and position alone; the string seed is hashed by sha512, equal everywhere."""
    return random.Random(f"disagg {seed} {position}").random()
