"""A user's request as the controller sees it, by what a loaded model takes: plan/intake.py checks it."""

from disagg.plan import intake
from disagg.plan.request import Job, Request
from disagg.run.model.model import Model


def job_of(request: Request, model: Model, seed: int = 0) -> Job:
    """Its id and arrival follow when it is submitted; `seed` is for a request that names none. RequestError."""
    limits = intake.Limits(model.name, model.vocab_size, model.context_limit, frozenset(model.eos_ids))
    return intake.job_of(request, limits, model.encode, seed)
