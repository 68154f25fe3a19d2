"""Two requests, three layers, a ring of two, one fault or cancel anywhere: no order ends badly; the soak's rows."""

import copy
import json

import pytest
from typer.testing import CliRunner

from benchmarks.robustness import soak
from benchmarks.robustness.canonical_state import Names, _contents, state_of
from benchmarks.robustness.detectors_cost import rows as cost_rows
from benchmarks.robustness.faulty_simulation import FaultySimulation
from benchmarks.robustness.model_checker import ASTRAY, WORLDS, Branch, Explored, explore, small
from benchmarks.robustness.random_scenarios import build
from benchmarks.suites import app
from disagg.monitor.shadow_memory import Memory, WrongContent
from disagg.monitor.violation import InvariantViolation
from disagg.plan.transfer import LayerBlocks, Transfer
from disagg.plan.transfer_scheduler import TransferScheduler


@pytest.mark.timeout(600)  # a quarter of a minute; this is for machines that do other things meanwhile
def test_every_order_of_the_small_world_ends_well(capsys):
    found = explore()
    with capsys.disabled():
        print(f"\nsmall world: {found}")
    assert found.states > 5000 and found.ends > 5 and found.steps > found.states


HAPPENS = {
    "parked, fetched": {"parked", "parked: fetch", "fetches"},
    "parked, recomputed": {"parked", "parked: recompute", "recomputes"},
    "mixed": {"mixed pass", "chunked prefill"},
    "conditional": {"split", "stay"},
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WORLDS)
def test_every_order_of_a_world_that_parks_mixes_or_splits_ends_well(name):
    """And what the world is for does happen where nothing goes wrong."""
    quiet = WORLDS[name]()
    quiet.struck = True
    while choices := list(quiet.choices()):
        quiet.do(choices[0])
    quiet.check_end()
    assert HAPPENS[name] <= set(+quiet.happened)
    found = explore(WORLDS[name]())
    assert found.states > 90 and found.ends > 5


def test_a_copy_of_paging_fails_in_the_small_world_and_is_computed_again():
    world = WORLDS["parked, fetched"]()
    while choices := list(world.choices()):
        failing = [choice for choice in choices if choice.fault == ("paging", "fail")]
        world.do(failing[0] if failing and not world.struck else choices[0])
    world.check_end()
    assert world.struck and world.state.counts["paging_failures"] == 1
    assert {result.finish_reason for result in world.results.values()} == {"length"}


@pytest.mark.parametrize(
    "name, change",
    [
        ("parked, fetched", lambda world: world.state.wanting.__setattr__("tokens", 1)),
        ("conditional", lambda world: world.state.records[0].__setattr__("stays", True)),
        ("mixed", lambda world: world.state.records[0].__setattr__("prefill_target", 9)),
    ],
)
def test_queues_ways_and_targets_tell_states_apart(name, change):
    world = WORLDS[name]()
    change(world)
    assert state_of(world) != state_of(WORLDS[name]())


def test_a_quiet_small_world_has_one_end():
    world = small()
    world.struck = True
    found = explore(world)
    assert found.ends == 1 and found.states > 500


def test_lost_doubled_and_late_notices_may_strike_and_a_deadline_ends_what_they_leave():
    """`soak` goes every way from here; on every push one way to each."""
    ends = {}
    for fault in ASTRAY:
        world = small(notices=True)
        while choices := list(world.choices()):
            struck = [choice for choice in choices if choice.fault == fault and choice.actor != "prefill"]
            world.do(struck[-1] if struck and not world.struck else choices[0])
        assert world.struck, fault
        world.check_end()
        ends[fault] = sorted(result.finish_reason for result in world.results.values())
    assert ends["landing", "lose"] == ["failed", "length"] and ends["notice", "twice"] == ["length", "length"]


MUTANTS = {
    "a transfer pins nothing": (Transfer, "touch", lambda self, table: None, "InUse"),
    "landed is counted, not collected": (LayerBlocks, "covers", lambda self, blocks: any(self.bits), "Landing"),
    "an abort closes at once": (TransferScheduler, "_close_if_done", lambda self, number: [], "Drain|Watchdog"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_finds_what_is_wrong_and_the_way_there(monkeypatch, mutant):
    owner, name, wrong, detector = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError, match=f"(?s)({detector}): .*after: ") as caught:
        explore()
    assert isinstance(caught.value.__cause__, InvariantViolation)


def test_a_copy_of_a_world_is_the_same_state_and_goes_its_own_way():
    world = small()
    twin = copy.deepcopy(world)
    assert state_of(twin) == state_of(world)
    for _ in range(9):
        twin.do(next(twin.choices()))
    assert state_of(twin) != state_of(world) == state_of(small())


def test_names_of_blocks_and_ids_of_passes_do_not_tell_states_apart():
    first, second = small(), small()
    second.state.new_id()
    for pool in second.state.pools():
        pool.reserve = lambda *asked, reserve=pool.reserve: reserve(*asked)[::-1]
    for world in (first, second):
        for _ in range(5):  # the first pass to its end, and a layer of the second
            world.do(Branch("prefill 0"))
    assert state_of(first) == state_of(second) != state_of(small())
    assert first.memory.contents() != second.memory.contents(), "they use other blocks"


def test_a_wrong_answer_at_an_end_is_noticed():
    world = small()
    while any(world.queues.values()):
        world.do(next(world.choices()))
    world.check_end()
    world.results[0].token_ids[0] += 1
    with pytest.raises(AssertionError):
        world.check_end()


def test_what_a_held_block_contains_tells_states_apart():
    world = small()
    for _ in range(5):
        world.do(Branch("prefill 0"))
    twin = copy.deepcopy(world)
    key, layers = next((key, layers) for key, layers in twin.memory.contents() if layers)
    twin.memory.write(key, min(layers), (99, 0, 1))
    assert state_of(twin) != state_of(world)


def test_names_are_numbers_in_the_order_in_which_blocks_are_met():
    names = Names()
    assert [names.of("p", 7), names.of("q", 7), names.of("p", 7), names.of("p", None)] == [0, 1, 0, None]
    assert (names.known("q", 7), names.known("q", 8)) == (1, None)


def test_memory_that_holds_something_else_is_noticed():
    memory = Memory(layers=2, block_size=4)
    memory.write_row("decode 0", request=1, context=0, blocks=[5])
    memory.read_row("decode 0", request=1, context=1, blocks=[5])
    with pytest.raises(WrongContent, match="decode 0 block 5 layer 0 holds"):
        memory.read_row("decode 0", request=2, context=1, blocks=[5])


def test_a_cancel_is_the_one_thing_that_strikes():
    world = small()
    assert any(choice.fault or choice.cancel is not None for choice in world.choices())
    world.do(Branch("", cancel=0))
    while choices := list(world.choices()):
        assert not any(choice.fault or choice.cancel is not None for choice in choices)
        world.do(choices[0])
    world.check_end()


def test_where_in_a_slot_something_lies_tells_states_apart():
    names = Names()
    names.of("ring", 5)
    first, second = (_contents([(("ring", 5, index), {0: (1, 0, 2)})], names) for index in range(2))
    assert first != second and _contents([(("ring", 6, 0), {0: (1, 0, 2)})], names) == (), "nobody has slot 6"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The small world and the real engine have their own tests."""
    monkeypatch.setattr(soak, "explore", lambda world: Explored(10, 20, 1))
    monkeypatch.setattr(soak.fault_matrix, "rows", lambda say: iter(()))
    monkeypatch.setattr(soak.engine_soak, "rows", lambda say, requests: iter(()))
    monkeypatch.setattr(soak.detectors_cost, "rows", lambda say: iter(()))


def rows(seeds=3) -> dict:
    return {row.name: row for row in soak.suite(lambda text: None, seeds)}


def test_the_rows_and_their_bars():
    found = rows()
    names = ["small_world_states", "small_worlds_states", "sim_breaches", "sim_seeds_per_s", "sim_never_happened"]
    assert list(found) == names
    assert (found["small_world_states"].value, found["small_worlds_states"].value) == (10, 10 * len(WORLDS))
    assert (found["sim_breaches"].value, found["sim_breaches"].bar_text, found["sim_breaches"].n) == (0, "≤ 0", 3)
    assert found["sim_seeds_per_s"].bar_text == "≥ 100" and found["sim_seeds_per_s"].value > 0
    assert "cancel fetching" in found["sim_never_happened"].note


def test_a_failed_seed_is_counted_told_and_named(monkeypatch):
    finish = FaultySimulation.finish

    def failing(self):
        assert len(self.jobs) != len(soak_jobs), "on purpose [here]"
        return finish(self)

    soak_jobs = build(1).jobs
    monkeypatch.setattr(FaultySimulation, "finish", failing)
    said = []
    found = {row.name: row for row in soak.simulated_rows(said.append, 3)}
    assert found["sim_breaches"].value >= 1 and found["sim_breaches"].met is False
    assert "rerun: python -m benchmarks soak --seed " in found["sim_breaches"].note
    assert any("seed 1: AssertionError: on purpose" in text for text in said)


def test_the_command_writes_a_file(tmp_path):
    path = tmp_path / "soak.json"
    done = CliRunner().invoke(app, ["soak", "--seeds", "2", "--json", str(path)])
    assert done.exit_code == 1 and "sim_never_happened" in done.output.splitlines()[-1], "of two worlds that is so"
    assert [row["name"] for row in json.loads(path.read_text())["rows"]][:3] == [
        "small_world_states",
        "small_worlds_states",
        "sim_breaches",
    ]


def test_one_seed_by_itself(monkeypatch):
    done = CliRunner().invoke(app, ["soak", "--seed", "5"])
    assert done.exit_code == 0 and done.output.startswith("seed 5: ") and "all ended well" in done.output
    monkeypatch.setattr(FaultySimulation, "finish", lambda self: 1 / 0)
    done = CliRunner().invoke(app, ["soak", "--seed", "5"])
    assert done.exit_code == 1 and "rerun: python -m benchmarks soak --seed 5" in done.output


def test_the_cost_of_detectors_is_their_share_of_a_run():
    (row,) = cost_rows(lambda text: None, "tiny")
    assert row.name == "detectors_cost_pct" and row.bar == 3 and 0 < row.value < 100
    assert row.n == 16 and "512 tokens" in row.note
