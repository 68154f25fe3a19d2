"""The controller's events: all that it knows arrives as one of these, in the order of the engine's inbox."""

from typing import NamedTuple

from disagg.plan.blocks import Part
from disagg.plan.commands import Worker
from disagg.plan.config import Config
from disagg.plan.request import Job


class Submit(NamedTuple):
    job: Job


class Cancel(NamedTuple):
    request: int


class Retune(NamedTuple):
    """New settings, of those in `controller.LIVE`."""

    config: Config


class Tick(NamedTuple):
    """Time passed: deadlines are checked."""


class RequestFailed(NamedTuple):
    """An error of one request in a pass or step, whose end is the next event."""

    request: int
    error: str


class TimeLost(NamedTuple):
    """This process, or its engine's thread, did not run for so long: deadlines move by it."""

    lost_ns: int


class Probed(NamedTuple):
    """What was measured before the first request: a copy between decode device and host memory in ns a byte, passes of
    one prompt as (tokens, ns), and decode steps as (rows, tokens read, ns)."""

    copy_ns_per_byte: float | None
    passes: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int, int], ...] = ()


class Prefilled(NamedTuple):
    """A pass ended; one token for each final chunk, in order."""

    worker: Worker
    pass_id: int
    tokens: tuple[int, ...]
    started_ns: int
    ended_ns: int


class PassFailed(NamedTuple):
    worker: Worker
    pass_id: int
    error: str


class Stepped(NamedTuple):
    """A decode step ended; one token for each row, in the order of its groups, and the slots that attention read."""

    worker: Worker
    step: int
    tokens: tuple[int, ...]
    started_ns: int
    ended_ns: int
    used_slots: int
    padded_slots: int


class StepFailed(NamedTuple):
    worker: Worker
    step: int
    error: str


class Landed(NamedTuple):
    """Parts of a transfer are complete, and verified, in the target memory."""

    transfer: int
    parts: tuple[Part, ...]
    nbytes: int
    took_ns: int


class SourceRead(NamedTuple):
    """Every copy that reads the transfer's source has ended; second hops still run."""

    transfer: int


class TransferFailed(NamedTuple):
    transfer: int
    error: str


class TransferClosed(NamedTuple):
    """After an Abort, the last copy of the transfer has ended."""

    transfer: int


class WorkerDied(NamedTuple):
    worker: Worker
    error: str


FromWorkers = Prefilled | PassFailed | Stepped | StepFailed | RequestFailed | WorkerDied
FromTransfers = Landed | SourceRead | TransferFailed | TransferClosed
Event = Submit | Cancel | Retune | Tick | TimeLost | Probed | FromWorkers | FromTransfers
