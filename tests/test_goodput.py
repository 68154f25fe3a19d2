"""Goodput: the highest rate met is found, whatever it is; what has no rate, no limits or no end is refused in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg import Config, Request, simulate
from disagg.plan.errors import ConfigError, RequestError
from disagg.twin import goodput as goodputs
from disagg.twin.goodput import FARTHEST, STEP, Load, Slo, TooShort, goodput, highest
from disagg.twin.workloads import Lengths, poisson

EIGHT = Config(model="random-llama3-8b", dtype="bfloat16", prefill_device="cuda:0", decode_device="cuda:1")
SOME = poisson(10, 1.0, Lengths(1500, 0.5), Lengths(4), seed=1)


@pytest.fixture(scope="module", autouse=True)
def few_requests_will_do():
    """So that a simulation takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(goodputs, "LASTS", 0.5)
        yield


@given(st.integers(-FARTHEST, FARTHEST - 1), st.integers(-FARTHEST, FARTHEST), st.integers(1, 40))
def test_the_last_step_that_is_met_is_found_from_anywhere(last, start, stride):
    asked = []

    def met(step: int) -> bool:
        assert -FARTHEST <= step <= FARTHEST
        asked.append(step)
        return step <= last

    assert highest(met, start, stride) == last
    assert {last, last + 1} <= set(asked) and len(asked) < 24 + 2 * FARTHEST // stride // 8


@pytest.mark.parametrize(
    ("last", "steps"), [(-20, [0, -2, -6, -14, -30, -22, -18, -20, -19]), (20, [0, 2, 6, 14, 30, 22, 18, 20, 21])]
)
def test_leaps_double_until_they_pass_it_and_what_is_left_is_halved(last, steps):
    asked = []
    assert highest(lambda step: asked.append(step) or step <= last, 0, 2) == last
    assert asked == steps


def test_all_and_none_are_distinguished():
    assert highest(lambda step: True, 0) == FARTHEST and highest(lambda step: False, 0) is None


def test_at_the_goodput_enough_meet_the_limits_and_a_step_later_they_do_not():
    load, slo = Load.of(SOME), Slo(1.0, 0.2)
    found = goodput(EIGHT, load, slo, "2xL4")
    for rate, enough in ((found.per_s, True), (found.per_s * STEP, False)):
        share = simulate(EIGHT, load.at(rate), hardware="2xL4").metrics(1.0, 0.2).attainment
        assert (share >= 0.9) is enough and share in {p.attainment for p in found.probes}
    assert found.attainment >= 0.9 and found.per_s == load.rate(found.step)


def test_a_least_rate_that_is_missed_costs_one_simulation():
    load, slo = Load.of(SOME), Slo(1.0, 0.2)
    step = goodput(EIGHT, load, slo, "2xL4").step
    missed, met = (goodput(EIGHT, load, slo, "2xL4", least) for least in (step + 1, step - 1))
    assert (missed.step, missed.per_s, len(missed.probes)) == (None, 0.0, 1)
    assert met.step == step and [p.per_s for p in met.probes][0] == load.rate(step - 1)


@given(st.floats(0.01, 100))
def test_another_rate_stretches_all_gaps_alike(per_s):
    load = Load.of([Request([1], 1, 3.0), Request([2], 1, 1.0), Request([3], 1, 2.0)])
    asked = load.at(per_s)
    assert load.per_s == 1.0 and [r.prompt for r in asked] == [[2], [3], [1]]
    assert [r.arrival_s for r in asked] == pytest.approx([0.0, 1 / per_s, 2 / per_s])


def test_a_workload_that_ends_before_a_queue_grows_is_refused(monkeypatch):
    load = Load.of([Request([1], 2, arrival_s=float(index)) for index in range(11)])
    assert load.rate(load.last_step(5.0)) == pytest.approx(2, rel=0.05) and load.last_step(1e-9) == FARTHEST
    monkeypatch.setattr(goodputs, "LASTS", 5)
    with pytest.raises(TooShort, match="11 requests are too few: at 1.98 a second they meet the limits, but arrive"):
        goodput(EIGHT, load, Slo(1, 10), "2xL4")


def test_where_everything_fails_no_rate_is_found_and_the_answer_says_where_it_looked():
    """A wire that lands nothing within the watchdog's time: token 1 is early, and no request gets its second."""
    found = goodput(EIGHT.replace(link=1e4), Load.of(SOME), Slo(5.0, 0.2), "2xL4")
    assert (found.step, found.per_s) == (None, 0.0) and {probe.attainment for probe in found.probes} == {0.0}
    assert str(found).startswith("no goodput: at best 0% of the requests keep the limits, at ")
    assert "(100% failed there)" in str(found)
    rates = [probe.per_s for probe in found.probes]
    assert f"from {min(rates):.3g} to {max(rates):.3g} a second with 10 requests, of which 90% must keep" in found.where


def test_limits_that_nothing_meets_give_no_rate():
    found = goodput(EIGHT, Load.of(SOME), Slo(1e-4, 0.2), "2xL4")
    assert found.step is None and {p.attainment for p in found.probes} == {0.0}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Slo(0, 1), ConfigError, "ttft_s must be the limit on the time to first token in seconds, above 0"),
        (lambda: Slo(1, None), ConfigError, "tpot_s must be the limit on the time per output token in seconds"),
        (lambda: Slo(1, 1, 0), ConfigError, "share must be above 0 and at most 1, as 0.9; got 0"),
        (lambda: Slo(1, 1, 1.5), ConfigError, "share must be above 0 and at most 1, as 0.9; got 1.5"),
        (lambda: Load.of([]), RequestError, "a workload of 0 requests within 0 s has no arrival rate"),
        (lambda: Load.of([Request([1]), Request([1])]), RequestError, "a workload of 2 requests within 0 s"),
        (lambda: Load.of(["a", "b"]), RequestError, "a workload is a list of Arrivals"),
        (lambda: Load.of(5), RequestError, "a workload is a list of Arrivals"),
        (lambda: Load.of(SOME).at(0), RequestError, "per_s must be requests a second, above 0; got 0"),
    ],
)
def test_impossible_arguments_are_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
