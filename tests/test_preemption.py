"""Spill or compute again, whichever costs less; both costs are recorded."""

import pytest

from disagg.plan.link import Link
from disagg.plan.preemption import Arm, PreemptionCosts


def choose(costs: PreemptionCosts, **changes):
    given = {"host_room": True, "prefill_backlog": 0, "bytes_ahead": 0, **changes}
    return costs.choose(1, 100, 1000, **given)


def test_the_cheaper_arm_wins_and_ties_spill():
    costs = PreemptionCosts(copy_ns_per_byte=1.0, prefill_ns_per_token=30.0)
    assert (choose(costs).spill_ns, choose(costs).recompute_ns, choose(costs).arm) == (2000, 3000, Arm.SPILL)
    costs.prefill_ns_per_token = 20.0
    assert choose(costs).arm is Arm.SPILL
    costs.prefill_ns_per_token = 19.9
    assert choose(costs).arm is Arm.RECOMPUTE


def test_no_host_room_and_no_known_prefill_speed():
    costs = PreemptionCosts()
    assert (choose(costs).recompute_ns, choose(costs).arm) == (None, Arm.SPILL)
    assert (choose(costs, host_room=False).spill_ns, choose(costs, host_room=False).arm) == (None, Arm.RECOMPUTE)


def test_backlogs_count():
    costs = PreemptionCosts(copy_ns_per_byte=1.0, prefill_ns_per_token=30.0)
    assert choose(costs, bytes_ahead=5000).arm is Arm.RECOMPUTE
    assert choose(costs, bytes_ahead=5000, prefill_backlog=1000).arm is Arm.SPILL
    assert choose(costs, prefill_backlog=10).recompute_ns == 3300


def test_a_dialled_link_costs_what_the_dial_says():
    costs = PreemptionCosts(out=Link(1e6, latency_s=1e-3, fixed_s=1e-4), back=Link(2e6), copy_ns_per_byte=0.1)
    assert choose(costs).spill_ns == (1_000_000 + 1_000_000 + 100_000) + 500_000


def test_speeds_follow_what_was_measured():
    costs = PreemptionCosts(copy_ns_per_byte=1.0)
    costs.observe_copy(100, 200)
    costs.observe_copy(0, 10**9)
    assert costs.copy_ns_per_byte == pytest.approx(1.2)
    costs.observe_prefill(10, 1000)
    costs.observe_prefill(10, 2000)
    assert costs.prefill_ns_per_token == pytest.approx(120)
