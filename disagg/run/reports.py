"""Where workers report: events, logits that were asked for, spans, and progress."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

from disagg.plan.commands import Decode, Prefill
from disagg.plan.errors import in_words
from disagg.plan.events import Event, PassFailed, RequestFailed, StepFailed
from disagg.run.gpu.device import is_fatal
from disagg.trace.spans import Span

T = TypeVar("T")
Post = Callable[[Event], None]  # takes an event into the inbox


class Reports(NamedTuple):
    """Where workers report, from any thread: `post` takes events, `keep` logits [vocab] that a request asked for,
    `record` spans, and `progress` a line about what takes long at the start."""

    post: Post
    keep: Callable[[int, torch.Tensor], None]
    record: Callable[[Span], None]
    progress: Callable[[str], None]

    def fail(self, request: int, cause: str) -> None:
        """Of this request alone; its pass or step ends later."""
        self.post(RequestFailed(request, cause))


def carry_out(command: Prefill | Decode, act: Callable[[], T]) -> T | PassFailed | StepFailed:
    """What `act` gives, or the event of its failure: what the model raises fails its batch and nothing else."""
    try:
        return act()
    except Exception as error:
        if is_fatal(error):
            raise
        cause = in_words(error)
    if isinstance(command, Prefill):
        return PassFailed(command.worker, command.pass_id, cause)
    return StepFailed(command.worker, command.step, cause)
