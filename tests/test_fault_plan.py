"""A plan of faults: which event is struck, the same for the same seed, refused in words where it makes no sense."""

import pytest

from benchmarks.robustness.drawn_faults import DrawnPlan
from disagg.monitor.fault_plan import FAULTS, FaultPlan
from disagg.plan.errors import ConfigError


def struck(plan: FaultPlan, kind: str, count: int = 200) -> list:
    return [plan.strike(kind) for _ in range(count)]


def test_an_explicit_plan_strikes_the_nth_event_of_its_kind_alone():
    plan = FaultPlan({("copy", 3): "fail", ("notice", 1): "twice"})
    assert struck(plan, "copy", 4) == [None, None, "fail", None]
    assert struck(plan, "prefill", 3) == [None] * 3
    assert struck(plan, "notice", 2) == ["twice", None]
    assert plan.struck == {"copy fail": 1, "notice twice": 1}
    assert plan.counts == {"copy": 4, "prefill": 3, "notice": 2}


def test_a_drawn_plan_is_its_seed():
    first, again, other = (struck(DrawnPlan(seed, ("copy",), 0.2), "copy") for seed in (1, 1, 2))
    assert first == again != other
    assert {"fail", "flip", "stall", None} == set(first)


def test_kinds_and_single_faults_have_rates_of_their_own():
    plan = DrawnPlan(0, {"copy fail": 1.0, "notice twice": 0.0})
    assert struck(plan, "copy", 5) == ["fail"] * 5
    assert struck(plan, "notice", 5) == struck(plan, "decode", 5) == [None] * 5


def test_after_the_most_strikes_it_is_quiet():
    plan = DrawnPlan(0, ("decode",), rate=1.0, most=3)
    assert struck(plan, "decode", 5) == ["fail"] * 3 + [None] * 2 and plan.quiet


def test_an_empty_plan_is_quiet():
    plan = FaultPlan()
    assert plan.quiet and all(struck(plan, kind, 3) == [None] * 3 for kind in FAULTS)


@pytest.mark.parametrize(
    "strikes, words",
    [({("cpoy", 1): "fail"}, "'cpoy'; known: copy"), ({("copy", 1): "die"}, "'die' can't strike a copy; what can: "),
     ({("copy", 0): "fail"}, "counted from 1")],
)  # fmt: skip
def test_nonsense_is_refused_in_words(strikes, words):
    with pytest.raises(ConfigError, match=words):
        FaultPlan(strikes)
    with pytest.raises(ConfigError, match="known: copy"):
        DrawnPlan(0, ("cpoy",))
