"""The estimates that a policy chooses by: each term where it belongs, in a world whose passes and links are known."""

from dataclasses import dataclass, field

import pytest
from controller_harness import ControllerHarness

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.policy import FirstCome, Option

TOKEN_NS, PASS_NS = 1000, 5000  # of a pass of any size: PASS_NS more
STEPS = tuple(
    (rows, tokens, 10_000 + 1000 * rows + 20 * tokens) for rows, tokens in ((1, 40), (2, 200), (4, 100), (3, 900))
)
PASSES = tuple((tokens, PASS_NS + tokens * TOKEN_NS) for tokens in (8, 16, 64, 32))


@dataclass(frozen=True)
class Seen(FirstCome):
    """Keeps what it is offered, and goes the given ways first: (way, worker it prefills on, worker it decodes on)."""

    name: str = "seen"
    wanted: list[tuple[str, int, int | None]] = field(default_factory=list)
    offered: list[tuple[Option, ...]] = field(default_factory=list)

    def choose(self, request, options, now_ns):
        self.offered.append(options)
        wanted = self.wanted.pop(0) if self.wanted else ()
        return next((o for o in options if (o.way, o.worker, o.onto) == wanted), options[0])

    def terms(self, way: str, worker: int = 0, onto: int | None = None) -> dict[str, int]:
        """Of the last decision."""
        return next(dict(o.terms) for o in self.offered[-1] if (o.way, o.worker, o.onto) == (way, worker, onto))


def world(*wanted, preset="conditional", **changes) -> tuple[ControllerHarness, Seen]:
    policy = Seen(wanted=list(wanted))
    sizes = {"prefill_blocks": 100, "decode_blocks": 100, "chunk_tokens": 64, "link": 1e6, "policy": policy, **changes}
    harness = ControllerHarness(preset, **sizes)
    for decode in harness.state.decodes if changes.get("itl_target_s") else ():
        decode.composer.late = 1.0  # no gap has been later than its model
    harness.tell(ev.Probed(None, PASSES, STEPS))
    return harness, policy


def near(value: float):
    return pytest.approx(value, rel=0.05)


def pass_ns(tokens: int) -> int:
    return PASS_NS + tokens * TOKEN_NS


def test_an_idle_machine_costs_a_request_its_own_prefill_and_decode():
    harness, policy = world()
    harness.submit(0, prompt=40, new=5)
    for way, worker, onto in (("stay", 0, 0), ("stay", 1, 1), ("split", 0, 1), ("split", 1, 0)):
        terms = policy.terms(way, worker, onto)
        assert terms["prefill"] == near(pass_ns(40))
        assert terms["decode"] == near(5 * (10_000 + 1000 + 20 * 128)), "a worker without rows reads 128 tokens a row"
        assert (terms["hand-off"] > 0) == (way == "split")
        assert {terms[name] for name in terms if name not in ("prefill", "decode", "hand-off")} == {0}


@pytest.mark.parametrize(
    "changes, exposed_ns",
    [({"link": 1e6}, 160_000 - 45_000), ({"link": 8e6}, 20_000 // 2), ({"link": 1e6, "route": "bulk"}, 160_000)],
    ids=["beyond its prefill", "its last layer", "in bulk"],
)
def test_a_hand_off_costs_what_its_prefill_does_not_hide(changes, exposed_ns):
    harness, policy = world(**changes)
    harness.submit(0, prompt=40)
    assert policy.terms("split", 0, 1)["hand-off"] == near(exposed_ns)


def test_open_hand_offs_are_ahead_of_the_next_one():
    harness, policy = world(("split", 0, 1))
    harness.submit(0, prompt=40)
    alone_ns = policy.terms("split", 0, 1)["hand-off"]
    assert len(harness.state.transfers) == 1
    harness.submit(1, prompt=40)
    assert policy.terms("split", 0, 1)["hand-off"] - alone_ns == near(160_000)


def running(harness: ControllerHarness, requests, worker=0):
    """Requests that stay on a worker and are in its batch."""
    harness.pass_ns = pass_ns(8)
    for request in requests:
        harness.submit(request, prompt=8, new=20)
    for index in range(len(requests)):
        harness.prefilled(*[7] * (1 + index))
    assert [*harness.state.decodes[worker].rows] == [*requests]


def test_the_queue_counts_what_waits_and_what_is_in_flight_on_that_worker_alone():
    harness, policy = world(("stay", 0, 0), ("stay", 0, 0))
    harness.submit(0, prompt=40)
    harness.submit(1, prompt=20)
    assert policy.terms("stay", 0, 0)["queue"] == near(pass_ns(40)), "a pass in flight"
    harness.submit(2, prompt=8)
    assert policy.terms("stay", 0, 0)["queue"] == policy.terms("split", 0, 1)["queue"] == near(pass_ns(60))
    assert policy.terms("stay", 1, 1)["queue"] == policy.terms("split", 1, 0)["queue"] == 0


def test_two_workers_of_one_queue_halve_it():
    harness, policy = world(preset="streamed", prefill_workers=2)
    for request in range(3):
        harness.submit(request, prompt=60)
    assert policy.terms("split")["queue"] == near(2 * pass_ns(60) / 2)


def test_a_full_batch_makes_a_newcomer_wait_for_a_place():
    harness, policy = world(("stay", 0, 0), ("stay", 0, 0), max_batch=2)
    harness.submit(0)
    harness.submit(1)
    assert policy.terms("stay", 0, 0)["place in the batch"] == 0
    harness.submit(2)
    assert policy.terms("stay", 0, 0)["place in the batch"] == near(policy.terms("stay", 0, 0)["decode"] / 2)
    assert policy.terms("split", 1, 0)["place in the batch"] > 0 == policy.terms("split", 0, 1)["place in the batch"]


def test_rows_pay_for_a_prefill_beside_them_and_for_one_more_row():
    harness, policy = world(("stay", 0, 0), ("stay", 0, 0))
    running(harness, (0, 1))
    harness.submit(2, prompt=40, new=5)
    beside, away = policy.terms("stay", 0, 0), policy.terms("stay", 1, 1)
    over, back = policy.terms("split", 0, 1), policy.terms("split", 1, 0)
    prefills, decodes = "rows beside its prefill", "rows beside its decode"
    lost = beside["prefill"] - 1e9 * harness.state.decodes[0].step_s(2)  # in its one pass each of them has a token
    assert beside[prefills] == over[prefills] == near(2 * lost) and away[prefills] == back[prefills] == 0
    assert beside[decodes] == back[decodes] > 0 == away[decodes] == over[decodes]
    row_ns = 1000 + 20 * 45  # a row more, of 40 tokens and five new ones
    assert beside[decodes] == pytest.approx(5 * row_ns * 2, rel=0.1)


def test_a_target_leaves_rows_unharmed_and_prefill_slow():
    """Passes keep the gaps of rows beside them, so a prompt needs three of them."""
    harness, policy = world(("stay", 0, 0), itl_target_s=30e-6)
    running(harness, (0,))
    harness.submit(2, prompt=60)
    beside, away = policy.terms("stay", 0, 0), policy.terms("stay", 1, 1)
    assert beside["rows beside its prefill"] == 0
    assert (away["prefill"], beside["prefill"]) == (near(pass_ns(60)), near(3 * pass_ns(20)))


def test_a_worker_that_prefilled_all_the_time_decodes_slowly():
    harness, policy = world(("stay", 0, 0))
    harness.pass_ns = harness.now = 100 * 10**9
    harness.submit(0, new=1)
    harness.now -= harness.pass_ns
    harness.prefilled(7)
    harness.submit(1)
    busy, idle = policy.terms("stay", 0, 0), policy.terms("stay", 1, 1)
    assert busy["decode"] == near(10 * idle["decode"]) and policy.terms("split", 1, 0)["decode"] == busy["decode"]


# ---- back from host memory -------------------------------------------------------------------------------------------


def back(*waiting: int) -> tuple[str, dict[str, dict[str, int]]]:
    """The way of a parked request of 11 tokens that decode has just got room for, and the terms of each way; behind a
    pass that is under way, prompts of so many tokens wait."""
    harness, _ = world(preset="paged", decode_blocks=4, host_blocks=8, prefill_blocks=11, policy="fcfs")
    harness.pass_ns = pass_ns(10)
    harness.run_one(0, prompt=10, new=4)
    harness.hand_off(1, prompt=10).land_all()
    assert harness.stage(1) == "parked"
    harness.submit(2, prompt=8)
    for request, prompt in enumerate(waiting, 3):
        harness.submit(request, prompt)
    for token in (20, 21, 22):
        harness.stepped(token)
    placed = harness.last(cmd.Placed)
    assert placed.request == 1
    return placed.way, {option.way: dict(option.terms) for option in placed.options}


def test_what_waits_for_prefill_makes_computing_again_dear():
    (alone, empty), (behind, full) = back(), back(*[10] * 4)
    assert empty["recompute"]["queue"] == 0 and full["recompute"]["queue"] == pytest.approx(40 * TOKEN_NS, rel=0.3)
    assert 11 * TOKEN_NS <= empty["recompute"]["prefill"] == full["recompute"]["prefill"] < 1.1 * pass_ns(11)
    assert empty["fetch"] == full["fetch"] and (alone, behind) == ("recompute", "fetch")


def test_fetches_under_way_are_ahead_of_the_next_one():
    """Both get their blocks at once; the second's copies follow the first's on the same link."""
    harness = ControllerHarness("paged", decode_blocks=8, host_blocks=30, prefill_blocks=8, link=1e6)
    harness.run_one(0, prompt=26, new=4)
    for request in (1, 2):
        harness.submit(request, prompt=10)
        harness.prefilled(11)
        harness.land_all()
    assert (harness.stage(1), harness.stage(2)) == ("parked", "parked")
    harness.cancel(0)
    harness.stepped(20)
    placed = [command for command in harness.log if isinstance(command, cmd.Placed)]
    first, second = (dict(each.options[0].terms) for each in placed)
    assert (first["copies ahead"], second["copies ahead"]) == (0, first["copy"]) and first["copy"] == 48_000


def test_rows_elsewhere_pay_by_how_much_longer_they_take_beside_a_pass():
    harness, policy = world(("stay", 0, 0), ("stay", 0, 0))
    running(harness, (0, 1))
    harness.state.decodes[1].speed.beside = 1.25
    harness.submit(2, prompt=40, new=5)
    away = policy.terms("stay", 1, 1)
    assert away["rows beside its prefill"] == near(2 * 0.2 * away["prefill"]), "a fifth of that time, for two rows"
