"""The closed form against a recursion over copies and against a simulated world; the picture of its curve."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plots import LATEX

from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.show.plots.law_plot import law_picture
from disagg.show.plots.palette import COLOURS
from disagg.trace.law import Law, simplest_hidden
from disagg.twin.simulate import Speeds, simulate

NS = st.integers(0, 1000)


def closed_form_ns(copies, compute, hops, tail, group=1, slots=None, latency=0) -> int:
    """The law with times of one copy, in ns."""
    law = Law(
        copies * group, compute / group * 1e-9, tuple(hop / group * 1e-9 for hop in hops), tail * 1e-9, group, slots,
        latency * 1e-9,
    )  # fmt: skip
    assert law.copies == copies
    return round(law.exposed_s * 1e9)


def streamed_exposure_ns(ready_ns: list[int], copies_ns: list[list[int]], prefill_end_ns: int) -> int:
    """E by recursion on when each copy became ready. `copies_ns[hop][copy]` is how long one copy keeps one hop busy;
    hops pass copies on in order, each one at a time."""
    arrivals = list(ready_ns)
    for hop in copies_ns:
        pairs = zip(arrivals, hop, strict=True)
        arrivals = list(accumulate(pairs, lambda busy, pair: max(busy, pair[0]) + pair[1], initial=0))[1:]
    return max(0, arrivals[-1] - prefill_end_ns)


@given(st.integers(1, 12), NS, st.lists(NS, min_size=1, max_size=2), NS, st.integers(1, 4))
def test_the_closed_form_is_the_recursion(copies, compute, hops, tail, group):
    ready = [compute * (index + 1) for index in range(copies)]
    exposed = streamed_exposure_ns(ready, [[hop] * copies for hop in hops], ready[-1] + tail)
    assert exposed == closed_form_ns(copies, compute, hops, tail, group)


def ring_exposure_ns(copies, compute, first, second, slots) -> int:
    """By hand: hop one needs a slot, which hop two gives back."""
    down = up = 0
    left = []
    for index in range(copies):
        free = left[index - slots] if index >= slots else 0
        down = max(compute * (index + 1), down, free) + first
        up = max(down, up) + second
        left.append(up)
    return up - compute * copies


@given(st.integers(1, 12), NS, NS, NS, st.integers(1, 5))
def test_the_closed_form_with_a_ring(copies, compute, first, second, slots):
    exposed = ring_exposure_ns(copies, compute, first, second, slots)
    assert exposed == closed_form_ns(copies, compute, (first, second), 0, slots=slots)


@given(st.integers(1, 40), st.floats(0.01, 5))
def test_the_form_derived_in_class(layers, ratio):
    law = Law(layers, ratio, (1.0,))
    assert law.hidden == pytest.approx(simplest_hidden(layers, ratio))


def test_numbers_known_by_heart():
    assert simplest_hidden(24, 1) == pytest.approx(23 / 24)
    assert Law(4, 1.0, (1.0,)).exposed_s == 1.0, "the last layer is always exposed"
    assert Law(4, 0.0, (1.0, 1.0)).hidden == 1 - 5 / 8, "two hops hide behind each other"
    assert Law(4, 0.0, (1.0, 1.0), ring_slots=1).hidden == 0.0
    assert Law(4, 1.0, (0.5,), tail_s=9.0).hidden == 1.0
    assert Law(4, 1.0, (0.5,), latency_s=2.0).exposed_s == 2.5
    assert Law(4, 1.0, (0.0,)).hidden == 1.0, "nothing to move"
    assert (Law(5, 1.0, (1.0,), layers_per_copy=2).copies, Law(5, 1.0, (2.0,)).transfer_s) == (3, 10.0)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("slots, route", [(None, "direct"), (8, "staged"), (1, "staged")])
@pytest.mark.parametrize("bandwidth", [1e7, 4e7, 4e8])
def test_one_request_alone_in_a_simulated_world_obeys_the_law(group, slots, route, bandwidth):
    """One chunk, no contention; compute is 3000 ns a layer, a copy carries 8 blocks of 16 tokens."""
    speeds = Speeds(layers=6, token_bytes=6, prefill_pass=0, prefill_token=140, tail=50)
    config = Config(route=route, link=Link(bandwidth), layers_per_copy=group, ring_slots=slots or 1, chunk_tokens=128)
    run = simulate(config, [Request(tuple(range(128)), 3)], speeds)
    compute = 128 * 140 // 6
    layer_s = 128 / bandwidth
    hops = (layer_s,) if route == "direct" else (layer_s, layer_s)
    law = Law(6, compute * 1e-9, hops, 50e-9, group, slots)
    overlap = run.overlap(0)
    assert overlap.exposed_s == pytest.approx(law.exposed_s, abs=50e-9)  # occupancies are whole ns
    assert overlap.hidden == pytest.approx(law.hidden, abs=0.01)
    assert overlap.transfer_s == pytest.approx(law.transfer_s, abs=50e-9)
    assert run.law(0).hidden == pytest.approx(law.hidden, abs=0.01), "by what was recorded"


@pytest.mark.parametrize("slots, exposed_s", [(1, 0.782), (7, 0.086), (8, 0.086)])
@pytest.mark.parametrize("route", ["staged", "direct"])
def test_latency_enters_once_a_hop_and_keeps_a_slot_of_the_ring(route, slots, exposed_s):
    """c = 2 ms, x = 4 ms, 10 ms of latency: a copy keeps its slot for 28 ms, so seven slots keep a wire busy."""
    speeds = Speeds(prefill_pass=0, prefill_token=468_750, tail=0)
    link = Link(128 * speeds.token_bytes / 30 / 0.004, latency_s=0.010)
    run = simulate(Config(route=route, link=link, ring_slots=slots, chunk_tokens=128), [Request([1] * 128, 3)], speeds)
    expected = exposed_s if route == "staged" else 0.072
    assert run.overlap(0).exposed_s == pytest.approx(expected)
    assert run.law(0).exposed_s == pytest.approx(expected)


def lines(picture) -> dict:
    return {line.get_label(): line for line in picture.figure.axes[0].lines}


def test_the_curve_is_the_law():
    ratios, heights = lines(law_picture({}, 30))["law, 30 layers"].get_data()
    assert list(ratios) == [0, 1, 2.12]
    assert list(heights) == pytest.approx([100 * simplest_hidden(30, ratio) for ratio in ratios])


def test_points_stand_where_they_were_measured():
    points = {"simulated": [(0.5, 0.4), (3.0, 0.9)], "real": [(1.0, -0.2)]}
    picture = law_picture(points, 24)
    drawn = lines(picture)
    for name, pairs in points.items():
        assert list(zip(*drawn[name].get_data(), strict=True)) == [(ratio, 100 * h) for ratio, h in pairs]
    assert drawn["simulated"].get_marker() != drawn["real"].get_marker(), "told apart without colour"
    axes = picture.figure.axes[0]
    assert axes.get_xlim()[1] > 3 and axes.get_ylim()[0] <= -20, "all of them are inside"


def test_the_finding_says_how_far_points_are_from_the_law():
    law = simplest_hidden(30, 0.5)
    picture = law_picture({"simulated": [(0.5, law), (1.0, simplest_hidden(30, 1) - 0.031)]}, 30)
    assert picture.finding == (
        "The law for 30 layers rises with c/x to 96.7 % at c = x and stays there; "
        "simulated: 2 points, at most 3.1 percentage points off."
    )
    words = [text.get_text() for text in picture.figure.axes[0].texts]
    assert picture.finding in picture.alt and {"48 %", "94 %", "at most 3.1 points off the law"} <= set(words)


def test_without_times_the_finding_is_the_same_for_every_measurement():
    near, far = ({"this machine": [(0.5, h)]} for h in (0.5, 0.1))
    assert law_picture(near, 30).finding != law_picture(far, 30).finding
    assert law_picture(near, 30, times=False).finding == law_picture(far, 30, times=False).finding


def test_names_are_drawn_as_text_and_nothing_is_no_error():
    assert law_picture({LATEX: [(1, 0.5)]}, 30).png()
    assert law_picture({}, 30).finding.endswith("and stays there.")
    assert law_picture({"none": []}, 30).finding.endswith("none: 0 points.")


def test_letters_and_colour():
    def size(picture):
        return picture.figure.axes[0].xaxis.label.get_fontsize()

    assert size(law_picture({}, 30)) == 12
    assert lines(law_picture({}, 30))["law, 30 layers"].get_color() == COLOURS["link"]
