"""A thousand small worlds: the seed draws everything, and whatever it draws must end well."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks.robustness.faulty_simulation import FaultySimulation
from benchmarks.robustness.random_scenarios import SOMETIMES, SeedFailed, simulate_seed
from disagg.monitor.checked_simulation import SMALL
from disagg.monitor.fault_plan import FaultPlan
from disagg.plan.commands import Decode, Join, Worker
from disagg.plan.config import PRESETS, Config
from disagg.plan.controller import Controller
from disagg.plan.request import Job
from disagg.twin.batch_view import BatchView
from disagg.twin.simulate import Speeds

SEEDS = int(os.environ.get("SEEDS", 1000))


def test_every_seed_ends_well():
    seen = Counter()
    for seed in range(SEEDS):
        seen += simulate_seed(seed).happened
    missing = [name for name in SOMETIMES if not seen[name]]
    assert not missing, f"never happened in {SEEDS} seeds: {missing}"


def test_a_seed_that_fails_prints_its_log_and_how_to_run_it_again(monkeypatch):
    monkeypatch.setattr(FaultySimulation, "check_answers", lambda self: 1 / 0)
    with pytest.raises(SeedFailed) as caught:
        simulate_seed(3)
    text = str(caught.value)
    assert text.startswith("seed 3: ZeroDivisionError: ") and text.endswith("rerun: python -m benchmarks soak --seed 3")
    assert len(text.splitlines()) > 5


def crowded(preset: str, seed=0, faults=None) -> FaultySimulation:
    """Three requests in pools that hold one and a half of them: chunks, hand-offs and paging, as far as preset goes."""
    config = Config.preset(
        preset, block_size=2, prefill_blocks=9, decode_blocks=9, chunk_tokens=4, host_blocks=20, ring_slots=2,
        itl_target_s=None, link=1e8, watchdog_s=1.0,
    )  # fmt: skip
    world = FaultySimulation(config, Speeds(**{**vars(SMALL), "prefill_token": 3000}), 2, seed, faults)
    for index in range(3):
        world.submit(Job(index, tuple(range(5 + index)), 9, 100 * index))
    return world


@pytest.mark.parametrize("preset", PRESETS)
def test_cancel_at_every_event(preset):
    for number in range(len(crowded(preset).finish().log)):
        for request in range(3):
            world = crowded(preset)
            while len(world.log) <= number:
                world.step()
            world.cancel(request)
            world.finish()


@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "paged"])
def test_each_copy_fails_in_turn(preset):
    """That request fails and is named, or is computed again if it was only paged; the others' tokens are unchanged."""
    quiet = crowded(preset).finish()
    copies = [span for span in quiet.recorder.timeline.spans if span.kind in ("copy", "spill", "fetch")]
    assert copies and (preset != "paged" or {span.kind for span in copies} == {"copy", "spill", "fetch"})
    numbers = Counter()
    for number, span in enumerate(copies):
        kind = "copy" if span.kind == "copy" else "paging"
        numbers[kind] += 1
        fault = "fail" if number % 2 else "flip"
        world = crowded(preset, faults=FaultPlan({(kind, numbers[kind]): fault})).finish()
        assert world.faults.struck == {f"{kind} {fault}": 1}
        reasons = [world.results[index].finish_reason for index in range(3)]
        expected = ["length"] * 3
        if span.kind == "copy":
            expected[span.requests[0]] = "failed"
        assert reasons == expected, (number, span)


@pytest.mark.parametrize("seed", range(20))
def test_replayed_events_give_the_same_commands(seed):
    """The log of events is the controller's only input."""
    world = simulate_seed(seed)
    shape = {"layers": world.speeds.layers, "token_bytes": world.speeds.token_bytes}
    fresh = Controller(world.config, **shape, steps_in_flight=world.state.steps_in_flight)
    assert [command for now, event in world.log for command in fresh.handle(event, now)] == world.commands


LOG = """
import hashlib
from benchmarks.robustness.random_scenarios import simulate_seed
for seed in range(40):
    world = simulate_seed(seed)
    print(hashlib.sha256(repr((world.log, world.results, world.faults.struck)).encode()).hexdigest())
"""


def test_same_seed_same_log_whatever_the_hashes():
    """`plan/` iterates over no set: two hash seeds, one log."""
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    logs = [
        subprocess.run(
            [sys.executable, "-c", LOG], env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hashes},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("1", "2")
    ]  # fmt: skip
    assert logs[0] == logs[1] and len(logs[0].split()) == 40


def test_a_workers_picture_forgets_a_row_that_left():
    def step(number, groups, joins=(), left=()) -> Decode:
        joins = tuple(Join(request, 7, context, (), 1, None) for request, context in joins)
        return Decode(Worker("decode", 0), number, left, joins, (), groups, 0, True)

    view = BatchView()
    assert view.follow(step(4, ((5, 6),), joins=((5, 3), (6, 8)))) == (4 + 9, 9 + 9)
    assert view.follow(step(5, ((6,),), left=(5,))) == (10, 10)
    assert view.context(6) == 9
    with pytest.raises(KeyError):
        view.context(5)


# ---- forced faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["staged", "paged", "colocated"])
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_each_pass_and_step_fails_in_turn(preset, kind):
    """Its batch fails, the rest goes on. A mixed pass is one pass, with the rows of its step."""
    quiet, mixed = crowded(preset).finish(), {}
    for span in quiet.recorder.timeline.spans:
        if span.kind in ("prefill", "decode"):
            mixed.setdefault((span.place, span.start_ns), []).append(span)
    events = [spans for spans in mixed.values() if kind in (span.kind for span in spans)]
    events = [spans for spans in events if kind == "prefill" or len(spans) == 1]
    for number, spans in enumerate(events, 1):
        requests = {request for span in spans for request in span.requests}
        world = crowded(preset, faults=FaultPlan({(kind, number): "fail"})).finish()
        failed = {index for index, result in world.results.items() if result.finish_reason == "failed"}
        assert failed == requests, (number, spans)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_worker_dies_at_each_of_its_answers(preset):
    """Rule 6: everything open ends failed with that cause, and the engine says that it is broken."""
    faults = FaultPlan({("worker", 10**6): "die"})
    crowded(preset, faults=faults).finish()
    for number in range(1, faults.counts["worker"] + 1):
        world = crowded(preset, faults=FaultPlan({("worker", number): "die"})).finish()
        assert "died: fault" in world.controller.broken
        open_ones = [r for r in world.results.values() if r.finish_reason == "failed"]
        assert all(result.error == world.controller.broken for result in open_ones)


@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "paged"])
def test_each_landing_is_lost_in_turn(preset):
    """A deadline ends the request, or sends it to be computed again; nothing is held at the end."""
    faults = FaultPlan({("landing", 10**6): "lose"})
    crowded(preset, faults=faults).finish()
    for number in range(1, faults.counts["landing"] + 1):
        world = crowded(preset, faults=FaultPlan({("landing", number): "lose"})).finish()
        assert world.lost == 1 and world.seen["deadline"]
        for result in world.results.values():
            assert result.finish_reason == "length" or "has not landed within 1 s" in result.error


@pytest.mark.parametrize("fault", ["twice", "late", "unknown"])
@pytest.mark.parametrize("preset", ["streamed", "staged", "paged"])
def test_each_notice_comes_twice_late_or_of_no_transfer(preset, fault):
    """Nothing changes: the same answers, and nothing is held."""
    faults = FaultPlan({("notice", 10**6): fault})
    crowded(preset, faults=faults).finish()
    for number in range(1, faults.counts["notice"] + 1):
        world = crowded(preset, faults=FaultPlan({("notice", number): fault})).finish()
        assert [result.finish_reason for result in world.results.values()] == ["length"] * 3
        assert fault == "late" or world.state.counts["anomalies"] == 1


def test_everything_is_interrupted_at_each_event():
    faults = FaultPlan({("event", 10**6): "interrupt"})
    crowded("paged", faults=faults).finish()
    for number in range(1, faults.counts["event"] + 1):
        world = crowded("paged", faults=FaultPlan({("event", number): "interrupt"})).finish()
        assert "cancelled" in {result.finish_reason for result in world.results.values()}


def test_an_unlost_notice_is_missed_by_the_watchdog_detector():
    """A failure that nobody hears of: without a lost notice in the plan, reaching a deadline is a breach."""
    world = crowded("split", faults=FaultPlan({("copy", 1): "fail"}))
    fail = world.transfers.fail
    world.transfers.fail = lambda *args: fail(*args) and []
    with pytest.raises(AssertionError, match="Watchdog: the bulk transfer of request 0 .* longer than watchdog_s=1"):
        world.finish()
