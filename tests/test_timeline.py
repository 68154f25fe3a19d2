"""Intervals against a brute-force oracle; H, W, E and the metrics of a run, on spans and results made by hand."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.batching import Padding
from disagg.plan.config import Config
from disagg.plan.errors import RequestError
from disagg.plan.request import Request
from disagg.plan.state import ControllerState
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.trace.intervals import intersection, length, union
from disagg.trace.metrics import Percentiles, percentile
from disagg.trace.recorder import BETWEEN_RUNS, Recorder
from disagg.trace.results import Result, Run
from disagg.trace.spans import Mark, Span
from disagg.trace.timeline import Overlap, Timeline
from disagg.twin.simulate import simulate

INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def points(intervals) -> set[int]:
    return {point for start, end in intervals for point in range(start, end)}


@given(INTERVALS, INTERVALS)
def test_intervals_against_sets_of_points(a, b):
    assert points(union(a)) == points(a)
    assert length(a) == len(points(a))
    common = intersection(a, b)
    assert points(common) == points(a) & points(b)
    assert common == union(common), "disjoint, in order"


@given(INTERVALS)
def test_a_union_is_disjoint_and_joins_what_touches(a):
    joined = union(a)
    assert all(left[1] < right[0] for left, right in zip(joined, joined[1:], strict=False))
    assert all(start < end for start, end in joined)


def prefill(start, end, *firsts, place="prefill 0"):
    return Span("prefill", place, start, end, firsts, firsts=firsts)


def copy(start, end, request=1, transfer=1, place="direct 0", kind="copy"):
    return Span(kind, place, start, end, (request,), nbytes=8, transfer=transfer, occupied_ns=end - start)


OVERLAPS = {
    "three layers, one exposed": (
        [prefill(0, 30, 1), copy(10, 20), copy(20, 30), copy(30, 40)],
        Overlap(1 - 10 / 30, 20 / 30, 10e-9, 30e-9),
    ),
    "bulk hides nothing": ([prefill(0, 30, 1), copy(30, 60)], Overlap(0.0, 0.0, 30e-9, 30e-9)),
    "a hand-off that beats its prefill hides all": ([prefill(0, 30, 1), copy(10, 30)], Overlap(1.0, 1.0, 0.0, 20e-9)),
    "two hops count twice in H and once in W": (
        [prefill(0, 10, 1), copy(10, 20, place="down 0"), copy(15, 30, place="up 0")],
        Overlap(1 - 20 / 25, 0.0, 20e-9, 25e-9),
    ),
    "H is negative where copies wait": ([prefill(0, 10, 1), copy(50, 60)], Overlap(1 - 50 / 10, 0.0, 50e-9, 10e-9)),
    "nothing handed off": ([prefill(0, 10, 1)], Overlap(None, None, 0.0, 0.0)),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_h_w_and_e_by_hand(case):
    spans, expected = OVERLAPS[case]
    assert Timeline(spans).overlap(1) == expected and Timeline(spans).overlap() == pytest.approx(expected)


def test_only_the_first_hand_off_counts_for_a_request():
    spans = [prefill(0, 10, 1), copy(10, 20), copy(100, 110, transfer=7), copy(200, 210, kind="spill")]
    assert Timeline(spans).overlap(1).exposed_s == 10e-9
    assert len(Timeline(spans).hand_off(1)) == 1
    assert Timeline([prefill(0, 10, 1), prefill(90, 99, 1)]).prefill_end_ns(1) == 10


def test_w_of_a_run_sees_other_requests_prefill():
    timeline = Timeline([prefill(0, 10, 1), copy(10, 20), prefill(10, 15, 2), copy(15, 25, request=2, transfer=2)])
    assert timeline.overlap(1).wall == 0.5
    run = timeline.overlap()
    assert run.wall == pytest.approx(5 / 15)
    assert (run.hidden, run.exposed_s) == (pytest.approx(1 - 20 / 20), pytest.approx(20e-9))


def test_an_empty_timeline():
    assert Timeline().overlap() == Overlap(None, None, 0, 0)
    assert (Timeline().end_ns, Timeline(start_ns=5).end_ns, Timeline().places) == (0, 5, [])


def test_busy_counts_overlapping_spans_once():
    timeline = Timeline([copy(0, 10), copy(5, 15), copy(20, 21), copy(0, 99, place="up 0")])
    assert timeline.busy("direct 0") == 16 and timeline.end_ns == 99


def test_places_stand_in_the_order_in_which_a_request_passes_them():
    names = ["spill 0", "decode 0", "up 0", "prefill 1", "down 0", "prefill 0"]
    assert Timeline([copy(0, 1, place=name) for name in names]).places == [
        "prefill 0", "prefill 1", "down 0", "up 0", "decode 0", "spill 0"
    ]  # fmt: skip


def law_spans(copies_ns: int, requests=(1,)) -> list[Span]:
    """Four layers handed off at 10, 20, 30, 40 of a pass that ends at 45; each copy occupies its wire alone."""
    marks, end, spans = (10, 20, 30, 40), 0, []
    for layer, mark in enumerate(marks):
        start = max(mark, end)
        end = start + copies_ns
        spans.append(Span("copy", "direct 0", start, end, (1,), layer, 1, 8, transfer=3, occupied_ns=copies_ns))
    return [Span("prefill", "prefill 0", 0, 45, requests, 0, 16, firsts=requests, hand_offs_ns=marks), *spans]


@pytest.mark.parametrize("copies_ns", [3, 10, 25, 40])
def test_the_law_of_a_request_agrees_with_what_was_measured(copies_ns):
    timeline = Timeline(law_spans(copies_ns))
    assert timeline.law(1).hidden == pytest.approx(timeline.overlap(1).hidden)


def test_the_law_is_silent_where_it_does_not_hold():
    packed, whole = Timeline(law_spans(10, requests=(1, 2))), law_spans(10)
    bulk = Timeline([whole[0], Span("copy", "direct 0", 45, 85, (1,), 0, 4, 32, transfer=3, occupied_ns=40)])
    assert packed.law(1) is None and bulk.law(1) is None and Timeline(whole[:1]).law(2) is None
    assert Timeline(whole[:1]).law(1) is None, "nothing was handed off"


def test_the_law_holds_where_all_layers_travel_in_one_copy_before_prefill_ends():
    one = Span("copy", "direct 0", 41, 49, (1,), 0, 4, 32, transfer=3, occupied_ns=8)
    timeline = Timeline([law_spans(10)[0], one])
    assert timeline.law(1).copies == 1 and timeline.law(1).exposed_s == pytest.approx(3e-9)


def test_a_recorder_tells_sizes_and_counts_a_run_from_its_begin_on():
    shape = dict(layers=2, token_bytes=4)
    config = Config.preset("staged", prefill_blocks=8, decode_blocks=9, ring_slots=2)
    state, transfers = ControllerState(config, **shape, steps_in_flight=1), TransferScheduler(config, **shape)
    recorder = Recorder(state, transfers)
    assert recorder.timeline.sizes == {"prefill 0": 8, "decode 0": 9, "ring": 2}
    transfers.on_ring(5, 1)
    assert recorder.timeline.marks == deque([Mark(5, "ring", 1)], BETWEEN_RUNS), "the last entries are kept"
    state.padding.add(3, 4)
    recorder.begin(7)
    state.padding.add(30, 40)
    run = recorder.run(config, [])
    assert (run.padding, list(run.timeline.marks), run.timeline.start_ns) == (Padding(30, 40), [], 7)


def test_spans_on_a_place_share_time_with_what_is_asked_for():
    first, second = (Span("prefill", "prefill 0", start, start + 10, (0,)) for start in (0, 10))
    index = Timeline([first, second]).index()
    found = [index.on_place("prefill 0", *times) for times in ((0, 20), (9, 10), (10, 11), (5, 5), (20, 30))]
    assert found == [[first, second], [first], [second], [], []]


def test_of_a_run_it_is_the_sum_over_its_requests():
    """Some are preempted and handed off again, of which the first time counts."""
    config = Config.preset("staged", link=0.05e9, decode_blocks=24, prefill_blocks=24)
    timeline = simulate(config, [Request([1] * 60, 100, arrival_s=0.1 * i) for i in range(8)]).timeline
    copies = {span.transfer: span.requests for span in timeline.spans if span.kind == "copy"}
    assert len(copies) > 8 == len(set(copies.values()))
    parts, run = [timeline.overlap(request) for request in range(8)], timeline.overlap()
    assert run.transfer_s == pytest.approx(sum(part.transfer_s for part in parts))
    assert run.exposed_s == pytest.approx(sum(part.exposed_s for part in parts)) and run.exposed_s > 0
    assert run.hidden == pytest.approx(1 - run.exposed_s / run.transfer_s)


S = 10**9


def answer(request, arrival, *times, reason="length") -> Result:
    return Result(request, 4, arrival * S, [7] * len(times), [round(t * S) for t in times], finish_reason=reason)


def made_by_hand() -> Run:
    results = [
        answer(0, 1, 2, 4, 5, 6), answer(1, 2, 3), answer(2, 2, 6, 7, reason="eos"), answer(3, 3, reason="failed")
    ]  # fmt: skip
    spans = [
        Span("prefill", "prefill 0", 1 * S, 3 * S, (0,)),
        Span("copy", "direct 0", 2 * S, 4 * S, (0,), nbytes=100),
        Span("copy", "direct 0", 5 * S, 6 * S, (2,), nbytes=50),
    ]
    return Run(Config(), results, Timeline(spans), {"spills": 1}, Padding(30, 40), {"decode 0": 9})


def test_one_result():
    result = answer(0, 1, 2, 4, 5, 6)
    assert (result.ttft_s, result.second_token_gap_s, result.itl_s) == (1, 2, [2, 1, 1])
    assert result.tpot_s == pytest.approx(4 / 3)
    one = answer(1, 2, 3)
    assert (one.ttft_s, one.second_token_gap_s, one.tpot_s, one.itl_s) == (1, None, None, [])
    none = answer(3, 3)
    assert (none.ttft_s, none.second_token_gap_s, none.tpot_s) == (None, None, None)


def test_a_run():
    metrics = made_by_hand().metrics()
    assert (metrics.requests, metrics.finished) == (4, {"eos": 1, "failed": 1, "length": 2})
    assert (metrics.new_tokens, metrics.seconds, metrics.tokens_per_s) == (7, 6.0, 7 / 6)
    assert (metrics.ttft_s.p50, metrics.second_token_gap_s.p50, metrics.itl_s.p50) == (1, 1.5, 1)
    assert metrics.tpot_s == Percentiles.of([4 / 3, 1.0], requests=2, asked=4)
    assert (metrics.ttft_s.over, metrics.itl_s.count) == ("of 3 of 4 requests", 4)
    assert metrics.busy == {"prefill 0": 2 / 6, "direct 0": 3 / 6}
    assert (metrics.bytes_moved, metrics.peak_blocks) == ({"direct 0": 150}, {"decode 0": 9})
    assert metrics.padding_waste == 0.25
    assert (metrics.attainment, metrics.counts) == (None, {"spills": 1})
    assert made_by_hand().anomalies == 0


@pytest.mark.parametrize(
    "limits, share",
    [((1, None), 0.5), ((1, 1.2), 0.25), ((None, 1.2), 0.5), ((None, 1.0), 0.5), ((4, 2), 0.75), ((0.5, None), 0.0)],
)
def test_attainment_counts_the_unanswered_as_missed_and_one_token_as_no_tpot(limits, share):
    assert made_by_hand().metrics(*limits).attainment == share


@given(st.lists(st.sampled_from(["eos", "length", "cancelled", "failed", ""]), min_size=1), st.integers(0, 3))
def test_only_a_whole_answer_meets_a_limit_whatever_came_before_its_end(reasons, tokens):
    times = range(1, 1 + tokens)
    run = Run(Config(), [answer(i, 0, *times, reason=reason) for i, reason in enumerate(reasons)], Timeline())
    whole = sum(reason in ("eos", "length") for reason in reasons) if tokens else 0
    for limits in ((1e9, 1e9), (1e9, None), (None, 1e9)):
        assert run.metrics(*limits).attainment == whole / len(reasons)


def test_a_run_that_is_empty_or_without_time_has_no_rates():
    metrics = Run(Config(), [], Timeline()).metrics(1.0)
    assert (metrics.requests, metrics.tokens_per_s, metrics.attainment, metrics.ttft_s.p50) == (0, 0.0, None, None)
    # cancelled before its first token: work was done, but nothing says in how long
    timeline = Timeline([Span("prefill", "prefill 0", 0, S, (0,))])
    metrics = Run(Config(), [answer(0, 1, reason="cancelled")], timeline).metrics()
    assert (metrics.seconds, metrics.tokens_per_s, metrics.busy) == (0.0, 0.0, {"prefill 0": 0.0})


def test_percentiles_interpolate_between_ranks():
    assert [percentile([4, 1, 3, 2], share) for share in (0, 0.5, 1)] == [1, 2.5, 4]
    assert percentile([], 0.5) is None and percentile([7], 0.99) == 7


@given(st.lists(st.integers(-50, 50), min_size=1), st.floats(0, 1))
def test_a_percentile_lies_between_its_neighbours(values, share):
    below = sum(value < percentile(values, share) - 1e-9 for value in values)
    assert min(values) <= percentile(values, share) <= max(values)
    assert below <= share * (len(values) - 1) + 1


def test_simulate_gives_a_whole_run():
    requests = [Request([5] * 20, 6), Request([6] * 3, 1, arrival_s=0.5), Request([7] * 40, 3)]
    run = simulate(Config.preset("staged"), requests)
    assert [len(result.token_ids) for result in run.results] == [6, 1, 3]
    assert [result.request for result in run.results] == [0, 1, 2] and run.anomalies == 0
    metrics = run.metrics()
    assert metrics.finished == {"length": 3} and set(metrics.bytes_moved) == {"down 0", "up 0"}
    assert metrics.bytes_moved["down 0"] == metrics.bytes_moved["up 0"] == (2 + 3) * 16 * 46_080
    assert metrics.peak_blocks["prefill 0"] == 3 and run.log


def test_simulate_needs_ids_and_room():
    with pytest.raises(RequestError, match="it has no tokenizer"):
        simulate(Config(), [Request("why")])
    with pytest.raises(RequestError, match="but prefill 0 has 2; shorten"):
        simulate(Config(prefill_blocks=2), [Request([1] * 40)])
