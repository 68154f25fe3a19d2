"""Each number of a run by its one definition, on results made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.batching import Padding
from disagg.plan.config import Config
from disagg.plan.errors import RequestError
from disagg.plan.request import Request
from disagg.plan.spans import Span
from disagg.trace.metrics import Percentiles, percentile
from disagg.trace.results import Result, Run
from disagg.trace.timeline import Timeline
from disagg.twin.simulate import simulate

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
    assert (result.ttft_s, result.second_token_gap_s, result.tpot_s, result.itl_s) == (
        1,
        2,
        pytest.approx(4 / 3),
        [2, 1, 1],
    )
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
    assert (metrics.bytes_moved, metrics.peak_blocks, metrics.padding_waste) == (
        {"direct 0": 150},
        {"decode 0": 9},
        0.25,
    )
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


def test_an_empty_run():
    metrics = Run(Config(), [], Timeline()).metrics(1.0)
    assert (metrics.requests, metrics.tokens_per_s, metrics.attainment, metrics.ttft_s.p50) == (0, 0.0, None, None)


def test_a_run_without_time_has_no_rates():
    """Cancelled before its first token: work was done, but nothing says in how long."""
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
