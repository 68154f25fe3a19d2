"""The system at an instant, counted span by span: what trace/flow.py and flow.js have to agree with."""

from disagg import Run


def by_hand(run: Run, ns: int) -> dict:
    """`ns` since the run's start; only what the timeline holds literally."""
    at, number = run.timeline.start_ns + ns, {result.request: index for index, result in enumerate(run.results)}
    now = {"passes": {}, "steps": {}, "flights": {}, "ready": {}, "ring": 0}
    for span in sorted(run.timeline.spans, key=lambda span: span.start_ns):
        requests = [number[request] for request in span.requests]
        under_way = span.start_ns <= at < span.end_ns
        if span.kind == "prefill" and under_way:
            now["passes"][span.place] = {"requests": requests, "done": sum(mark <= at for mark in span.hand_offs_ns)}
        elif span.kind == "decode" and under_way:
            now["steps"][span.place] = requests
        elif span.kind not in ("prefill", "decode"):
            if under_way:
                share = (at - span.start_ns) / (span.end_ns - span.start_ns)
                now["flights"][span.place] = {
                    "request": requests[0],
                    "layer": span.index,
                    "layers": span.count,
                    "share": share,
                }
            elif span.ready_ns and span.ready_ns <= at < span.start_ns:
                now["ready"][span.place] = now["ready"].get(span.place, 0) + span.count
    for mark in run.timeline.marks:
        if mark.name == "ring" and mark.at_ns <= at:
            now["ring"] = mark.value
    now["tokens"] = [sum(time <= at for time in result.token_times_ns) for result in run.results]
    now["open"] = sorted(i for i, r in enumerate(run.results) if r.stages[0][0] <= at < r.ended_ns)
    return now


def blocks_by_hand(run: Run, ns: int) -> dict[str, dict[int, tuple[str, int | None]]]:
    """Memory → block → (state, request) of every block that was ever moved by then."""
    found: dict[str, dict[int, tuple[str, int | None]]] = {}
    for move in sorted(run.timeline.moves, key=lambda move: move.at_ns):
        if move.at_ns <= run.timeline.start_ns + ns:
            for block in move.blocks:
                found.setdefault(move.pool, {})[block] = move.state, move.owner
    return found
