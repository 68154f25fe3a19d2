"""A difference of two runs: sums that agree with the runs' own numbers, and other requests refused."""

import copy

import pytest
from test_archive import simulated

from disagg import Config, Engine, Request, diff
from disagg.plan.config import PRESETS
from disagg.plan.errors import DifferenceError, DisaggError


def summed(run, name: str) -> float:
    return sum(getattr(result, name) for result in run.results if getattr(result, name) is not None)


@pytest.mark.parametrize("preset", PRESETS)
def test_totals_are_the_runs_own_numbers(preset):
    a, b = simulated("split", 8), simulated(preset, 8)
    found = diff(a, b)
    for name in ("ttft_s", "second_token_gap_s"):
        change = getattr(found.total, name)
        assert (change.before_s, change.after_s) == pytest.approx((summed(a, name), summed(b, name)))
    for name, seconds in b.receipts().items():
        assert found.total.receipt[name].after_s == pytest.approx(8 * seconds)
    for changes in (found.total, *(request.changes for request in found.requests)):
        assert sum(c.by_s for c in changes.receipt.values()) == pytest.approx(changes.end_to_end_s.by_s)
        assert changes.end_to_end_s.after_s > 0
    took = [(result.ended_ns - result.arrival_ns) / 1e9 for result in b.results]
    assert [request.changes.end_to_end_s.after_s for request in found.requests] == took
    assert not found.differing


def test_the_way_back_is_the_opposite():
    a, b = simulated("split"), simulated("streamed")
    there, back = diff(a, b), diff(b, a)
    assert there.total.end_to_end_s.by_s == -back.total.end_to_end_s.by_s < 0
    assert "shorter on average, above all transfer (-" in there.finding
    assert "longer on average, above all transfer (+" in back.finding


def test_a_run_and_itself():
    run = simulated()
    assert diff(run, run).finding == "A request takes as long in both runs, on average; all tokens are equal."
    assert diff(simulated(count=0), simulated(count=0)).requests == ()


def test_it_names_the_first_token_that_differs():
    a, b, short = simulated(), simulated(), simulated()
    b.results[3].token_ids[1] += 1
    short.results[4].token_ids = short.results[4].token_ids[:-1]
    assert [request.differs_at for request in diff(a, b).requests] == [None, None, None, 1, None, None]
    assert diff(a, b).finding.endswith("1 of 6 requests have other tokens, request 3 from token 2 on.")
    assert diff(a, short).requests[4].differs_at == len(short.results[4].token_ids)


def test_it_prints_as_a_short_table():
    found = diff(simulated("split"), simulated("streamed"))
    lines = str(found).splitlines()
    assert lines[0] == found.finding and lines[1].split() == ["ms", "a", "request", "before", "after", "change"]
    assert [line[:18].strip() for line in lines[2:5]] == ["TTFT", "second-token gap", "end to end"]
    assert any(line.startswith("  transfer") for line in lines) and len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_table_holds_means_in_milliseconds_and_no_line_of_nothing(count):
    found = diff(simulated("split", count), simulated("streamed", count))
    printed = {line[:18].strip(): line[18:].split() for line in str(found).splitlines()[2:]}
    total = found.total.end_to_end_s
    means = (1e3 * seconds / count for seconds in (total.before_s, total.after_s))
    assert printed["end to end"][:2] == [f"{ms:.1f}" for ms in means]
    assert found.total.receipt["unaccounted"] == (0.0, 0.0) and "unaccounted" not in printed


def test_other_requests_are_refused():
    with pytest.raises(DifferenceError, match="one run served 6 requests, the other 5; compare two runs of the same"):
        diff(simulated(), simulated(count=5))
    other = copy.copy(simulated())
    other.results[3].prompt_tokens = 1
    with pytest.raises(DisaggError, match=r"the prompt of request 3 has \d+ tokens in one run and 1 in the other"):
        diff(simulated(), other)


def test_times_that_a_run_does_not_have_are_left_out():
    """Without a record there is no receipt, and with one token no gap."""
    requests = [Request([1, 2, 3], 1)]
    with Engine(Config.preset("colocated", model="tiny", decode_blocks=16)) as engine:
        found = diff(engine.serve(requests), engine.serve(requests, record=False))
    assert found.total.second_token_gap_s is None and "second-token gap" not in str(found)
    assert found.total.receipt["prefill"].after_s == 0 and found.total.ttft_s.after_s > 0
