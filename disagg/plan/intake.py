"""Turns a user's request into a job of token ids, for engine and simulator alike; RequestError where none can be."""

from collections.abc import Callable
from typing import NamedTuple

from disagg.plan.errors import RequestError
from disagg.plan.request import Job, Request, Sampling


class Limits(NamedTuple):
    """What a model accepts: ids below `vocab`, and K/V of `context` tokens a request."""

    model: str
    vocab: int
    context: int
    eos_ids: frozenset[int] = frozenset()


def job_of(request: Request, limits: Limits, encode: Callable[[str], list[int]] | None = None, seed: int = 0) -> Job:
    """Its id and arrival follow when it is submitted; `seed` is the default of the request's own."""
    if not isinstance(request, Request):
        raise RequestError(f"submit takes a Request, and serve a list of them; got a {type(request).__name__}")
    ids, forced = _ids(request, limits, encode), None if request.force_ids is None else tuple(request.force_ids)
    every = (*ids, *(forced or ()))
    if min(every) < 0 or max(every) >= limits.vocab:
        foreign = next(i for i in every if not 0 <= i < limits.vocab)
        raise RequestError(f"token id {foreign} is not in {limits.model}'s vocabulary of {limits.vocab}")
    new = request.max_new_tokens if forced is None else len(forced)
    if len(ids) + new - 1 > limits.context:  # the last token is never fed back
        what = f"prompt of {len(ids)} tokens and {new} new ones exceed {limits.model}'s context of {limits.context}"
        raise RequestError(f"{what}; shorten the prompt or lower max_new_tokens")
    eos = frozenset() if request.ignore_eos or forced is not None else limits.eos_ids
    seed = seed if request.seed is None else request.seed
    sampling = Sampling(request.temperature, request.top_p, seed, forced, request.keep_logits)
    return Job(-1, ids, new, 0, eos, sampling, request.deadline_s)


def _ids(request: Request, limits: Limits, encode: Callable[[str], list[int]] | None) -> tuple[int, ...]:
    if not isinstance(request.prompt, str):
        return tuple(request.prompt)
    if encode is None:
        what = "the simulator takes prompts as token ids, for it has no tokenizer"
        raise RequestError(f"{what}; give it engine.model.encode(text), or [1] * 60")
    try:
        ids = tuple(encode(request.prompt))
    except (UnicodeError, TypeError) as error:  # half of a surrogate pair
        raise RequestError(f"prompt is no valid text: {error}") from None
    if not ids:
        what = f"prompt {request.prompt[:40]!r} has no token in {limits.model}'s tokenizer"
        raise RequestError(f"{what}; give it some text")
    return ids
