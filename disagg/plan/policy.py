"""What a policy decides: which request goes next, which way it goes, and what shares the next pass or step.

A policy is an object with a `name` and the three methods of `Policy`. It sees plain values, keeps no state and changes
nothing, so the same policy runs in the engine and in the simulator. `Decider` checks every answer.
Notebook: notebooks/05_dynamic_batching.ipynb.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from disagg.plan.checks import is_whole, short
from disagg.plan.errors import PolicyError
from disagg.plan.request import Priority, Waiting

WAYS = ("split", "stay", "spill", "fetch", "recompute")


class Option(NamedTuple):
    """A way that a request can go, with an estimate of how long it takes in ns, as the terms that add up to it."""

    way: str  # of WAYS
    worker: int = 0
    terms: tuple[tuple[str, int], ...] = ()  # none: unknown
    onto: int | None = None  # the worker on which it decodes, where that is chosen too

    @property
    def ns(self) -> int | None:
        return sum(ns for _, ns in self.terms) if self.terms else None


Share = tuple[int, int]  # a request, and how many tokens (of a pass) or rows (1, of a step) it gets


class Policy(Protocol):
    """Three decisions. `choose` returns one of the options, or the words in which the request is rejected."""

    @property
    def name(self) -> str: ...

    def order(self, request: Waiting) -> Priority:
        """Smaller goes first: in prefill, on the links and onto the decode device. The last is preempted first. Of
        equal ones the earlier request goes first."""
        ...

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option | str:
        """Which way: asked on arrival, on a preemption, and when spilled K/V could come back."""
        ...

    def share(self, budget: int, requests: tuple[Waiting, ...]) -> Sequence[Share]:
        """Who gets how much of a pass (budget in tokens) or step (in rows); all of these requests have room."""
        ...


def soonest(options: Sequence[Option]) -> Option:
    """The shortest of the known estimates, the earlier option where they are equal."""
    return min(options, key=lambda option: (option.ns is None, option.ns or 0))


def in_turn(budget: int, requests: Sequence[Waiting]) -> list[Share]:
    """One after the other; the first that can't end in this pass leaves half of the rest to later ones that can.

    So a short prompt does not wait for all chunks of a long one (chunks share a pass as in Sarathi-Serve, OSDI 2024).
    """
    shares: list[Share] = []
    for index, first in enumerate(requests):
        if first.left > budget:
            riders, spare = [], budget // 2
            for request in requests[index + 1 :]:
                if request.left <= spare:
                    riders.append((request.id, request.left))
                    spare -= request.left
            return [*shares, (first.id, budget - sum(tokens for _, tokens in riders)), *riders]
        shares.append((first.id, first.left))
        budget -= first.left
    return shares


@dataclass(frozen=True)
class FirstCome:
    """First come, first served."""

    name: str = "fcfs"

    def order(self, request: Waiting) -> Priority:
        return request.arrival_ns, request.id

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option | str:
        return soonest(options)

    def share(self, budget: int, requests: tuple[Waiting, ...]) -> Sequence[Share]:
        return in_turn(budget, requests)


@dataclass(frozen=True)
class Shortest(FirstCome):
    """The shortest goes first, but no work of more than `ageing` times a request's own overtakes it.

    Its place is the work that arrived before it, and `ageing` times its own: service by remaining time, with the
    virtual finish times of fair queueing (Demers, Keshav and Shenker, SIGCOMM 1989) against starvation.
    """

    name: str = "shortest"
    ageing: int = 2

    def order(self, request: Waiting) -> Priority:
        tokens = request.prompt + request.new
        return request.arrived_before + self.ageing * tokens, request.arrival_ns, request.id


@dataclass(frozen=True)
class EarliestDeadline(FirstCome):
    """The earliest deadline goes first; a request that can't meet its own is rejected when it arrives, before it
    costs anything (early rejection as in Mooncake, FAST 2025)."""

    name: str = "deadline"
    ttft_s: float = 30.0  # of requests without a deadline

    def order(self, request: Waiting) -> Priority:
        return self._deadline_ns(request), request.arrival_ns, request.id

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option | str:
        best, limit_ns = soonest(options), self._deadline_ns(request)
        if request.generated or best.ns is None or now_ns + best.ns <= limit_ns:
            return best
        after, allowed = (now_ns + best.ns - request.arrival_ns) / 1e9, (limit_ns - request.arrival_ns) / 1e9
        return f"its first token would come {after:.2f} s after its arrival, and is wanted within {allowed:g} s"

    def _deadline_ns(self, request: Waiting) -> int:
        return request.arrival_ns + round(self.ttft_s * 1e9) if request.deadline_ns is None else request.deadline_ns


POLICIES: dict[str, Policy] = {policy.name: policy for policy in (FirstCome(), Shortest(), EarliestDeadline())}
METHODS = ("order", "choose", "share")


class Decider:
    """Asks a policy and checks its answers: PolicyError with the policy, the method and what it returned."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, policy.name
        self.idle = False  # some had room, and the policy gave none of them a share

    def order(self, request: Waiting) -> Priority:
        priority = self._ask("order", self.policy.order, request)
        if type(priority) is tuple and all(map(is_whole, priority)):
            return priority if priority[-1:] == (request.id,) else (*priority, request.id)  # no two are equal
        raise self._wrong("order", priority, "a tuple of whole numbers")

    def choose(self, request: Waiting, options: tuple[Option, ...], now_ns: int) -> Option | str:
        """The words of a rejection only on arrival."""
        choice = self._ask("choose", self.policy.choose, request, options, now_ns)
        if isinstance(choice, Option) and choice in options:
            return choice
        if isinstance(choice, str) and choice and not request.generated:
            return choice
        raise self._wrong("choose", choice, "one of its options, or on arrival why it rejects the request")

    def share(self, budget: int, requests: tuple[Waiting, ...]) -> list[Share]:
        shares = self._ask("share", self.policy.share, budget, requests)
        if isinstance(shares, Iterator):
            shares = self._ask("share", list, islice(shares, len(requests) + 1))
        try:
            found: list[Share] = [(request, amount) for request, amount in shares]  # type: ignore[attr-defined]  # checked here
        except Exception:
            raise self._wrong("share", shares, "pairs of a request and its share") from None
        left = {request.id: request.left for request in requests}
        waiting = short(sorted(left))
        for request, amount in found:
            if not is_whole(request) or request not in left:
                raise self._wrong("share", found, f"requests that wait, once each: {waiting}")
            if not is_whole(amount) or not 0 <= amount <= left.pop(request):
                raise self._wrong("share", found, f"shares up to what is left of request {request}")
        if sum(amount for _, amount in found) > budget:
            raise self._wrong("share", found, f"at most {budget} in all")
        return found

    def _ask(self, method: str, decide: Callable[..., object], *seen: object) -> object:
        try:
            return decide(*seen)
        except (Exception, SystemExit) as error:
            words = f"{type(error).__name__}: {error}"
            raise PolicyError(f"policy {short(self.name)} raised in {method}: {words}") from error

    def _wrong(self, method: str, answer: object, wanted: str) -> PolicyError:
        return PolicyError(f"policy {short(self.name)} returned {short(answer)} from {method}; it takes {wanted}")


def named(policy: str | Policy) -> Policy:
    """A policy from its name or itself, as Config has checked it."""
    return POLICIES[policy] if isinstance(policy, str) else policy
