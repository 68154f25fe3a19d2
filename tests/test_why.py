"""Why does a request wait: the gate, its holders and the age in words; cycles are printed."""

import contextlib
import re

import pytest
from controller_harness import DECODE, PREFILL, ControllerHarness, make_job

from disagg.course.buglab import bugs
from disagg.course.buglab.lab_worlds import LabWorld, Simulated
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Table
from disagg.plan.config import Config
from disagg.plan.errors import EngineError
from disagg.plan.gates import LISTED, NAMED, named, open_in_words
from disagg.plan.request import Finish
from disagg.trace.describe import command_in_words, event_in_words, reason_in_words
from disagg.trace.why import Wait, cycle_of, why
from disagg.twin.simulated_engine import SimulatedEngine

SIMULATED = [name for name, bug in bugs.bugs().items() if isinstance(bug.scene, Simulated)]
START = cmd.Turn(0, [])


def test_a_request_under_way_waits_for_nothing():
    harness = ControllerHarness()
    harness.submit()
    expected = "request 0 (prefilling) waits for nobody: its prefill is under way, 0.0 ms since it began"
    assert why(harness.state, 0, harness.now) == expected


def test_who_waits_for_blocks_hears_who_holds_them():
    harness = ControllerHarness(prefill_blocks=3)
    harness.submit(0, prompt=8, new=2)
    harness.submit(1, prompt=8, new=2)
    harness.prefilled(1)
    text = why(harness.state, 1, harness.now + 3_000_000).splitlines()
    assert text[0] == ("request 1 (queued) waits for 3.0 ms for prefill 0 blocks; held by request 0 (2); 1 free")
    assert text[1].startswith("request 0 (handing off) waits for 3.0 ms for bulk transfer, holds 2 of prefill 0, ")
    assert text[1].endswith("; 0 of 4 (layer, block) pairs have landed")


def test_who_waits_for_a_place_hears_who_sits_there():
    harness = ControllerHarness(max_batch=1)
    harness.run_one(0)
    harness.run_one(1)
    harness.stepped(2)
    assert why(harness.state, 1, harness.now).startswith("request 1 (landed) waits for 0.0 ms for batch slot, holds ")
    assert "; held by request 0 (1)" in why(harness.state, 1, harness.now).splitlines()[0]


def test_behind_the_head_of_a_queue_one_waits_for_what_the_head_waits_for():
    harness = ControllerHarness(prefill_blocks=3)
    for request in range(3):
        harness.submit(request, prompt=8, new=2)
    harness.prefilled(1)
    text = why(harness.state, 2, harness.now).splitlines()[0]
    words = "request 2 (queued) waits for 0.0 ms for prefill 0 blocks behind request 1; held by request 0 (2); 1 free"
    assert text == words
    assert "behind" not in why(harness.state, 1, harness.now).splitlines()[0], "the head is behind nobody"


def test_a_long_queue_names_the_first_few_who_are_ahead():
    harness = ControllerHarness(prefill_blocks=3)
    for request in range(8):
        harness.submit(request, prompt=8, new=2)
    first = ", ".join(f"request {request}" for request in range(1, 5))
    assert f"for prefill 0 blocks behind {first};" not in why(harness.state, 7, harness.now)
    harness.prefilled(1)
    assert f"for prefill 0 blocks behind {first};" in why(harness.state, 5, harness.now)
    assert f"for prefill 0 blocks behind {first} and 2 more; held" in why(harness.state, 7, harness.now)


@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "colocated"])
def test_while_a_pass_runs_those_behind_wait_for_their_turn(preset):
    """Nothing has looked at their queue yet, so no gate is known; who is ahead is."""
    harness = ControllerHarness(preset)
    for request in range(3):
        harness.submit(request)
    assert why(harness.state, 1, harness.now).startswith("request 1 (queued) waits for 0.0 ms for its turn")
    words = "request 2 (queued) waits for 0.0 ms for its turn behind request 1"
    assert why(harness.state, 2, harness.now).startswith(words)
    assert open_in_words(harness.state) == (
        "request 0 (prefilling) for its turn; request 1 (queued) for its turn; "
        "request 2 (queued) for its turn behind request 1"
    )


def test_of_many_open_requests_the_first_few_are_told_and_the_rest_counted():
    harness = ControllerHarness()
    for request in range(LISTED):
        harness.submit(request)
    assert open_in_words(harness.state).count("(queued)") == LISTED - 1
    harness.submit(LISTED)
    assert open_in_words(harness.state).endswith("; and 1 more")


def test_when_nothing_is_under_way_everybody_who_waits_is_told_with_what_for():
    harness = ControllerHarness()
    for request in range(3):
        harness.state.enqueue(harness.state.enter(START, make_job(request)))
    harness.controller.prefilling._admit = lambda turn, worker, record: False
    harness.submit(3)
    ahead = [f"request {request}" for request in range(3)]
    turns = ["request 0 (queued) for its turn"]
    turns += [f"request {n} (queued) for its turn behind {', '.join(ahead[:n])}" for n in (1, 2, 3)]
    assert harness.controller.broken == f"nothing is under way, but these wait: {'; '.join(turns)}"


def test_a_world_that_comes_to_rest_too_early_says_the_same():
    world = SimulatedEngine(Config(model="tiny", prefill_blocks=8, host_blocks=0, decode_blocks=8))
    for request in range(2):
        world.controller.state.enqueue(world.controller.state.enter(START, make_job(request)))
    words = "nothing left to happen, but these wait: request 0 .queued. for its turn; request 1 .* behind request 0$"
    with pytest.raises(EngineError, match=words):
        world.run()


@pytest.mark.parametrize("bug", SIMULATED)
def test_no_gate_is_left_out_in_any_scene_of_the_bug_lab(bug):
    """What `why` says of each open request, at each event of each scene: a gate or a turn."""
    for seed in (None, 1, 2):
        scene = bugs.bugs()[bug].scene
        world, texts = LabWorld(scene, False, seed), []
        handle = world.controller.handle

        def asking(event, now_ns, world=world, handle=handle, texts=texts):
            commands = handle(event, now_ns)
            texts.extend(why(world.controller.state, request, now_ns) for request in world.controller.state.records)
            return commands

        world.controller.handle = asking
        with bugs.bug(bug), contextlib.suppress(Exception):
            world.run()
        texts.append(world.controller.broken or "")
        assert len(texts) > 1
        assert not [text for text in texts if re.search(r"\bfor\s*(;|,|behind|$|\n)", text)]


def test_no_request_waits_after_the_end():
    harness = ControllerHarness()
    harness.submit()
    harness.cancel()
    assert why(harness.state, 0, 5) == "request 0 is not open: it has ended, or never came"


def test_a_cycle_is_printed():
    """Each holds what the other wants, as with a reservation in two halves."""
    harness = ControllerHarness()
    state = harness.state
    for request in range(2):
        state.enter(START, make_job(request))
        state.prefills[0].queue.remove(state.records[request])
    first, second = state.records[0], state.records[1]
    first.prefill_table, first.gate = Table.reserve(state.prefills[0].pool, 8, 0), "decode 0 blocks"
    second.decode_table, second.gate = Table.reserve(state.decodes[0].pool, 8, 1), "prefill 0 blocks"
    text = why(state, 0, 2_000_000)
    assert text.splitlines() == [
        "request 0 (queued) waits for 2.0 ms for decode 0 blocks, holds 8 of prefill 0; held by request 1 (8); 0 free",
        "request 1 (queued) waits for 2.0 ms for prefill 0 blocks, holds 8 of decode 0; held by request 0 (8); 0 free",
        "cycle: request 0 → request 1 → request 0",
    ]


def test_what_one_holds_itself_is_not_what_one_waits_for():
    harness = ControllerHarness()
    state = harness.state
    for request in range(2):
        state.enter(START, make_job(request))
        record = state.records[request]
        state.prefills[0].queue.remove(record)
        record.decode_table = Table.reserve(state.decodes[0].pool, 4, request)
    state.records[0].gate = "decode 0 blocks"
    assert why(state, 0, 2_000_000).splitlines() == [
        "request 0 (queued) waits for 2.0 ms for decode 0 blocks, holds 4 of decode 0; held by request 1 (4); 0 free",
        "request 1 (queued) waits for 2.0 ms for its turn, holds 4 of decode 0",
    ]


@pytest.mark.parametrize(
    "holders, cycle",
    [({0: [1], 1: []}, []), ({0: [1], 1: [0]}, [0, 1]), ({0: [1], 1: [2], 2: [1]}, [1, 2]), ({0: [0]}, []),
     ({0: [1, 2], 1: [5], 2: [0]}, [0, 2])],
)  # fmt: skip
def test_cycles_among_waiters(holders, cycle):
    waits = {r: Wait(r, "queued", "x blocks", 0, {}, dict.fromkeys(whom, 1)) for r, whom in holders.items()}
    assert cycle_of(waits) == cycle


def test_events_and_commands_read_as_sentences():
    harness = ControllerHarness()
    harness.submit(0, prompt=6, new=4)
    prefill = harness.last(cmd.Prefill)
    assert command_in_words(prefill) == f"prefill 0: run pass {prefill.pass_id} (request 0 tokens 0 to 6)"
    harness.prefilled(11)
    assert command_in_words(harness.last(cmd.Send)) == "prefill 0: 2 of 2 blocks of request 0 may travel at once (bulk)"
    harness.land_all()
    assert command_in_words(harness.last(cmd.Decode)) == "decode 0: run step 0 with 1 rows, 1 join"
    worked = (3_000_000, 4_500_000)
    ended = event_in_words(ev.Stepped(DECODE, 0, (12,), *worked, 7, 7))
    assert ended == "decode 0 ended step 0 after 1.5 ms: 1 rows, 7 slots read"
    ended = event_in_words(ev.Prefilled(PREFILL, 1, (11,), *worked))
    assert ended == "prefill 0 ended pass 1 after 1.5 ms with 1 token"
    reason = "its prompt is too long"
    gone = command_in_words(cmd.Ended(0, Finish.REJECTED, reason, 5, ()))
    assert gone == "request 0 has ended: rejected (its prompt is too long)"
    assert event_in_words(ev.SourceRead(4)) == "the source of transfer 4 has been read"
    assert event_in_words(ev.TransferClosed(4)) == "the last copy of transfer 4 has ended"
    assert command_in_words(cmd.Broken("no memory")) == "broken: no memory"
    assert named([str(n) for n in range(NAMED + 1)]).endswith(" and 1 more") and "more" not in named(["1"])


def test_a_queued_request_names_how_many_are_ahead():
    harness = ControllerHarness("colocated", max_batch=1)
    harness.submit(0)
    harness.state.reasons = []
    harness.submit(1)
    harness.prefilled(1)
    harness.stepped(2)
    words = "request 1 stays in its queue: 1 requests are on their way to 1 places in the batch"
    assert words in [reason_in_words(*reason) for reason in harness.state.reasons]
