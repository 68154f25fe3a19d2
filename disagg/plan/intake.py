"""A user's request as the controller sees it: ids within a model's vocabulary and context, or a RequestError.

The engine and its twin both ask here, so that the twin refuses what the engine would.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from disagg.plan.errors import RequestError
from disagg.plan.request import Job, Request


class Limits(NamedTuple):
    """What a model takes: ids below `vocab`, and K/V of `context` tokens a request."""

    model: str
    vocab: int
    context: int
    eos_ids: frozenset[int] = frozenset()


def job_of(request: Request, limits: Limits, encode: Callable[[str], list[int]] | None = None, seed: int = 0) -> Job:
    """Its id and arrival follow when it is submitted. `seed` is for a request that names none; RequestError."""
    if not isinstance(request, Request):
        raise RequestError(f"submit takes a Request, and serve a list of them; got a {type(request).__name__}")
    ids, forced = _ids(request, limits, encode), request.force_ids
    _check_vocabulary((ids, forced or ()), limits)
    new = request.max_new_tokens if forced is None else len(forced)
    if len(ids) + new - 1 > limits.context:  # the last token is never fed back
        what = f"prompt of {len(ids)} tokens and {new} new ones exceed {limits.model}'s context of {limits.context}"
        raise RequestError(f"{what}; shorten the prompt or lower max_new_tokens")
    eos = frozenset() if request.ignore_eos or forced is not None else limits.eos_ids
    return Job(-1, ids, new, 0, eos, request.sampling(seed))


def _ids(request: Request, limits: Limits, encode: Callable[[str], list[int]] | None) -> tuple[int, ...]:
    if not isinstance(request.prompt, str):
        return tuple(request.prompt)
    if encode is None:
        raise RequestError("simulate takes prompts as token ids: it has no tokenizer")
    try:
        ids = tuple(encode(request.prompt))
    except (UnicodeError, TypeError) as error:  # half of a surrogate pair
        raise RequestError(f"prompt is no valid text: {error}") from None
    if not ids:
        what = f"prompt {request.prompt[:40]!r} has no token in {limits.model}'s tokenizer"
        raise RequestError(f"{what}; give it some text")
    return ids


def _check_vocabulary(lists: Iterable[Sequence[int]], limits: Limits) -> None:
    for ids in filter(None, lists):
        if min(ids) < 0 or max(ids) >= limits.vocab:
            foreign = next(i for i in ids if not 0 <= i < limits.vocab)
            raise RequestError(f"token id {foreign} is not in {limits.model}'s vocabulary of {limits.vocab}")
