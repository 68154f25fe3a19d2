"""Arrivals by chance: the same for a seed, at the rate and with the shape that was asked for."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg import Config, simulate
from disagg.plan.errors import RequestError
from disagg.plan.workloads import Lengths, bursts, conversations, day, poisson, requests_of

PROMPT, NEW = Lengths(300, 1.0, most=4000), Lengths(40, 0.5)
KINDS = {"poisson": poisson, "bursts": bursts, "day": day, "conversations": conversations}


def gaps(arrivals) -> list[float]:
    return [b.at_s - a.at_s for a, b in zip(arrivals, arrivals[1:], strict=False)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_says_it_all(kind):
    make = KINDS[kind]
    assert make(50, 3, PROMPT, NEW, seed=4) == make(50, 3, PROMPT, NEW, seed=4) != make(50, 3, PROMPT, NEW, seed=5)


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("bursts", 3.0)])
def test_rate_and_variation_are_what_was_asked_for(kind, variation):
    found = gaps(KINDS[kind](20_000, 5, PROMPT, NEW))
    error = variation / 5 / math.sqrt(len(found))
    assert statistics.mean(found) == pytest.approx(1 / 5, abs=3 * error)
    assert statistics.stdev(found) * 5 == pytest.approx(variation, rel=0.15)


def test_a_day_has_more_at_its_height():
    found = day(40_000, 1, PROMPT, NEW, swing=0.8, day_s=1000)
    rising = sum(math.sin(2 * math.pi * a.at_s / 1000) > 0 for a in found)
    assert rising / len(found) == pytest.approx(0.5 + 0.8 / math.pi, abs=0.01)


def test_half_of_the_lengths_are_below_the_median_and_some_far_above():
    lengths = [a.prompt_tokens for a in poisson(5000, 1, PROMPT, NEW)]
    assert statistics.median(lengths) == pytest.approx(300, rel=0.06)
    assert max(lengths) == 4000 and min(lengths) >= 1 and sum(n > 1000 for n in lengths) > 400
    assert {a.new_tokens for a in poisson(50, 1, PROMPT, Lengths(7))} == {7}


def test_a_conversation_is_said_again_with_each_question():
    found = conversations(3, 1, Lengths(20), Lengths(5), turns=3)
    assert len(found) == 9 and [a.at_s for a in found] == sorted(a.at_s for a in found)
    first = [a for a in found if a.blocks[0] == 0]
    assert [a.prompt_tokens for a in first] == [20, 45, 70]
    prompts = [r.prompt for r in requests_of(first, vocab=1000)]
    assert prompts[1][:20] == prompts[0] and prompts[2][:45] == prompts[1]
    others = [r.prompt for r in requests_of([a for a in found if a.blocks[0] == 1], vocab=1000)]
    assert others[0] != prompts[0]


@given(st.integers(1, 40), st.floats(0.1, 100), st.integers(0, 9))
def test_whatever_comes_is_served(count, per_s, seed):
    arrivals = bursts(count, per_s, Lengths(30, 1.0, most=200), Lengths(4, 0.5, most=20), seed)
    requests = requests_of(arrivals, vocab=100, seed=seed, most=64)
    assert all(len(r.prompt) + r.max_new_tokens <= 64 + 20 for r in requests)
    run = simulate(Config.preset("streamed"), requests)
    assert [len(result.token_ids) for result in run.results] == [r.max_new_tokens for r in requests]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: poisson(0, 1, PROMPT, NEW), "count must be a whole number, 1 to 10,000,000; got 0"),
        (lambda: poisson(5, 0, PROMPT, NEW), "per_s must be requests a second, above 0; got 0"),
        (lambda: poisson(5, math.nan, PROMPT, NEW), "per_s must be requests a second, above 0; got nan"),
        (lambda: bursts(5, 1, PROMPT, NEW, variation=0), "variation must be a number from 0.05 to 20; got 0"),
        (lambda: day(5, 1, PROMPT, NEW, swing=2), "swing must be a number from 0 to 1; got 2"),
        (lambda: conversations(5, 1, PROMPT, NEW, turns=0), "turns must be a whole number, 1 to 1,000; got 0"),
        (lambda: Lengths(0), "a median of 1 token or more"),
        (lambda: Lengths(5, least=9, most=3), "1 ≤ least ≤ most; got 9 and 3"),
        (lambda: requests_of(poisson(1, 1, PROMPT, NEW), vocab=0), "vocab must be a whole number"),
    ],
)
def test_what_cannot_be_is_said(call, words):
    with pytest.raises(RequestError) as caught:
        call()
    assert words in str(caught.value)
