"""The emulated link."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.errors import ConfigError
from disagg.plan.link import CPU_DIAL_LIMIT, PRESETS, Link, LinkClock, parse_link


def test_the_rule_of_the_dial():
    clock = LinkClock(Link(1e9, latency_s=5e-9, fixed_s=10e-9))
    assert clock.post(100, now_ns=1000) == (1000, 1110, 1115)
    assert clock.post(100, now_ns=1050) == (1110, 1220, 1225), "one after the other; latency is paid once"
    assert clock.post(0, now_ns=5000) == (5000, 5010, 5015)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1000)), min_size=1))
def test_copies_never_overlap_and_never_start_early(posts):
    clock, now, busy = LinkClock(Link(1e8, 1e-8, 2e-8)), 0, 0
    for wait, nbytes in posts:
        now += wait
        start, end, landing = clock.post(nbytes, now)
        assert start == max(now, busy) and end - start == 20 + 10 * nbytes and landing == end + 10
        busy = end


def test_an_undialled_link_takes_no_time_of_its_own():
    assert not Link().dialled and Link().occupancy_ns(10**9) == 0
    assert all(link.dialled for link in (Link(1e6), Link(latency_s=1e-6), Link(fixed_s=1e-6)))


def test_a_ratio_waits_for_the_machine_s_compute():
    link = Link.ratio(0.62, latency_s=1e-6)
    assert (link.compute_ratio, link.bandwidth, link.latency_s) == (0.62, math.inf, 1e-6)
    assert parse_link(link) is link


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"bandwidth": 0}, "link bandwidth must be bytes a second, 1 or more; got 0"),
        ({"bandwidth": math.nan}, "link bandwidth must be bytes a second, 1 or more; got nan"),
        ({"bandwidth": "fast"}, "link bandwidth must be bytes a second, 1 or more; got 'fast'"),
        ({"latency_s": -1}, "link latency_s must be seconds, from 0 to 1e+09; got -1"),
        ({"latency_s": math.nan}, "link latency_s must be seconds, from 0 to 1e+09; got nan"),
        ({"fixed_s": math.inf}, "link fixed_s must be seconds, from 0 to 1e+09; got inf"),
        ({"compute_ratio": 0}, "Link.ratio takes c/x above 0 (compute of a layer over its transfer); got 0"),
        ({"compute_ratio": math.nan}, "Link.ratio takes c/x above 0 (compute of a layer over its transfer); got nan"),
    ],
)
def test_a_link_refuses_in_words(fields, words):
    with pytest.raises(ConfigError) as caught:
        Link(**fields)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    "value, words",
    [
        ("pcie", "link 'pcie' is unknown; known: nvlink5, nvlink4, "),
        (True, "link must be a Link, a preset's name or bytes a second; got True"),
        ([1], "link must be a Link, a preset's name or bytes a second; got [1]"),
        (-5, "link bandwidth must be bytes a second, 1 or more; got -5.0"),
        ("nvlink", "link of 450 GB/s is faster than the emulation holds on a CPU (0.5 GB/s); take Link.ratio(c/x)"),
    ],
)
def test_parse_refuses_in_words(value, words):
    with pytest.raises(ConfigError) as caught:
        parse_link(value)
    assert str(caught.value).startswith(words)


def test_parse():
    assert parse_link(None) == Link()
    assert parse_link(1000) == Link(1000.0)
    assert parse_link("1gbe") == Link(PRESETS["1gbe"])
    assert parse_link("nvlink", "cuda:0") == Link(PRESETS["nvlink"])
    assert parse_link(CPU_DIAL_LIMIT) == Link(CPU_DIAL_LIMIT)
