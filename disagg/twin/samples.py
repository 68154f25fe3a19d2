"""The size and the seconds of every pass, step and copy of a run.

Requests that were computed again after a preemption are left out: their spans do not show what was read; so are passes
in which rows decode.
"""

from collections.abc import Callable
from typing import NamedTuple

from disagg.plan.request import Stage
from disagg.trace.intervals import intersection, length, union
from disagg.trace.results import Run
from disagg.trace.spans import Span


class PassSample(NamedTuple):
    """A prefill pass, with its seconds: in all, before its first layer's hand-off, and after its last one."""

    chunks: tuple[tuple[int, int], ...]  # [start, stop) of each prompt in it
    ending: int  # prompts that end in it: rows of the output head
    seconds: float
    lead_s: float
    tail_s: float
    beside: float  # share of its time in which another worker computed


class StepSample(NamedTuple):
    rows: int
    tokens: int  # whose K/V it reads, padding and the new ones included
    seconds: float
    beside: float


class CopySample(NamedTuple):
    """A copy, without the link's latency."""

    lane: str
    nbytes: int
    seconds: float


def passes(run: Run) -> list[PassSample]:
    """Passes in order of their start, without those that compute a request again."""
    done: dict[int, int] = {}
    prompts, again = _prompts(run), _again(run)
    found, beside, mixed = [], _beside(run), _mixed(run)
    for span in _spans(run, "prefill"):
        chunks: list[tuple[int, int]] = []
        due = {request: prompts.get(request, 0) - done.get(request, 0) for request in span.requests}
        left = span.count - sum(due[request] for request in span.firsts)  # of prompts that go on
        for request in span.requests:
            start = done.get(request, 0)
            tokens = due[request] if request in span.firsts else min(due[request], left)
            left -= 0 if request in span.firsts else tokens
            chunks.append((start, start + tokens))
            done[request] = start + tokens
        if (span.place, span.start_ns) in mixed:
            continue
        if left == 0 and not again.intersection(span.requests) and span.hand_offs_ns and not span.waits_ns:
            marks = span.hand_offs_ns
            took_s, lead_s = (span.end_ns - span.start_ns) / 1e9, (marks[0] - span.start_ns) / 1e9
            tail_s, ending = (span.end_ns - marks[-1]) / 1e9, len(span.firsts)
            found.append(PassSample(tuple(chunks), ending, took_s, lead_s, tail_s, beside(span)))
    return found


def steps(run: Run, pads: bool) -> list[StepSample]:
    """Steps in order of their start; with `pads`, every row of a group is read up to the group's longest."""
    contexts, again = _prompts(run), _again(run)
    found, beside, mixed = [], _beside(run), _mixed(run)
    for span in _spans(run, "decode"):
        for request in span.requests:
            contexts[request] = contexts.get(request, 0) + 1
        if again.isdisjoint(span.requests) and (span.place, span.start_ns) not in mixed:
            lengths = iter([contexts[request] for request in span.requests])
            groups = [[next(lengths) for _ in range(size)] for size in span.groups or (span.count,)]
            tokens = sum(max(group) * len(group) if pads else sum(group) for group in groups)
            found.append(StepSample(span.count, tokens, (span.end_ns - span.start_ns) / 1e9, beside(span)))
    return found


def copies(run: Run) -> list[CopySample]:
    return [
        CopySample(span.place, span.nbytes, (span.busy_end_ns - span.start_ns) / 1e9)
        for span in run.timeline.spans
        if span.kind in ("copy", "spill", "fetch")
    ]


def turns(run: Run) -> list[float]:
    """The host's share: seconds from a step's end to the next step of the same rows, if that was decided after the
    end."""
    found: list[float] = []
    last: dict[str, Span] = {}
    for span in sorted(run.timeline.spans, key=lambda span: span.start_ns):
        before = last.get(span.place)
        last[span.place] = span
        if before is None or {span.kind, before.kind} != {"decode"} or before.end_ns > span.ready_ns:
            continue
        if not set(before.requests).isdisjoint(span.requests):
            found.append((span.start_ns - before.end_ns) / 1e9)
    return found


def _beside(run: Run) -> Callable[[Span], float]:
    """The share of a span's time in which other workers computed."""
    work = [span for span in run.timeline.spans if span.kind in ("prefill", "decode")]
    others = {p: union((s.start_ns, s.end_ns) for s in work if s.place != p) for p in {s.place for s in work}}

    def share(span: Span) -> float:
        took = span.end_ns - span.start_ns
        return length(intersection(others[span.place], [(span.start_ns, span.end_ns)])) / took if took else 0.0

    return share


def _mixed(run: Run) -> set[tuple[str, int]]:
    """Place and start of passes in which rows decode: their time is that of both."""
    places = [{(s.place, s.start_ns) for s in run.timeline.spans if s.kind == kind} for kind in ("prefill", "decode")]
    return places[0] & places[1]


def _spans(run: Run, kind: str) -> list[Span]:
    return sorted((span for span in run.timeline.spans if span.kind == kind), key=lambda span: span.start_ns)


def _prompts(run: Run) -> dict[int, int]:
    return {result.request: result.prompt_tokens for result in run.results}


def _again(run: Run) -> set[int]:
    """Requests that came back to the queue, or began before the run was recorded."""
    known = {result.request for result in run.results}
    back = {r.request for r in run.results if sum(stage is Stage.QUEUED for _, stage in r.stages) > 1}
    return back | {request for span in run.timeline.spans for request in span.requests if request not in known}
