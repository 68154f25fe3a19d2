"""Intervals against a brute-force oracle, and H, W and E on spans made by hand."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.batching import Padding
from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.plan.spans import Mark, Span
from disagg.plan.state import ControllerState
from disagg.plan.transfer_scheduler import TransferScheduler
from disagg.trace.intervals import intersection, length, union
from disagg.trace.recorder import BETWEEN_RUNS, Recorder
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


def test_three_layers_one_exposed():
    timeline = Timeline([prefill(0, 30, 1), copy(10, 20), copy(20, 30), copy(30, 40)])
    assert timeline.overlap(1) == Overlap(1 - 10 / 30, 20 / 30, 10e-9, 30e-9)
    assert timeline.overlap() == pytest.approx(timeline.overlap(1))


def test_bulk_hides_nothing_and_a_hand_off_that_beats_its_prefill_hides_all():
    assert Timeline([prefill(0, 30, 1), copy(30, 60)]).overlap(1) == Overlap(0.0, 0.0, 30e-9, 30e-9)
    assert Timeline([prefill(0, 30, 1), copy(10, 30)]).overlap(1) == Overlap(1.0, 1.0, 0.0, 20e-9)


def test_two_hops_count_twice_in_h_and_once_in_w():
    spans = [prefill(0, 10, 1), copy(10, 20, place="down 0"), copy(15, 30, place="up 0")]
    assert Timeline(spans).overlap(1) == Overlap(1 - 20 / 25, 0.0, 20e-9, 25e-9)


def test_h_may_be_negative_where_copies_wait():
    assert Timeline([prefill(0, 10, 1), copy(50, 60)]).overlap(1).hidden == 1 - 50 / 10


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


def test_nothing_handed_off():
    assert Timeline([prefill(0, 10, 1)]).overlap(1) == Overlap(None, None, 0.0, 0.0)
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
