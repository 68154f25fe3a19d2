"""A user's request, the controller's record of it, and its stages. On one device HANDING_OFF is skipped.

    QUEUED       waits for a prefill worker and its blocks
    PREFILLING   its chunks are computed; with a streamed route its layers already travel
    HANDING_OFF  token 1 exists; the rest of its K/V is on the way to the decode device
    LANDED       its K/V is complete on the decode device; waits for a place in the batch
    RUNNING      one token a step
    PARKED       handed off to host memory, since decode had no blocks for it
    SPILLING, SPILLED, FETCHING   preempted to host memory, there, and on its way back (then LANDED again)
    ENDED        exactly once, as eos, length, cancelled, rejected or failed

A preempted request that is computed again, or whose spill or fetch has failed, goes back to QUEUED.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeGuard

from disagg.plan.blocks import Table
from disagg.plan.checks import is_number, is_whole, short
from disagg.plan.errors import RequestError


class Stage(Enum):
    QUEUED = "queued"
    PREFILLING = "prefilling"
    HANDING_OFF = "handing off"
    LANDED = "landed"
    RUNNING = "running"
    SPILLING = "spilling"
    SPILLED = "spilled"
    PARKED = "parked"
    FETCHING = "fetching"
    ENDED = "ended"


LEGAL_MOVES = {
    Stage.QUEUED: {Stage.PREFILLING, Stage.ENDED},
    Stage.PREFILLING: {Stage.HANDING_OFF, Stage.LANDED, Stage.ENDED},
    Stage.HANDING_OFF: {Stage.LANDED, Stage.PARKED, Stage.ENDED},
    Stage.PARKED: {Stage.FETCHING, Stage.QUEUED, Stage.ENDED},
    Stage.LANDED: {Stage.RUNNING, Stage.SPILLING, Stage.QUEUED, Stage.ENDED},
    Stage.RUNNING: {Stage.LANDED, Stage.SPILLING, Stage.QUEUED, Stage.ENDED},
    Stage.SPILLING: {Stage.SPILLED, Stage.QUEUED, Stage.ENDED},
    Stage.SPILLED: {Stage.FETCHING, Stage.QUEUED, Stage.ENDED},
    Stage.FETCHING: {Stage.LANDED, Stage.QUEUED, Stage.ENDED},
    Stage.ENDED: set(),
}


class Finish(Enum):
    EOS = "eos"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REJECTED = "rejected"  # by the policy, before it cost anything
    FAILED = "failed"


Priority = tuple[int, ...]  # of a request in a queue or on a link: smaller goes first

MOST = 2**62  # of tokens, or as a seed


@dataclass(frozen=True)
class Sampling:
    """How a worker picks a token: greedy at temperature 0, else seeded by (seed, position) alone."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    force_ids: tuple[int, ...] | None = None
    keep_logits: bool = False


@dataclass(frozen=True)
class Request:
    """A prompt as text or token ids, and how to answer it."""

    prompt: str | Sequence[int]
    max_new_tokens: int = 64
    arrival_s: float = 0.0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None  # of sampled tokens; None: Config.seed
    ignore_eos: bool = False
    force_ids: Sequence[int] | None = None  # the answer, in place of the model's own choices
    keep_logits: bool = False
    deadline_s: float | None = None  # its first token is wanted so long after its arrival; for policy "deadline"

    def __post_init__(self) -> None:
        """Checks every field; numbers become plain ints and floats."""
        self._make_whole("max_new_tokens", 1)
        if self.seed is not None:
            self._make_whole("seed", 1 - MOST)
        self._make_float("arrival_s", 0, 1e9)
        self._make_float("temperature", 0, 100)
        self._make_float("top_p", 0, 1)
        if self.deadline_s is not None:
            self._make_float("deadline_s", 0, 1e9)
        if self.top_p == 0:
            raise RequestError("top_p must be above 0; take temperature=0 for greedy decoding")
        for name in ("ignore_eos", "keep_logits"):
            if not isinstance(value := getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False; got {short(value)}")
        for name in ("prompt", "force_ids"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        if not isinstance(self.prompt, str) and not _are_ids(self.prompt):
            raise RequestError(f"prompt must be text or a list of token ids; got {type(self.prompt).__name__}")
        if len(self.prompt) == 0:
            raise RequestError("prompt is empty; give at least one token")
        if self.force_ids is not None and (not _are_ids(self.force_ids) or len(self.force_ids) == 0):
            raise RequestError("force_ids must be a list of at least one token id")

    def _make_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if is_whole(value) and abs(value) >= MOST:
            raise RequestError(f"{name} must be below {MOST}; got {short(value)}")
        if not is_whole(value) or value < least:
            raise RequestError(f"{name} must be a whole number, {least} or more; got {short(value)}")
        object.__setattr__(self, name, int(value))

    def _make_float(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not is_number(value, low, high):
            raise RequestError(f"{name} must be a number from {low} to {high:g}; got {short(value)}")
        object.__setattr__(self, name, float(value))


def _are_ids(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and all(map(is_whole, value))


def _plain(value: object) -> object:
    """Arrays and numpy's whole numbers as ints, a subclass of str as str; any other value unchanged."""
    if isinstance(value, str):
        return value if type(value) is str else "".join(value)
    if isinstance(value, (list, tuple)) and set(map(type, value)) == {int}:
        return value if isinstance(value, tuple) else list(value)
    listed = value.tolist() if hasattr(value, "tolist") else value
    return [int(i) for i in listed] if _are_ids(listed) else value


@dataclass(frozen=True)
class Job:
    """A request as the controller sees it: token ids, no text and no tensors."""

    id: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    arrival_ns: int
    eos_ids: frozenset[int] = frozenset()
    sampling: Sampling = Sampling()
    deadline_s: float | None = None

    @property
    def deadline_ns(self) -> int | None:
        return None if self.deadline_s is None else self.arrival_ns + round(self.deadline_s * 1e9)

    def __deepcopy__(self, memo: object) -> "Job":
        return self  # immutable: copies of a simulation share it


class Waiting(NamedTuple):
    """A request as a policy sees it; counts are tokens."""

    id: int
    prompt: int
    new: int  # that it may generate at most
    generated: int
    left: int  # that prefill still has to compute; 1 where it waits for a place in a decode step
    arrival_ns: int
    deadline_ns: int | None  # when its first token is wanted at the latest
    arrived_before: int  # prompt and new tokens of all requests that arrived before it


@dataclass(eq=False)
class Record:
    """The controller's record of one open request."""

    job: Job
    stage: Stage = Stage.QUEUED
    generated: list[int] = field(default_factory=list)
    priority: Priority = ()  # by the policy, when it began to wait; smaller goes first
    arrived_before: int = 0  # prompt and new tokens of all requests that arrived before it
    prefill_target: int = 0  # tokens that prefill computes: the prompt, and those generated before a recompute
    prefilled: int = 0  # tokens prefilled, or in a pass in flight
    stays: bool = False  # it is prefilled where it decodes, and nothing is handed off
    decode_worker: int | None = None  # where its K/V are, or will be
    prefill_worker: int | None = None
    prefill_table: Table | None = None
    decode_table: Table | None = None
    host_table: Table | None = None
    transfer: int | None = None  # open hand-off, spill or fetch
    stages: list[tuple[int, Stage]] = field(default_factory=list)
    gate: str = ""  # what it waits for
    first_ns: int = 0  # when its first token came
    _seen: Waiting | None = None  # the last one
    finish: Finish | None = None

    @property
    def id(self) -> int:
        return self.job.id

    @property
    def context(self) -> int:
        """Tokens in its cache while it runs: all but the last, whose K/V the next step computes."""
        return len(self.job.prompt) + len(self.generated) - 1

    def seen(self, left: int) -> Waiting:
        """As a policy sees it; `left` is the most that it may get of a pass or step."""
        seen, generated = self._seen, len(self.generated)
        if seen is None or seen.left != left or seen.generated != generated:
            job = self.job
            counts = len(job.prompt), job.max_new_tokens, generated, left
            seen = self._seen = Waiting(job.id, *counts, job.arrival_ns, job.deadline_ns, self.arrived_before)
        return seen

    @property
    def tables(self) -> list[Table]:
        return [t for t in (self.prefill_table, self.decode_table, self.host_table) if t is not None]

    def drop(self, *names: str) -> None:
        """Releases these of its tables, where it has them."""
        for name in names:
            if (table := getattr(self, name)) is not None:
                table.release()
                setattr(self, name, None)

    @property
    def left(self) -> int:
        """Tokens it may still generate."""
        return self.job.max_new_tokens - len(self.generated)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.job.prompt + tuple(self.generated)

    def move(self, stage: Stage, now_ns: int, gate: str = "") -> None:
        """The one way to change stage; an illegal move is a bug in the controller."""
        if stage not in LEGAL_MOVES[self.stage]:
            raise AssertionError(f"request {self.id}: {self.stage.value} → {stage.value} is not a legal move")
        self.stage, self.gate = stage, gate
        self.stages.append((now_ns, stage))


def listed(requests: Iterable[Request]) -> list[Request]:
    """The requests as a list; RequestError for a single one."""
    if not isinstance(requests, Iterable):
        raise RequestError(f"requests come in a list, as in [Request(...)]; got a {type(requests).__name__}")
    return list(requests)
