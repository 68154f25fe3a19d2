"""What a worker says while it carries out a command, beside the event that ends it. Any thread may call."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from disagg.plan.spans import Span


class Tell(NamedTuple):
    """`keep` takes logits [vocab] that a request asked for, `record` a span, and `fail` a request and its cause: of
    that request alone, before the pass or the step that it was in is told to have ended."""

    keep: Callable[[int, torch.Tensor], None]
    record: Callable[[Span], None]
    fail: Callable[[int, str], None]
