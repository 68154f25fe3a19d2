"""Two runs on the same requests: what became faster or slower, where the time went, whether the tokens are equal.

Notebook: notebooks/02_disaggregation.ipynb.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from disagg.plan.errors import DifferenceError
from disagg.trace.receipts import NAMES
from disagg.trace.results import Result, Run

TIMES = {"TTFT": "ttft_s", "second-token gap": "second_token_gap_s", "end to end": "end_to_end_s"}
UNACCOUNTED = "unaccounted"
SAME_S = 5e-5  # a mean change that prints as 0.0 ms


class Change(NamedTuple):
    """Seconds in one run and in the other."""

    before_s: float
    after_s: float

    @property
    def by_s(self) -> float:
        return self.after_s - self.before_s


NOTHING = Change(0.0, 0.0)


@dataclass(frozen=True)
class Changes:
    """Of one request, or of all together. A time is None where a run does not have it."""

    ttft_s: Change | None
    second_token_gap_s: Change | None
    end_to_end_s: Change
    receipt: dict[str, Change]  # by name, and what no name covers


@dataclass(frozen=True)
class RequestDifference:
    """One request, by its place in the list that was served; `differs_at` is None where all tokens are equal.
    `rejected`: by one of the runs only, and so without anything to compare."""

    index: int
    changes: Changes
    differs_at: int | None
    rejected: bool = False


@dataclass(frozen=True)
class Difference:
    """`total` sums over the requests that both runs served, and that have the time in both."""

    requests: tuple[RequestDifference, ...]
    total: Changes

    @property
    def differing(self) -> tuple[RequestDifference, ...]:
        return tuple(request for request in self.requests if request.differs_at is not None)

    @property
    def finding(self) -> str:
        by_s = self._mean_s(self.total.end_to_end_s.by_s)
        if abs(by_s) < SAME_S:
            return f"A request takes as long in both runs, on average; {self._tokens()}."
        word = "longer" if by_s > 0 else "shorter"
        most = max(self.total.receipt.items(), key=lambda item: item[1].by_s * by_s, default=None)
        cause = f", above all {most[0]} ({1e3 * self._mean_s(most[1].by_s):+.1f} ms)" if most else ""
        return f"A request takes {1e3 * abs(by_s):.1f} ms {word} on average{cause}; {self._tokens()}."

    def _tokens(self) -> str:
        rejected = [str(request.index) for request in self.requests if request.rejected]
        but = f"; one run rejected what the other served: {', '.join(rejected)}" if rejected else ""
        if not self.differing:
            return f"all tokens are equal{but}"
        first, count = self.differing[0], f"{len(self.differing)} of {len(self.requests)} requests have other tokens"
        return f"{count}, request {first.index} from token {(first.differs_at or 0) + 1} on{but}"

    def __str__(self) -> str:
        """As a table: milliseconds of a request on average, before, after and by how much."""
        rows = {name: getattr(self.total, attribute) for name, attribute in TIMES.items()}
        rows |= {f"  {name}": change for name, change in self.total.receipt.items() if change != NOTHING}
        lines = [self.finding, f"{'ms a request':<18}{'before':>10}{'after':>10}{'change':>10}"]
        for name, change in rows.items():
            if change is not None:
                before, after, by = (1e3 * self._mean_s(s) for s in (change.before_s, change.after_s, change.by_s))
                lines.append(f"{name:<18}{before:>10.1f}{after:>10.1f}{by:>+10.1f}")
        return "\n".join(lines)

    def _mean_s(self, seconds: float) -> float:
        return seconds / max(1, sum(not request.rejected for request in self.requests))


def diff(a: Run, b: Run) -> Difference:
    """From run `a` to run `b`; DifferenceError where they served other requests."""
    advice = "compare two runs of the same list of requests"
    if len(a.results) != len(b.results):
        raise DifferenceError(f"one run served {len(a.results)} requests, the other {len(b.results)}; {advice}")
    found = []
    for index, (before, after) in enumerate(zip(a.results, b.results, strict=True)):
        if before.prompt_tokens != after.prompt_tokens:
            lengths = f"{before.prompt_tokens} tokens in one run and {after.prompt_tokens} in the other"
            raise DifferenceError(f"the prompt of request {index} has {lengths}; {advice}")
        rejected = (before.finish_reason == "rejected") != (after.finish_reason == "rejected")
        differs_at = None if rejected else _differs_at(before, after)
        found.append(RequestDifference(index, _changes(before, after), differs_at, rejected))
    return Difference(tuple(found), _sum([request.changes for request in found if not request.rejected]))


def _changes(before: Result, after: Result) -> Changes:
    bills = _bill(before), _bill(after)
    names = [name for name in (*NAMES, UNACCOUNTED) if name in bills[0] or name in bills[1]]
    receipt = {name: Change(*(bill.get(name, 0.0) for bill in bills)) for name in names}
    ends = Change(_end_to_end_s(before), _end_to_end_s(after))
    gaps = _both(before.second_token_gap_s, after.second_token_gap_s)
    return Changes(_both(before.ttft_s, after.ttft_s), gaps, ends, receipt)


def _bill(result: Result) -> dict[str, float]:
    """The receipt's seconds by name; nothing where nothing was recorded."""
    if result.timeline is None:
        return {}
    receipt = result.receipt
    return {**receipt.totals(), UNACCOUNTED: receipt.unaccounted_s}


def _end_to_end_s(result: Result) -> float:
    return max(0, result.ended_ns - result.arrival_ns) / 1e9


def _both(before_s: float | None, after_s: float | None) -> Change | None:
    return None if before_s is None or after_s is None else Change(before_s, after_s)


def _differs_at(before: Result, after: Result) -> int | None:
    return next((i for i, (a, b) in enumerate(zip_longest(before.token_ids, after.token_ids)) if a != b), None)


def _sum(changes: list[Changes]) -> Changes:
    names = [name for name in (*NAMES, UNACCOUNTED) if any(name in change.receipt for change in changes)]
    return Changes(
        _added(change.ttft_s for change in changes),
        _added(change.second_token_gap_s for change in changes),
        _added(change.end_to_end_s for change in changes) or NOTHING,
        {name: _added(change.receipt.get(name) for change in changes) or NOTHING for name in names},
    )


def _added(changes: Iterable[Change | None]) -> Change | None:
    """None where no request has the time in both runs."""
    known = [change for change in changes if change is not None]
    return Change(sum(c.before_s for c in known), sum(c.after_s for c in known)) if known else None
