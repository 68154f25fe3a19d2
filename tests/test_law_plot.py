"""The law's curve: every point is drawn where it was measured, and the sentence says how far it lies from the law."""

import pytest
from test_plots import LATEX

from disagg.show.plots.law_plot import law_picture
from disagg.show.plots.palette import COLOURS
from disagg.trace.law import simplest_hidden


def lines(picture) -> dict:
    """What is drawn, by the name in the legend."""
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
    assert picture.finding in picture.alt and "48.3 % at 0.50" in picture.alt


def test_without_times_the_finding_is_the_same_for_every_measurement():
    near, far = ({"this machine": [(0.5, h)]} for h in (0.5, 0.1))
    assert law_picture(near, 30).finding != law_picture(far, 30).finding
    assert law_picture(near, 30, times=False).finding == law_picture(far, 30, times=False).finding


def test_plain_pairs_are_measured_ones():
    picture = law_picture([(0.5, 0.4)], 2)
    assert "measured" in lines(picture)
    assert picture.finding == (
        "The law for 2 layers rises with c/x to 50.0 % at c = x and stays there; "
        "measured: 1 point, at most 15.0 percentage points off."
    )


def test_names_are_drawn_as_text_and_nothing_is_no_error():
    assert law_picture({LATEX: [(1, 0.5)]}, 30).png()
    assert law_picture({}, 30).finding.endswith("and stays there.")
    assert law_picture({"none": []}, 30).finding.endswith("none: 0 points.")


def test_letters_and_colour():
    def size(picture):
        return picture.figure.axes[0].xaxis.label.get_fontsize()

    assert (size(law_picture({}, 30)), size(law_picture({}, 30, projector=True))) == (12, 18)
    assert lines(law_picture({}, 30))["law, 30 layers"].get_color() == COLOURS["link"]
