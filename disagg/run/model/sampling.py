"""From logits to token ids. A drawn token depends on its logits, seed and position, never on who shares the batch."""

import random
from typing import NamedTuple

import torch

from disagg.plan.request import Sampling
from disagg.run.reports import Reports


class Draw(NamedTuple):
    """Whose token a row of logits gives: the place it will take in its request, and which new token it is."""

    request: int
    sampling: Sampling
    position: int
    token_index: int


def pick_tokens(
    logits: torch.Tensor, draws: list[Draw], reports: Reports, picked: torch.Tensor | None = None
) -> tuple[int, ...]:
    """Next token of each row of logits [B, vocab]: forced, greedy or drawn. The request of a row whose best logit is
    not finite fails, and its token here is dropped. `picked`: what `greedy` gave, on the host."""
    tokens, finite = (
        greedy(logits) if picked is None else picked
    ).tolist()  # the one wait of a step: the ids are needed on the host
    for row, draw in enumerate(draws):
        sampling = draw.sampling
        if sampling.keep_logits:
            reports.keep(draw.request, logits[row].clone())
        if not finite[row]:
            reports.fail(draw.request, not_finite(draw.request, draw.token_index))
        elif sampling.force_ids is not None:
            tokens[row] = sampling.force_ids[draw.token_index]
        elif sampling.temperature > 0.0:
            tokens[row] = int(draw_token(logits[row], sampling, draw.position))
    return tuple(tokens)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """logits [B, vocab] -> int32 [2, B]: the best token of each row, and 1 where its logit is finite (NaN is best)."""
    best = logits.argmax(dim=-1, keepdim=True)
    return torch.cat([best, logits.gather(1, best).isfinite()], dim=1).int().T.contiguous()


def not_finite(request: int, token_index: int) -> str:
    return (
        f"request {request}: the logits of its new token {token_index} are not finite, so weights or activations "
        'overflow; take a wider type (dtype="float32"), or look for infinities in the weights'
    )


def draw_token(logits: torch.Tensor, sampling: Sampling, position: int) -> torch.Tensor:
    """One token id [] by inverse CDF in fp64 over the smallest set of tokens whose mass reaches top_p; no wait."""
    scores, order = logits.double().sort(descending=True, stable=True)
    mass = torch.softmax(scores / sampling.temperature, dim=-1).cumsum(dim=-1)
    last = (mass < sampling.top_p * mass[-1]).sum().clamp(max=len(mass) - 1)
    target = uniform(sampling.seed, position) * mass.gather(0, last[None])
    chosen = torch.minimum(torch.searchsorted(mass, target, right=True), last)
    return order.gather(0, chosen)[0]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) made of seed and position alone; the string seed is hashed by sha512, equal everywhere."""
    return random.Random(f"disagg {seed} {position}").random()
