"""A user's request as the controller sees it: ids within the model's vocabulary and context, or a RequestError."""

from disagg.plan.errors import RequestError
from disagg.plan.request import Job, Request
from disagg.run.model import Model


def job_of(request: Request, model: Model) -> Job:
    """Its id and arrival follow when it is submitted."""
    if not isinstance(request, Request):
        raise RequestError(f"submit takes a Request, and serve a list of them; got a {type(request).__name__}")
    prompt = request.prompt
    try:
        ids = model.encode(prompt) if isinstance(prompt, str) else list(prompt)
    except (UnicodeError, TypeError) as error:  # half of a surrogate pair
        raise RequestError(f"prompt is no valid text: {error}") from None
    foreign = [i for i in (*ids, *(request.force_ids or ())) if not 0 <= i < model.vocab_size]
    if foreign:
        raise RequestError(f"token id {foreign[0]} is not in {model.name}'s vocabulary of {model.vocab_size}")
    new = request.max_new_tokens if request.force_ids is None else len(request.force_ids)
    if len(ids) + new > model.context_limit:
        raise RequestError(
            f"prompt of {len(ids)} tokens and {new} new ones exceed {model.name}'s context of "
            f"{model.context_limit}; shorten the prompt or lower max_new_tokens"
        )
    eos = frozenset() if request.ignore_eos or request.force_ids is not None else frozenset(model.eos_ids)
    return Job(-1, tuple(ids), new, 0, eos, request.sampling)
