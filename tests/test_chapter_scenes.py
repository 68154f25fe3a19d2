"""Scenes of chapters 03 and 06: their law is the run's, and what cannot be served says so; ticks and narrow boxes."""

import pytest

from disagg.course.guess import predict
from disagg.course.scenes import SCENES
from disagg.plan.errors import ConfigError
from disagg.show.overlay import _look
from disagg.trace.spans import Span


@pytest.mark.parametrize("fixed", [0, 8])
@pytest.mark.parametrize("group", [1, 2, 10])
def test_the_law_beside_the_run_says_the_runs_exposed_time(group, fixed):
    scene = SCENES["03"]
    settings = scene.settings({"x": 6, "group": group, "fixed": fixed, "tail": 4})
    facts = dict(scene.facts(scene.run(**settings), settings))
    assert facts["the law says E"] == facts["E, left after token 1"]


def test_a_law_that_takes_copies_to_be_alike_says_so_where_they_are_not():
    scene = SCENES["03"]
    settings = scene.settings({"layers": 8, "group": 3})
    assert "the law, were all copies alike: E" in dict(scene.facts(scene.run(**settings), settings))


def test_the_run_stands_on_the_curve_with_its_fixed_costs():
    scene = SCENES["03"]
    settings = scene.settings({"x": 6, "fixed": 8})
    (point,) = scene.curve(scene.run(**settings), **settings).points.values()
    assert point[0] == pytest.approx(10 / 14, rel=1e-3)


def test_two_that_do_everything_have_to_be_alike():
    scene = SCENES["06"]
    with pytest.raises(ConfigError, match="two devices alike"):
        scene.run(**scene.settings({"hardware": "H100+L4", "preset": "two_colocated"}))


def test_layers_have_no_halves_on_the_axis():
    (axes,) = predict("How many?", 1, 30, "layers").compare(2).figure.axes
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize(("ms", "hatched"), [(1, False), (50, True)])
def test_narrow_boxes_are_pale_and_wide_ones_hatched(ms, hatched):
    spans = [Span("copy", "link", 0, ms * 1_000_000, (1,))]
    assert ("hatch" in _look(spans, (0.0, 1000.0), predicted=True)) is hatched
