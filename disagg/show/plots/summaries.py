"""What a run's timeline says, in sentences. Counts and orders are the same on every machine; times are not."""

from collections.abc import Iterable
from itertools import groupby
from textwrap import shorten

from disagg.trace.results import Result, Run
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline

NO_ANSWER = ("rejected", "failed", "cancelled")


def sentence(run: Run, request: int | None = None, times: bool = True) -> str:
    """One sentence on a run, or on its result `request`. Without times it can be compared between machines."""
    if request is None and len(run.results) == 1:
        request = 0
    if request is None:
        return _times_of_run(run) if times else _counts_of_run(run)
    return _times_of_request(run, request) if times else _counts_of_request(run, request)


def why_none(run: Run, what: str) -> str:
    """Why a run has none of what a view shows."""
    if not run.results:
        return f"there is no {what} to show: no request was served"
    tokens = sum(len(result.token_ids) for result in run.results)
    if not run.timeline.spans and tokens:
        return f"no {what} was recorded: serve with record=True"
    ends = "each answer ended with its first token" if tokens else "no request came that far"
    return f"there was no {what}, so nothing was recorded of one: {ends}"


def first_landed_early(run: Run, index: int) -> bool:
    """Did the first layer land before prefill handed off the last?"""
    request = run.results[index].request
    passes = [s for s in run.timeline.spans if s.kind == "prefill" and request in s.requests and s.hand_offs_ns]
    copies = [span for span in run.timeline.hand_off(request) if not span.place.startswith("down")]  # the last hop
    return bool(passes and copies) and min(s.end_ns for s in copies) < max(s.hand_offs_ns[-1] for s in passes)


def plural(count: int, noun: str) -> str:
    """1 copy, 2 copies, 0 passes."""
    ending = "ies" if noun.endswith("y") else "es" if noun.endswith("s") else "s"
    return f"{count} {noun if count == 1 else (noun[:-1] if ending == 'ies' else noun) + ending}"


def milliseconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 10 else f"{1e3 * seconds:.0f} ms"


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def short_list(numbers: list[int]) -> str:
    """0, 1, 2, 5 as "0–2, 5", in the order given."""
    parts = []
    for first, count in runs_of(numbers):
        run = range(first, first + count)
        parts.append(f"{first}–{run[-1]}" if count > 2 else ", ".join(map(str, run)))
    return ", ".join(parts)


def runs_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """3, 4, 5, 9 as (3, 3), (9, 1): the first of a run, and how many follow each other."""
    groups = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = ([number for _, number in group] for _, group in groups)
    return [(run[0], len(run)) for run in runs]


def _counts_of_request(run: Run, index: int) -> str:
    result = run.results[index]
    if result.finish_reason == "rejected":
        return f"{plural(result.prompt_tokens, 'prompt token')}: the policy rejected it on arrival."
    passes, steps, copies = (_spans_of(run, result.request, kind) for kind in ("prefill", "decode", "copy"))
    start = (
        f"{plural(result.prompt_tokens, 'prompt token')}, {plural(len(result.token_ids), 'new token')}: "
        f"{plural(len(passes), 'prefill pass')}, {plural(len(steps), 'decode step')}, {_copies(copies)}"
    )
    if not copies:
        return start + "."
    early = "before" if first_landed_early(run, index) else "after"
    return f"{start}; the first layer landed {early} the last was computed."


def _times_of_request(run: Run, index: int) -> str:
    result, overlap = run.results[index], run.overlap(index)
    if result.finish_reason == "rejected":
        words = str(result.error)
        return f"{words[:1].upper()}{words[1:]}."
    parts = [] if result.ttft_s is None else [f"Token 1 came after {milliseconds(result.ttft_s)}"]
    if overlap.share is not None:
        parts.append(
            f"{milliseconds(overlap.transfer_s)} of copying, of which H = {overlap.share:.0%} was hidden "
            f"and E = {milliseconds(overlap.exposed_s)} was left after token 1"
        )
    elif overlap.hidden is not None:
        left = f"left E = {milliseconds(overlap.exposed_s)} after token 1 (H = –)"
        parts.append(f"{milliseconds(overlap.transfer_s)} of copying {left}")
    elif not _spans_of(run, result.request, "copy"):
        parts.append("nothing was copied")
    if result.second_token_gap_s is not None:
        parts.append(f"token 2 came {milliseconds(result.second_token_gap_s)} after token 1")
    return ("; ".join(parts) or f"The request {result.finish_reason} without a token") + f".{_failure([result])}"


def _counts_of_run(run: Run) -> str:
    tokens = sum(len(r.token_ids) for r in run.results)
    copies = [s for s in run.timeline.spans if s.kind == "copy"]
    prompts = sum(r.prompt_tokens for r in run.results)
    load = f"{_requests(run)}, {plural(prompts, 'prompt token')}"
    return f"{load}, {plural(tokens, 'new token')}; {_copies(copies)}."


def _times_of_run(run: Run) -> str:
    seconds, overlap = (run.timeline.end_ns - run.timeline.start_ns) / 1e9, run.overlap()
    if not run.timeline.spans:
        return f"{_requests(run)}; nothing was recorded.{_failure(run.results)}"
    rows = row_names(run.timeline).items()
    busy = ", ".join(f"{name} {run.timeline.busy(place) / 1e9 / seconds:.0%}" for place, name in rows)
    hidden = "nothing was copied"
    if overlap.share is not None:
        hidden = f"H = {overlap.share:.0%} of {milliseconds(overlap.transfer_s)} of copying was hidden"
    elif overlap.hidden is not None:
        hidden = (
            f"{_cause(run, overlap.exposed_s)}{milliseconds(overlap.transfer_s)} of copying left "
            f"E = {milliseconds(overlap.exposed_s)} after tokens 1 (H = –)"
        )
    return f"{_requests(run)} in {seconds:.1f} s; busy: {busy}; {hidden}.{_failure(run.results)}"


def _requests(run: Run) -> str:
    """How many, and how many of them have no whole answer."""
    ends = [result.finish_reason for result in run.results if result.finish_reason in NO_ANSWER]
    words = ", ".join(f"{ends.count(end)} {end}" for end in NO_ANSWER if end in ends)
    return plural(len(run.results), "request") + (f" ({words})" if words else "")


def _failure(results: list[Result]) -> str:
    """Why a request failed: the first one that did."""
    failed = [result for result in results if result.finish_reason == "failed"]
    words = shorten(str(failed[0].error), 200, placeholder=" …").rstrip(".") if failed else ""
    return f" Failure of request {failed[0].request}: {words}." if failed else ""


def _cause(run: Run, exposed_s: float) -> str:
    """What the larger part of E was, by the requests' receipts; nothing where they name no such wait."""
    if not run.has_receipts:
        return ""
    waits, served = run.receipts(), sum(result.request >= 0 for result in run.results)
    name = max(_CAUSES, key=lambda name: waits.get(name, 0.0))
    return f"{_CAUSES[name]}: " if waits.get(name, 0.0) * served > exposed_s / 2 else ""


_CAUSES = {
    "link-busy": "copies queued for their wire",
    "ring-full": "copies waited for a slot of the ring",
    "no-block": "requests waited for free blocks",
}


_ROWS = {"prefill": "prefill", "direct": "link", "down": "link to host", "park": "parking", "up": "link to decode"}
_ROWS |= {"decode": "decode", "spill": "paging"}


def numbers_of(run: Run) -> dict[int, int]:
    """A request's id → its place among the results."""
    return {result.request: index for index, result in enumerate(run.results)}


def row_names(timeline: Timeline) -> dict[str, str]:
    """What a student reads for each place; numbered only where there are several of a kind."""
    roles = [place.split()[0] for place in timeline.places]
    shared = {span.place for span in timeline.spans if span.kind == "prefill" and span.place.startswith("decode")}
    names = {}
    for place, role in zip(timeline.places, roles, strict=True):
        name = "device" if shared and role == "decode" else _ROWS[role]
        names[place] = f"{name} {place.split()[1]}" if roles.count(role) > 1 else name
    return names


def places(timeline: Timeline) -> list[tuple[str, str, str, str]]:
    """For each worker and lane: its name, its busy share, how many spans it has, and what it moved."""
    whole_ns, rows = timeline.end_ns - timeline.start_ns, []
    for place, name in row_names(timeline).items():
        spans = [span for span in timeline.spans if span.place == place]
        moved = sum(span.nbytes for span in spans)
        busy = f"{timeline.busy(place) / whole_ns:.0%}"
        rows.append((name, busy, str(len(spans)), megabytes(moved) if moved else ""))
    return rows


def _copies(copies: list[Span]) -> str:
    if not copies:
        return "nothing copied"
    nbytes = megabytes(sum(span.nbytes for span in copies))
    links, layers = plural(len({span.place for span in copies}), "link"), max(s.index + s.count for s in copies)
    return f"{plural(len(copies), 'copy')} of {layers} layers over {links} ({nbytes})"


def _spans_of(run: Run, request: int, kind: str) -> list[Span]:
    return [span for span in run.timeline.spans if span.kind == kind and request in span.requests]
