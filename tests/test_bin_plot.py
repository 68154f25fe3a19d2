"""Bins in a step: means equal the run's own counts, and the picture names the cheapest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg import Config, Request, simulate
from disagg.plan.batching import bin_of
from disagg.show.plots.bin_plot import Binned, bins_picture, even_bounds
from disagg.trace.batch_history import batch_steps


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 12))
def test_even_bounds_are_lengths_and_rise(lengths, bins):
    bounds = even_bounds(lengths, bins)
    assert list(bounds) == sorted(set(bounds)) and len(bounds) < max(2, bins) and set(bounds) <= set(lengths)
    Config(bins=bounds)


def test_even_bounds_share_the_lengths():
    lengths = list(range(1, 33))
    bounds = even_bounds(lengths, 4)
    counts = [sum(bin_of(length, bounds) == index for length in lengths) for index in range(4)]
    assert bounds == (8, 16, 24) and counts == [8, 8, 8, 8]
    assert even_bounds(lengths, 1) == ()


def served(bounds=()):
    config = Config.preset("colocated", chunk_tokens=1024, bins=bounds)
    return simulate(config, [Request([7] * length, 6) for length in (19, 29, 300)])


def test_means_equal_the_counts_of_the_run():
    run = served((64,))
    one, steps = Binned.of(run), batch_steps(run)
    assert (one.bins, one.groups) == (2, sum(len(step.bins) for step in steps) / len(steps))
    assert one.used * len(steps) == pytest.approx(run.padding.used_slots)
    assert one.padded * len(steps) == pytest.approx(run.padding.padded_slots)
    assert one.waste == pytest.approx(run.padding.waste)


def test_the_picture_names_the_cheapest():
    found = [Binned(1, 100, 1000, 1.0), Binned(2, 100, 300, 2.0), Binned(8, 100, 200, 8.0)]
    picture = bins_picture(found, slot_us=10, group_us=1000)
    assert picture.finding == (
        "Padding falls from 90% of the slots with 1 bin to 50% with 8, groups of a step rise from 1.0 to 8.0; "
        "cheapest: 2 bins, 5 ms of attention in a step."
    )
    assert "8 bins: 10 ms, 50% padding, 8.0 groups." in picture.alt
    assert "cheapest: 8 bins" in bins_picture(found, slot_us=10, group_us=0).finding
