"""The controller's commands: `Prefill` and `Decode` to a worker; `Send`, `Assign` and `Abort` to the transfers; the
rest to the engine. A decode worker keeps its batch in static buffers, so a step carries only what changed.
"""

from itertools import chain
from typing import NamedTuple

from disagg.plan.config import Config
from disagg.plan.policy import Option
from disagg.plan.preemption import Choice
from disagg.plan.request import Finish, Priority, Sampling, Stage


class Worker(NamedTuple):
    """A worker's name: "prefill" or "decode", and which of them."""

    role: str
    index: int  # type: ignore[assignment]  # hides tuple.index

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


class Chunk(NamedTuple):
    """Tokens [start, stop) of a request in a prefill pass; `blocks` is its table up to `stop`."""

    request: int
    start: int
    stop: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    final: bool  # the chunk's last position gives the next token
    token_index: int  # which generated token that is
    sampling: Sampling
    transfer: int | None  # the hand-off that takes each layer as it is computed


class Join(NamedTuple):
    """A row that enters the batch: its last token, tokens in its cache, and its table."""

    request: int
    token: int
    context: int
    blocks: tuple[int, ...]
    token_index: int
    sampling: Sampling


class Decode(NamedTuple):
    """One step: the changes since the last one, and the rows by bin. Unchanged groups are the same object."""

    worker: Worker
    step: int
    left: tuple[int, ...]
    joins: tuple[Join, ...]
    grown: tuple[tuple[int, int], ...]  # (request, block added at the end of its table)
    groups: tuple[tuple[int, ...], ...]
    at_ns: int
    alone: bool  # no prefill pass is in flight: the step may use all SMs of a split GPU


class Prefill(NamedTuple):
    """A pass. In a mixed one the chunks of `step`'s rows, a token each, follow those of prompts."""

    worker: Worker
    pass_id: int
    chunks: tuple[Chunk, ...]
    at_ns: int
    step: Decode | None = None

    @property
    def prompts(self) -> tuple[Chunk, ...]:
        """The chunks of prompts alone."""
        return self.chunks[: len(self.chunks) - len(self.rows)]

    @property
    def rows(self) -> tuple[int, ...]:
        """The requests that decode in this pass."""
        return () if self.step is None else tuple(chain.from_iterable(self.step.groups))


class Send(NamedTuple):
    """Copy these blocks of a request: at once where `layers_ready`, else layer by layer as prefill computes them."""

    transfer: int
    route: str  # bulk, direct, staged, spill, fetch
    request: int
    source: Worker
    first_block: int  # position of blocks[0] in the request's table
    blocks: tuple[int, ...]
    due_blocks: int  # of the whole transfer
    priority: Priority
    layers_ready: bool


class Assign(NamedTuple):
    """The blocks of the target memory, in the order of the request's table."""

    transfer: int
    target: Worker
    blocks: tuple[int, ...]


class Abort(NamedTuple):
    """Start no further copy of this transfer, and report it closed once the running ones have ended."""

    transfer: int


class Emit(NamedTuple):
    """New tokens, one for each request."""

    requests: tuple[int, ...]
    tokens: tuple[int, ...]
    at_ns: int


class Ended(NamedTuple):
    request: int
    finish: Finish
    error: str | None
    at_ns: int
    stages: tuple[tuple[int, Stage], ...]  # (ns, stage entered then)
    seat: int | None = None  # its decode worker; recordings keep this name


class Preempted(NamedTuple):
    """A request has left its decode worker for lack of blocks."""

    choice: Choice
    at_ns: int


class Placed(NamedTuple):
    """A request goes this way, chosen by policy among options with estimates; "" where it is rejected."""

    request: int
    way: str
    options: tuple[Option, ...]
    at_ns: int


class Retuned(NamedTuple):
    """New links and granularity are in force."""

    config: Config


class Broken(NamedTuple):
    """All open requests have failed, and the engine must be rebuilt."""

    cause: str
    policy: bool = False  # the policy is the cause: no request waits for another


Command = Prefill | Decode | Send | Assign | Abort | Emit | Ended | Preempted | Placed | Retuned | Broken


class Turn(NamedTuple):
    """One event's time, and the commands that it leads to, in order."""

    now_ns: int
    commands: list[Command]
