"""What a policy decides, seen from outside: turns, ways, shares, parking; and what a bad policy does to a run."""

import re
import sys
from dataclasses import dataclass, replace

import pytest
from controller_harness import ControllerHarness, make_job, parking
from engine_tools import answered, check_run, lengths, opened, overflowing, small
from hypothesis import given
from hypothesis import strategies as st

from disagg import Config, Request, Run, check_policy, simulate
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.errors import EngineError, PolicyError
from disagg.plan.policy import Decider, EarliestDeadline, FirstCome, Option, Shortest, in_turn, soonest
from disagg.plan.request import Stage, Waiting
from disagg.trace.block_map import PageMap
from disagg.twin.simulate import simulation_of
from disagg.twin.simulated_engine import SimulatedEngine, Speeds, fake_token


def submit(harness: ControllerHarness, request: int, prompt=6, new=4, deadline_s: float | None = None) -> list:
    return harness.tell(ev.Submit(replace(make_job(request, prompt, new, arrival=harness.now), deadline_s=deadline_s)))


def chunks(harness: ControllerHarness) -> dict[int, int]:
    """Tokens of each prompt in the last pass."""
    return {chunk.request: chunk.stop - chunk.start for chunk in harness.last(cmd.Prefill).prompts}


def way(harness: ControllerHarness) -> str:
    return harness.last(cmd.Placed).way


# ---- turns -----------------------------------------------------------------------------------------------------------


def test_short_prompts_ride_beside_a_long_one_that_came_first():
    harness = ControllerHarness("streamed", chunk_tokens=16, prefill_blocks=32, decode_blocks=32)
    harness.submit(0, prompt=60)
    for request in (1, 2, 3):
        harness.submit(request, prompt=4)
    assert chunks(harness) == {0: 16}
    harness.prefilled()
    assert chunks(harness) == {0: 8, 1: 4, 2: 4}, "half of the pass is theirs, the long one keeps the other half"
    harness.prefilled(1, 2)
    assert chunks(harness) == {0: 12, 3: 4}
    harness.prefilled(3)
    assert chunks(harness) == {0: 16} and harness.last(cmd.Emit).requests == (3,)


def test_a_prompt_that_can_end_leaves_nothing_to_riders_that_it_needs_itself():
    ahead, long, short = (Waiting(n, left, 4, 0, left, n, None, 0) for n, left in enumerate((10, 40, 3)))
    assert in_turn(16, (ahead, long, short)) == [(0, 10), (1, 3), (2, 3)]
    assert in_turn(10, (ahead, long, short)) == [(0, 10), (1, 0)]


def test_riders_do_not_round_the_first_ones_chunk_away_for_good():
    """A pass of one block: short ones keep coming, and each would take half of it."""
    harness = ControllerHarness("streamed", chunk_tokens=4, prefill_blocks=100, decode_blocks=100)
    harness.submit(0, prompt=12, new=1)
    for request in range(1, 9):
        harness.submit(request, prompt=2, new=1)
        command = harness.last(cmd.Prefill)
        harness.prefilled(*[7] * sum(chunk.final for chunk in command.chunks))
    assert harness.ended()[0] == "length" and len(harness.ended()) < 9


@given(st.lists(st.integers(1, 30), min_size=2, max_size=20), st.integers(1, 10))
def test_no_work_of_more_than_ageing_times_its_own_overtakes_a_request(prompts, ageing):
    sizes = {"chunk_tokens": 4, "prefill_blocks": 1000, "decode_blocks": 1000}
    harness = ControllerHarness("streamed", policy=Shortest(ageing=ageing), **sizes)
    harness.submit(99, prompt=40)  # the worker is busy, and all others wait
    for request, prompt in enumerate(prompts):
        harness.submit(request, prompt)
    turn = [record.id for record in harness.state.prefills[0].queue]
    assert sorted(turn) == list(range(len(prompts)))
    for request in turn:
        overtaking = [other for other in turn[: turn.index(request)] if other > request]
        assert sum(prompts[other] + 4 for other in overtaking) <= ageing * (prompts[request] + 4), "four new ones each"


def test_the_shortest_goes_first_until_a_longer_one_has_waited_for_enough():
    sizes = {"chunk_tokens": 4, "prefill_blocks": 100, "decode_blocks": 100}
    harness = ControllerHarness("streamed", policy=Shortest(ageing=2), **sizes)
    for request, prompt in enumerate((20, 10, 2, 2, 2, 2, 2, 2, 2)):
        harness.submit(request, prompt)
    assert [record.id for record in harness.state.prefills[0].queue] == [2, 1, 3, 4, 5, 6, 7, 8]


def test_the_earliest_deadline_goes_first():
    harness = ControllerHarness("streamed", policy="deadline", prefill_blocks=100, decode_blocks=100)
    submit(harness, 9, prompt=40)
    for request, deadline_s in enumerate((None, 9.0, 3.0, 40.0, 30.5)):
        submit(harness, request, deadline_s=deadline_s)
    assert [record.id for record in harness.state.prefills[0].queue] == [2, 1, 0, 4, 3], "30 s where none is given"


def urgent() -> list[Request]:
    """The first can't have its token in time, the last could alone, but not behind the second."""
    return [Request([1] * 64, 4, deadline_s=0.001), Request([1] * 600, 4), Request([1] * 64, 4, deadline_s=0.3)]


def test_a_request_that_can_not_meet_its_deadline_is_rejected_in_words_before_it_costs_anything():
    config = Config.preset("paged", policy="deadline")
    run = simulate(config, urgent())
    assert [result.finish_reason for result in run.results] == ["rejected", "length", "rejected"]
    words = r"request 0 is rejected by policy: its first token would come 0\.\d\d s after its arrival, "
    assert re.fullmatch(words + r"and is wanted within 0\.001 s", run.results[0].error)
    for index in (0, 2):
        assert run.results[index].token_ids == []
        assert not any(index in span.requests for span in run.timeline.spans)
        assert not any(move.owner == index for move in run.timeline.moves)
        assert [p.way for p in run.placements if p.request == index] == [""]
    alone = simulate(config, urgent()[2:])
    assert alone.results[0].finish_reason == "length" and alone.results[0].ttft_s <= 0.3


def test_a_real_engine_rejects_too_and_serves_the_others():
    requests = lengths((40, 5), (33, 6)) + [Request([5] * 30, 4, deadline_s=1e-9)]
    with opened(small("paged", policy="deadline")) as engine:
        run = engine.serve(requests)
        late = engine.submit(requests[2]).result()
    check_run(Run(run.config, run.results[:2], run.timeline), requests[:2])
    for result in (run.results[2], late):
        assert (result.finish_reason, result.token_ids) == ("rejected", [])
        assert "is rejected by policy: its first token would come" in result.error


# ---- parking ---------------------------------------------------------------------------------------------------------


def test_a_hand_off_that_decode_has_no_blocks_for_goes_to_host_memory_and_prefill_is_free():
    harness = parking()
    record = harness.state.records[1]
    assert record.host_table is not None and harness.last(cmd.Assign).target.role == "host"
    harness.prefilled(12)
    assert (harness.stage(1), harness.held()) == ("handing off", (3, 3, 3))
    harness.land_all()
    assert (harness.stage(1), harness.held()) == ("parked", (0, 3, 3)), "prefill's blocks are the next prompt's"
    for token in (20, 21, 22):
        harness.stepped(token)
    assert (harness.stage(1), way(harness), harness.last(cmd.Send).route) == ("fetching", "fetch", "fetch")
    harness.land_all()
    assert (harness.stage(1), harness.held()) == ("running", (0, 3, 0))
    assert harness.last(cmd.Decode).joins[0].token == 12


def full(policy="fcfs", **changes) -> ControllerHarness:
    """A decode device that is full, and a prefill device of which a quarter are four blocks."""
    sizes = {"decode_blocks": 4, "host_blocks": 30, "prefill_blocks": 16, **changes}
    return ControllerHarness("paged", policy=policy, **sizes).run_one(0, prompt=10, new=4)


def parked(harness: ControllerHarness) -> list[int]:
    return [record.id for record in harness.state.records.values() if record.host_table is not None]


@pytest.mark.parametrize("policy, deadlines, order", [("fcfs", (1, 1, 1), [2, 3]), ("deadline", (9, 8, 7), [1, 2])])
def test_the_last_by_policy_are_parked_and_up_to_a_quarter_stays(policy, deadlines, order):
    harness = full(policy)
    for request, deadline_s in enumerate(deadlines, 1):
        submit(harness, request, prompt=10, deadline_s=deadline_s)
        harness.prefilled(11)
    held = [r.id for r in harness.state.records.values() if r.prefill_table and r.host_table is None]
    assert (parked(harness), len(held)) == (order, 1), "three blocks of sixteen are left where they are"


def test_parked_requests_come_back_in_the_policys_order():
    harness = full("deadline", prefill_blocks=8)
    for request, deadline_s in ((1, 9.0), (2, 5.0)):
        submit(harness, request, prompt=10, deadline_s=deadline_s)
        harness.prefilled(11)
        harness.land_all()
    assert (harness.stage(1), harness.stage(2)) == ("parked", "parked")
    harness.cancel(0)
    harness.stepped(20)
    assert (harness.stage(1), harness.stage(2)) == ("parked", "fetching"), "the earlier deadline, though it came later"


@pytest.mark.parametrize("changes", [{"host_blocks": 0}, {"route": "direct"}, {"host_blocks": 2}])
def test_nothing_is_parked_without_room_or_a_ring(changes):
    harness = parking(**changes)
    harness.prefilled(12)
    assert (harness.stage(1), parked(harness), harness.state.counts["parked"]) == ("handing off", [], 0)


class Watched(SimulatedEngine):
    """Keeps the most blocks of a prefill device that waiting hand-offs hold after an event, while the host has room."""

    most = 0.0

    def deliver(self, event):
        super().deliver(event)
        state = self.controller.state
        pool = state.prefills[0].pool
        waiting = [r for r in state.wanting if r.stage in (Stage.PREFILLING, Stage.HANDING_OFF)]
        held = [len(record.prefill_table.blocks) for record in waiting]
        if held and state.host.available >= max(held):
            self.most = max(self.most, sum(held) / pool.capacity)


def crowd(count=24) -> list[Request]:
    return [Request([1] * (16 + 9 * (n % 7)), 24, arrival_s=0.02 * n) for n in range(count)]


CROWDED = {"decode_blocks": 12, "prefill_blocks": 32, "host_blocks": 200, "link": 1e8}


def test_at_most_a_quarter_of_prefills_blocks_is_held_for_decode_and_the_answers_are_the_same():
    config, speeds = Config.preset("paged", **CROWDED), Speeds(prefill_token=100_000)
    world = simulation_of(Watched, config, crowd(), speeds)
    world.run()
    run = world.so_far()
    assert world.controller.state.counts["parked"] > 5 and 0 < world.most <= 0.25
    for result in run.results:
        assert result.token_ids == [fake_token(result.request, index) for index in range(24)]


def test_receipts_and_block_maps_show_what_is_parked():
    run = simulate(Config.preset("paged", **CROWDED), crowd(), Speeds(prefill_token=100_000))
    stays = {r.request: [at for at, stage in r.stages if stage is Stage.PARKED] for r in run.results}
    request, (since, *_) = next((request, since) for request, since in stays.items() if since)
    assert run.results[request].receipt.totals()["parked"] > 0
    assert not any(
        "spill" in span.kind and request in span.requests for span in run.timeline.spans if span.end_ns < since
    )
    held = [block for block in PageMap(run.timeline).at(since)["host"] if block.owner == request]
    assert held and {block.state for block in held} == {"used"}
    assert run.results[request].receipt.unaccounted_s == 0


def parks(**changes) -> Config:
    return small("paged", **{"prefill_blocks": 12, "decode_blocks": 8, "host_blocks": 64, **changes})


def test_parked_requests_of_a_real_engine_answer_as_the_reference_does():
    requests = lengths(*((60, 40), (50, 24), (40, 20), (44, 16), (36, 12), (20, 8)), ignore_eos=True)
    with opened(parks()) as engine:
        run = engine.serve(requests)
        counts = engine.controller.state.counts
    check_run(run, requests)
    assert counts["parked"] >= 2
    assert any("parked" in result.receipt.totals() for result in run.results)


# ---- mixed passes ----------------------------------------------------------------------------------------------------


def beside_a_long_prompt(**changes) -> ControllerHarness:
    """Colocated: request 0 runs, request 1 of 40 tokens is prefilled in chunks."""
    sizes = {"decode_blocks": 40, "chunk_tokens": 8, **changes}
    harness = ControllerHarness("colocated", **sizes)
    harness.submit(0, prompt=6, new=20)
    harness.prefilled(11)
    harness.submit(1, prompt=40, new=4)
    harness.stepped(12)
    return harness


def test_a_running_row_has_a_token_in_every_pass_of_a_long_prompt():
    harness = beside_a_long_prompt()
    given = 2
    while harness.stage(1) == "prefilling":
        command = harness.last(cmd.Prefill)
        assert command.rows == (0,) and sum(c.stop - c.start for c in command.chunks) <= 8, "rows count in the budget"
        tokens = (20, 30) if command.prompts[-1].final else (20,)
        given += 1
        harness.prefilled(*tokens)
        assert len(harness.state.records[0].generated) == given
    assert given >= 10


def test_without_mixed_passes_they_alternate():
    harness = beside_a_long_prompt(mixed_passes=False)
    assert harness.last(cmd.Prefill).step is None and harness.kinds() == ["Emit", "Prefill"]
    harness.prefilled()
    assert harness.kinds() == ["Decode"]


@pytest.mark.parametrize("preset", ["colocated", "conditional"])
@pytest.mark.parametrize("mixed_passes", [True, False])
def test_mixed_or_not_a_real_engine_answers_as_the_reference_does(preset, mixed_passes):
    policy = Forced(ways=("stay",)) if preset == "conditional" else "fcfs"
    requests = lengths(*((9, 24), (120, 6), (17, 20), (90, 4)), ignore_eos=True)
    with opened(small(preset, chunk_tokens=16, mixed_passes=mixed_passes, policy=policy)) as engine:
        seen, handle = [], engine.controller.handle

        def listening(event, now_ns):
            commands = handle(event, now_ns)
            seen.extend(command.step is not None for command in commands if isinstance(command, cmd.Prefill))
            return commands

        engine.controller.handle = listening
        run = engine.serve(requests)
    check_run(run, requests)
    assert any(seen) == mixed_passes


# ---- split or stay, fetch or recompute -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forced(FirstCome):
    """Goes the named ways, in turn of the requests' numbers where there are several."""

    name: str = "forced"
    ways: tuple[str, ...] = ("split",)

    def choose(self, request, options, now_ns):
        wanted = self.ways[request.id % len(self.ways)]
        return next((option for option in options if option.way == wanted), options[0])


def probed(harness: ControllerHarness, copy_ns_per_byte=None, ns_per_token=1000) -> ControllerHarness:
    harness.tell(ev.Probed(copy_ns_per_byte, ((16, 16 * ns_per_token), (64, 64 * ns_per_token))))
    return harness


def conditional(**changes) -> ControllerHarness:
    sizes = {"prefill_blocks": 100, "decode_blocks": 100, "chunk_tokens": 16, "link": 1e6, **changes}
    return probed(ControllerHarness("conditional", **sizes))


def test_requests_stay_and_go_where_less_waits():
    harness = conditional(link=None)
    for request in range(2):
        harness.submit(request, prompt=40)
    placed = [command for command in harness.log if isinstance(command, cmd.Placed)]
    workers = [harness.state.records[request].prefill_worker for request in range(2)]
    assert [each.way for each in placed] == ["stay", "stay"] and workers == [0, 1]
    assert [option.way for option in placed[0].options] == ["stay", "stay", "split", "split"], "equal ones: stay"


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=12), st.sampled_from([1e3, 4e8])
)
def test_each_goes_the_way_with_the_shortest_estimate(sizes, link):
    harness = conditional(link=link, max_batch=2)
    for request, (prompt, new) in enumerate(sizes):
        harness.submit(request, prompt, new)
        placed = harness.last(cmd.Placed)
        record = harness.state.records[request]
        chosen = min(placed.options, key=lambda option: option.ns)
        assert (placed.way, record.prefill_worker, record.decode_worker) == (chosen.way, chosen.worker, chosen.onto)
        assert record.stays == (placed.way == "stay") == (record.prefill_worker == record.decode_worker)
        answer_all(harness)
    assert harness.state.counts["stay"] + harness.state.counts["split"] == len(sizes)


@pytest.mark.parametrize(
    "preset, changes, probed",
    [("split", {}, False), ("split", {"itl_target_s": 0.1}, True), ("split", {"policy": "deadline"}, True)]
    + [("conditional", {}, True), ("paged", {"host_blocks": 8}, True)],
)
def test_rates_are_measured_before_the_first_request_where_something_is_decided_by_them(preset, changes, probed):
    run = simulate(Config.preset(preset, **changes), [Request([1] * 8, 2)])
    assert isinstance(run.log[0][1], ev.Probed) == probed


@pytest.mark.parametrize("route", ["staged", "direct", "bulk"])
def test_both_workers_of_conditional_hand_off_to_each_other(route):
    policy = Forced(ways=("split",))
    run = simulate(Config.preset("conditional", policy=policy, route=route), [Request([1] * 40, 4) for _ in range(4)])
    assert [result.finish_reason for result in run.results] == ["length"] * 4
    assert all("copy" in [s.kind for s in run.timeline.spans if n in s.requests] for n in range(4))


def test_a_split_gets_the_blocks_of_both_its_workers_or_none():
    """Two that wait for each other's blocks would wait for good."""
    harness = conditional(policy=Forced(), decode_blocks=8, chunk_tokens=64)
    for request in range(3):
        harness.submit(request, prompt=15, new=2)
    for request in range(3):
        record = harness.state.records[request]
        assert (record.prefill_table is None) == (record.decode_table is None) == (record.stage is Stage.QUEUED)
    assert harness.stage(0) == "prefilling"


def answer_all(harness: ControllerHarness):
    """Everything that is under way ends once."""
    for worker in harness.state.prefills:
        if (done := worker.passing) is not None:
            rows = () if done.step is None else worker.decode.steps[0].requests
            tokens = tuple([7] * (sum(final for _, final in done.items) + len(rows)))
            harness.tell(ev.Prefilled(worker.name, done.id, tokens, harness.now, harness.now + 10))
    for transfer in list(harness.state.transfers):
        if harness.state.transfers[transfer].target is not None:
            harness.land_all(transfer)
    for decode in harness.state.decodes:
        if decode.steps and not any(w.passing and w.passing.step for w in harness.state.prefills if w.decode is decode):
            step = decode.steps[0]
            tokens, slots = (7,) * len(step.requests), (step.used_slots, step.padded_slots)
            harness.tell(ev.Stepped(decode.name, step.number, tokens, harness.now, harness.now + 1, *slots))


@dataclass(frozen=True)
class Sent(EarliestDeadline):
    """Request 2 is prefilled on the other worker, all others stay on the first."""

    name: str = "sent"

    def choose(self, request, options, now_ns):
        wanted = ("split", 1, 0) if request.id == 2 else ("stay", 0, 0)
        return next(option for option in options if (option.way, option.worker, option.onto) == wanted)


@pytest.mark.parametrize(
    "deadline_s, prompt, first",
    [(5.0, 6, 3), (20.0, 6, 2), (5.0, 60, 2)],
    ids=["before it", "after it", "before it, for whom there are no blocks"],
)
def test_a_place_is_for_the_first_by_policy_landed_or_to_be_prefilled_there(deadline_s, prompt, first):
    harness = conditional(policy=Sent(), max_batch=2, decode_blocks=18)
    for request, new, until_s in ((0, 20, 1.0), (1, 40, 2.0), (2, 4, 9.0)):
        submit(harness, request, new=new, deadline_s=until_s)
        while harness.stage(request) not in ("landed", "running"):
            answer_all(harness)
    assert [*harness.state.decodes[0].rows] == [0, 1]
    submit(harness, 3, prompt, deadline_s=deadline_s)
    went = []
    while not went:
        answer_all(harness)
        went = [request for request, waits in ((2, "landed"), (3, "queued")) if harness.stage(request) != waits]
    assert went == [first] and 0 not in harness.state.records


@pytest.mark.parametrize("ways", [("split",), ("stay",), ("split", "stay")])
def test_whichever_way_it_goes_the_answers_are_the_references(ways):
    requests = lengths(*((40, 12), (9, 20), (70, 6), (33, 10)))
    run = answered(small("conditional", policy=Forced(ways=ways), chunk_tokens=32), requests)
    assert {placed.request: placed.way for placed in run.placements} == {n: ways[n % len(ways)] for n in range(4)}
    for placed in run.placements:
        assert all(option.terms for option in placed.options), "the engine has measured a pass before it began"


def at_the_door(copy_ns_per_byte: float, ns_per_token: int, **changes) -> ControllerHarness:
    """A parked request for which decode has just got room."""
    harness = parking(**changes)
    harness.prefilled(12)
    harness.land_all()
    harness.state.costs.copy_ns_per_byte = copy_ns_per_byte
    harness.state.prefills[0].speed.weights = [0.0, 0.0, ns_per_token / 1e6]
    for token in (20, 21, 22):
        harness.stepped(token)
    return harness


def test_k_v_in_host_memory_come_back_the_cheaper_way():
    fetch, again = at_the_door(1.0, 10_000), at_the_door(10_000.0, 1)
    assert (way(fetch), fetch.stage(1)) == ("fetch", "fetching")
    assert (way(again), again.stage(1), again.held()) == ("recompute", "prefilling", (3, 3, 0))
    for harness in (fetch, again):
        a, b = harness.last(cmd.Placed).options
        assert (a.way, b.way) == ("fetch", "recompute") and (a.ns <= b.ns) == (way(harness) == "fetch")
    assert again.last(cmd.Prefill).chunks[0].stop == 11, "the prompt and the token that it has"


@pytest.mark.parametrize("ways", [("fetch",), ("recompute",)])
def test_both_ways_back_are_forced_and_give_the_same_tokens(ways):
    speeds = Speeds(prefill_token=100_000)
    run = simulate(Config.preset("paged", policy=Forced(ways=ways), **CROWDED), crowd(), speeds)
    back = {placed.way for placed in run.placements}
    assert back == set(ways)
    assert all(r.token_ids == [fake_token(r.request, i) for i in range(24)] for r in run.results)


@pytest.mark.parametrize("ways", [("spill", "fetch"), ("recompute",)])
def test_both_ways_back_of_a_real_engine_give_the_references_tokens(ways):
    requests = lengths(*((60, 40), (50, 24), (40, 20), (44, 16), (36, 12), (20, 8)), ignore_eos=True)
    with opened(parks(policy=Forced(ways=(ways[-1],)))) as engine:
        run = engine.serve(requests)
        parked_ones = engine.controller.state.counts["parked"]
    check_run(run, requests)
    assert parked_ones and {placed.way for placed in run.placements} == {ways[-1]}


def test_a_policy_chooses_between_spill_and_recompute_too():
    for wanted, count in (("spill", "spills"), ("recompute", "recomputes")):
        run = simulate(Config.preset("paged", policy=Forced(ways=(wanted,)), **CROWDED), crowd())
        assert {choice.arm.value for choice in run.choices} == {wanted}, count
    with opened(small("paged", decode_blocks=8, policy=Forced(ways=("recompute",)))) as engine:
        run = engine.serve(overflowing())
        assert engine.controller.state.counts["spills"] == 0 and run.choices
    check_run(run, overflowing())


# ---- bad policies ----------------------------------------------------------------------------------------------------


def bad(**methods) -> FirstCome:
    """First come, first served, but for these methods; the class's name is the policy's."""
    kind = type("Bad", (FirstCome,), methods)
    return kind(name="bad")


def raising(self, *seen):
    raise KeyError("on purpose")


def mutating(self, request, *more):
    request.prompt = 0


def stranger(self, budget, requests):
    return [(77, 1)]


def half_a_block(self, budget, requests):
    return [(requests[0].id, 1)]


def endless(self, budget, requests):
    while True:
        yield requests[0].id, 0


class Odd:
    """Equal to everything."""

    def __eq__(self, other):
        return True

    __hash__ = None


class OddPriority(tuple):
    """Neither read nor shown."""

    def __iter__(self):
        raise OSError

    __repr__ = __iter__


BAD = {
    "order raises": (bad(order=raising), "raised in order: KeyError: 'on purpose'"),
    "choose raises": (bad(choose=raising), "raised in choose: KeyError: 'on purpose'"),
    "share raises": (bad(share=raising), "raised in share: KeyError: 'on purpose'"),
    "order mutates": (bad(order=mutating), "raised in order: AttributeError: "),
    "choose mutates": (bad(choose=mutating), "raised in choose: AttributeError: "),
    "share mutates": (bad(share=lambda self, budget, seen: seen.append(1)), "raised in share: AttributeError: "),
    "order is no tuple": (bad(order=lambda *seen: 3), "returned 3 from order; it takes a tuple of whole numbers"),
    "order is not whole": (bad(order=lambda *seen: (1.5,)), "from order; it takes a tuple of whole numbers"),
    "choose is nothing": (bad(choose=lambda *seen: None), "returned None from choose; it takes one of its options"),
    "choose is no option": (bad(choose=lambda *seen: Option("stay", 9)), "from choose; it takes one of its options"),
    "choose is odd": (bad(choose=lambda *seen: Odd()), "from choose; it takes one of its options"),
    "choose is empty": (bad(choose=lambda *seen: ""), "returned '' from choose; it takes one of its options"),
    "share is nothing": (bad(share=lambda *seen: None), "returned None from share; it takes pairs"),
    "share is no pairs": (bad(share=lambda *seen: [1, 2]), "from share; it takes pairs of a request and its share"),
    "share is odd": (bad(share=lambda *seen: [([], 1)]), "from share; it takes requests that wait, once each"),
    "a stranger": (bad(share=stranger), "from share; it takes requests that wait, once each"),
    "twice": (bad(share=lambda self, b, seen: [(seen[0].id, 1)] * 2), "it takes requests that wait, once each"),
    "endless": (bad(share=endless), "from share; it takes requests that wait, once each"),
    "less than none": (bad(share=lambda self, b, seen: [(seen[0].id, -1)]), "it takes shares up to what is left"),
    "more than is left": (bad(share=lambda self, b, seen: [(seen[0].id, 9999)]), "it takes shares up to what is left"),
    "over budget": (bad(share=lambda self, b, seen: [(r.id, r.left) for r in seen]), "from share; it takes at most "),
    "order is odd": (bad(order=lambda *seen: OddPriority()), "from order; it takes a tuple of whole numbers"),
    "share has no words": (bad(share=lambda *seen: OddPriority()), "returned a OddPriority whose repr raises OSError"),
    "it exits": (bad(share=lambda *seen: sys.exit(3)), "raised in share: SystemExit: 3"),
    "nobody": (bad(share=lambda *seen: []), "lets nobody go on; these wait: request 0 (queued)"),
    "too little": (bad(share=half_a_block), "lets nobody go on; these wait: request 0 (queued)"),
    "nobody decodes": (
        bad(share=lambda self, b, seen: [] if seen[0].generated else in_turn(b, seen)),
        "lets nobody go on; these wait: request 0 (landed)",
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", BAD)


def held_ones() -> list[Request]:
    return lengths((60, 4), (50, 3), (40, 5), ignore_eos=True)


@EACH
@pytest.mark.parametrize("preset", ["conditional", "colocated", "paged"])
def test_a_bad_policy_is_named_and_ends_what_is_open(name, preset):
    policy, words = BAD[name]
    with pytest.raises(EngineError, match="the simulation is broken: policy 'bad' ") as caught:
        simulate(Config.preset(preset, model="tiny", chunk_tokens=32, policy=policy), held_ones())
    run = caught.value.run
    assert len(run.results) == 3
    for result in run.results:
        assert result.finish_reason in ("failed", ""), result  # "": it had not come yet
    failed = [result.error for result in run.results if result.finish_reason == "failed"]
    assert failed and all(error.startswith("policy 'bad' ") and words in error for error in failed), failed


@EACH
def test_a_bad_policy_breaks_a_real_engine_in_words_and_never_hangs(name):
    policy, words = BAD[name]
    with opened(small("conditional", chunk_tokens=32, policy=policy), broken=True) as engine:
        with pytest.raises(EngineError, match="is broken and must be rebuilt: policy 'bad' ") as caught:
            engine.serve(held_ones())
        assert words in str(caught.value) and words in engine.broken and engine.breach is None
        ended = [result.finish_reason for result in caught.value.run.results]
        assert "failed" in ended and set(ended) <= {"failed", "cancelled"}
        with pytest.raises(EngineError, match="policy 'bad' "):
            engine.submit(held_ones()[0])


def test_shares_may_come_one_by_one():
    decider = Decider(bad(share=lambda self, budget, seen: iter(in_turn(budget, seen))))
    waiting = tuple(Waiting(request, 4, 4, 0, 4, 0, None, 0) for request in range(3))
    assert decider.share(12, waiting) == [(0, 4), (1, 4), (2, 4)]


def test_checked_bad_policies_are_named_first_and_the_smallest_world_last():
    for name in ("order raises", "a stranger", "twice", "nobody", "it exits"):
        policy, words = BAD[name]
        with pytest.raises(PolicyError, match="^policy 'bad' fails in world 0 of 3: policy 'bad' ") as caught:
            check_policy(policy, worlds=3)
        told = str(caught.value)
        assert words.partition("; these wait")[0] in told and "once each: []" not in told, told
        assert "\n" not in told and told.count(" tokens at ") == 1, "one request is enough"


def test_equal_priorities_shares_that_are_yielded_and_rejections_without_a_deadline_are_no_breach():
    alike = bad(order=lambda self, request: (len(range(request.id % 2)),))
    yields = bad(share=lambda self, budget, seen: iter(in_turn(budget, seen)))
    long = bad(choose=lambda self, r, ways, now: "too long" if r.prompt > 7 and not r.generated else soonest(ways))
    for policy in (alike, yields, long):
        check_policy(policy, worlds=60)
    decider, waiting = Decider(alike), Waiting(4, 4, 4, 0, 4, 0, None, 0)
    assert decider.order(waiting) == (0, 4) and decider.order(waiting._replace(id=5)) == (1, 5)


def test_only_an_arrival_is_rejected():
    """Words are no way back for a request that has cost something."""
    decider = Decider(bad(choose=lambda self, request, options, now_ns: "no"))
    option = Option("fetch")
    assert decider.choose(Waiting(0, 4, 4, 0, 4, 0, None, 0), (option,), 0) == "no"
    with pytest.raises(PolicyError, match="returned 'no' from choose"):
        decider.choose(Waiting(0, 4, 4, 1, 4, 0, None, 0), (option,), 0)


@pytest.mark.parametrize("shown", ["simulated", "real"])
def test_a_policy_object_survives_saving_and_loading_by_its_name(shown, tmp_path):
    policy = Forced(name="my own", ways=("stay", "split"))
    requests = lengths((20, 3), (9, 4))
    if shown == "simulated":
        run = simulate(Config.preset("conditional", policy=policy), requests)
    else:
        with opened(small("conditional", policy=policy)) as engine:
            run = engine.serve(requests)
    run.save(tmp_path / "run.jsonl.gz")
    loaded = Run.load(tmp_path / "run.jsonl.gz")
    assert loaded.config.policy.name == "my own" and loaded.placements == run.placements
    with pytest.raises(EngineError, match="'my own' was an object of the recorded run"):
        simulate(loaded.config, requests)
