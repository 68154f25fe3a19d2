"""Where workers report: events, logits that were asked for, spans, and progress."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from disagg.plan.events import Event, RequestFailed
from disagg.plan.spans import Span

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
