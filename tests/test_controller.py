"""The controller, event by event: each stage of a request's life, and what must not change it."""

import pytest
from controller_harness import DECODE, LAYERS, PREFILL, ControllerHarness, make_job, parking

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Part
from disagg.plan.errors import ConfigError
from disagg.plan.request import LEGAL_MOVES, Record, Stage

# ---- the life of a request -------------------------------------------------------------------------------------------


def test_a_split_request_step_by_step():
    harness = ControllerHarness("split")
    harness.submit(prompt=6, new=3)
    assert (harness.stage(), harness.kinds(), harness.held()) == ("prefilling", ["Prefill"], (2, 0, 0))
    chunk = harness.last(cmd.Prefill).chunks[0]
    assert (chunk.start, chunk.stop, chunk.final, chunk.transfer) == (0, 6, True, None)
    assert chunk.tokens == tuple(range(100, 106))
    harness.prefilled(11)
    assert (harness.stage(), harness.kinds()) == ("handing off", ["Emit", "Send", "Assign"])
    assert harness.last(cmd.Send).route == "bulk" and harness.last(cmd.Send).layers_ready
    harness.landed(harness.part(1))
    assert (harness.stage(), harness.out) == ("handing off", [])
    harness.landed(harness.part(0))
    assert (harness.stage(), harness.kinds(), harness.held()) == ("running", ["Decode"], (0, 2, 0))
    join = harness.last(cmd.Decode).joins[0]
    assert (join.token, join.context, join.token_index, len(join.blocks)) == (11, 6, 1, 2)
    harness.stepped(12)
    assert harness.kinds() == ["Emit", "Decode"]
    harness.stepped(13)
    assert harness.kinds() == ["Emit", "Ended"]
    assert harness.held() == (0, 0, 0), "blocks come back in the event of the last token"
    ended = harness.last(cmd.Ended)
    assert (ended.finish.value, ended.error) == ("length", None)
    assert [stage.value for _, stage in ended.stages] == [
        "queued", "prefilling", "handing off", "landed", "running", "ended"
    ]  # fmt: skip
    assert harness.state.deadlines.next_ns is None and harness.anomalies == 0


def test_bulk_sends_after_prefill_and_streams_send_before_it():
    bulk, direct, staged = ControllerHarness("split"), ControllerHarness("streamed"), ControllerHarness("staged")
    for harness in (bulk, direct, staged):
        harness.submit()
    assert bulk.kinds() == ["Prefill"]
    assert direct.kinds() == staged.kinds() == ["Send", "Prefill", "Assign"]
    for harness in (direct, staged):
        assert not harness.last(cmd.Send).layers_ready
        assert harness.last(cmd.Prefill).chunks[0].transfer == harness.transfer
    assert [h.last(cmd.Send).route for h in (direct, staged)] == ["direct", "staged"]


def test_a_streamed_hand_off_that_beats_its_prefill_waits_for_token_one():
    harness = ControllerHarness("streamed")
    harness.submit()
    harness.land_all()
    assert (harness.stage(), harness.out) == ("prefilling", [])
    harness.prefilled(11)
    assert (harness.stage(), harness.kinds(), harness.held()) == ("running", ["Emit", "Decode"], (0, 2, 0))


def test_a_staged_source_goes_when_hop_one_is_through():
    harness = ControllerHarness("staged").hand_off()
    assert harness.held() == (2, 2, 0)
    harness.tell(ev.SourceRead(harness.transfer))
    assert (harness.stage(), harness.held()) == ("handing off", (0, 2, 0))
    harness.land_all()
    assert harness.stage() == "running"


def test_a_source_read_before_the_end_of_prefill_stays_until_then():
    harness = ControllerHarness("staged")
    harness.submit()
    harness.tell(ev.SourceRead(harness.transfer))
    assert harness.held()[0] == 2
    harness.prefilled(11)
    assert harness.held()[0] == 0


def test_chunks_hand_off_whole_blocks_as_they_are_computed():
    harness = ControllerHarness("streamed", chunk_tokens=8)
    harness.submit(prompt=11)
    assert (harness.last(cmd.Send).blocks, harness.last(cmd.Send).due_blocks) == ((0, 1), 3)
    assert not harness.last(cmd.Prefill).chunks[0].final
    harness.prefilled()
    assert harness.kinds() == ["Send", "Prefill"]
    assert (harness.last(cmd.Send).first_block, harness.last(cmd.Send).blocks) == (2, (2,))
    harness.landed(Part(0, LAYERS, 0, 2))
    harness.prefilled(11)
    harness.landed(harness.part(1, 2, 1))
    assert harness.stage() == "handing off", "a set of (layer, block), not a count"
    harness.landed(harness.part(0, 2, 1))
    assert harness.stage() == "running"


def test_decode_blocks_are_reserved_when_something_is_about_to_travel():
    harness = ControllerHarness("split", decode_blocks=4).run_one(0, prompt=6, new=8)
    harness.submit(1, prompt=12, new=2)
    assert harness.held() == (3, 2, 0)
    harness.prefilled(1)
    assert harness.kinds() == ["Emit", "Send"], "no place yet: four blocks are needed, two are there"
    assert harness.state.records[1].gate == "decode 0 blocks"
    harness.cancel(0)
    assert harness.held() == (3, 2, 0), "the step in flight still writes them"
    harness.stepped(5)
    assert harness.kinds() == ["Emit", "Assign"] and harness.last(cmd.Emit).requests == ()
    assert harness.held() == (3, 4, 0)


def test_the_device_of_a_colocated_request_alternates_passes_and_steps():
    harness = ControllerHarness("colocated", mixed_passes=False)
    harness.submit(0, prompt=6, new=5)
    assert harness.held() == (2, 0)
    harness.prefilled(11)
    assert (harness.stage(), harness.kinds()) == ("running", ["Emit", "Decode"])
    harness.submit(1, prompt=6, new=5)
    assert harness.out == [], "one device: the pass waits for the step"
    harness.stepped(12)
    assert harness.kinds() == ["Emit", "Prefill"]
    harness.prefilled(21)
    assert harness.kinds() == ["Emit", "Decode"]
    assert harness.last(cmd.Decode).groups == ((0, 1),)


def test_rows_decode_in_the_pass_of_a_prompt():
    """The last chunks of a mixed pass are its rows, a token each, and so are the last tokens of its end."""
    harness = ControllerHarness("colocated").hand_off(0, prompt=6, new=5)
    harness.submit(1, prompt=6, new=5)
    harness.stepped(12)
    command = harness.last(cmd.Prefill)
    assert harness.kinds() == ["Emit", "Prefill"] and command.rows == (0,)
    assert [(chunk.request, chunk.start, chunk.stop) for chunk in command.chunks] == [(1, 0, 6), (0, 7, 8)]
    table = harness.state.records[0].decode_table
    assert command.chunks[1].tokens == (12,) and command.chunks[1].blocks == tuple(table.blocks[:2])
    harness.prefilled(21, 13)
    assert [emit.tokens for emit in harness.out if isinstance(emit, cmd.Emit)] == [(21,), (13,)]
    assert harness.last(cmd.Decode).groups == ((0, 1),) and harness.state.counts["padding_mismatches"] == 0


def test_a_mixed_pass_that_fails_ends_its_prompts_and_its_rows():
    harness = ControllerHarness("colocated").hand_off(0, prompt=6, new=5)
    harness.submit(1, prompt=6, new=5)
    harness.stepped(12)
    pass_id, worker = harness.last(cmd.Prefill).pass_id, harness.last(cmd.Prefill).worker
    harness.tell(ev.PassFailed(worker, pass_id, "no memory"))
    ended = {end.request: end.error for end in harness.out if isinstance(end, cmd.Ended)}
    assert ended == {0: "decode of request 0 failed: no memory", 1: "prefill of request 1 failed: no memory"}
    assert not harness.state.records and harness.state.decodes[0].pool.held == 0


def test_a_step_is_alone_while_no_prefill_worker_has_a_pass():
    harness = ControllerHarness("split", prefill_workers=2).run_one(0, prompt=6, new=8)
    assert harness.last(cmd.Decode).alone
    harness.submit(1, prompt=6, new=8)
    harness.stepped(12)
    assert harness.kinds() == ["Emit", "Decode"] and not harness.last(cmd.Decode).alone, "one of two has a pass"
    harness.prefilled(21)
    harness.stepped(13)
    assert harness.last(cmd.Decode).alone


def test_a_full_baseline_names_the_gate():
    harness = ControllerHarness("baseline", chunk_tokens=64).hand_off(0)
    harness.submit(1)
    harness.stepped(12)
    assert (harness.stage(1), harness.state.records[1].gate) == ("queued", "batch slot")


def test_two_colocated_take_turns_by_arrival():
    harness = ControllerHarness("two_colocated")
    for request in range(3):
        harness.submit(request)
    assert [record.decode_worker for record in harness.state.records.values()] == [0, 1, 0]


def test_illegal_moves_are_refused():
    for stage, legal in LEGAL_MOVES.items():
        for other in Stage:
            record = Record(make_job(), stage=stage)
            if other in legal:
                record.move(other, 1)
            else:
                with pytest.raises(AssertionError, match="not a legal move"):
                    record.move(other, 1)


# ---- paging ----------------------------------------------------------------------------------------------------------


def spilling(**changes) -> ControllerHarness:
    """Request 0 needs a third block, and takes it from request 1, which is spilled."""
    harness = ControllerHarness("paged", **{"decode_blocks": 4, "host_blocks": 8, **changes})
    for request, prompt in ((0, 7), (1, 5)):
        harness.run_one(request, prompt, new=8)
    while "Preempted" not in harness.kinds():
        harness.stepped(*(50 for _ in harness.state.decodes[0].steps[0].requests))
    return harness


def fetching() -> ControllerHarness:
    """Request 1 on its way back: request 0 has ended."""
    harness = spilling()
    harness.land_all()
    harness.cancel(0)
    harness.stepped(50)
    return harness


def test_spill_and_fetch_step_by_step():
    harness = spilling()
    record = harness.state.records[1]
    choice = harness.last(cmd.Preempted).choice
    assert choice.arm.value == "spill" and choice.spill_ns < choice.recompute_ns
    assert (harness.stage(0), harness.stage(1), harness.held()) == ("landed", "spilling", (0, 4, 2))
    assert harness.state.records[0].gate == "decode 0 blocks"
    harness.land_all()
    assert (harness.stage(0), harness.stage(1), harness.held()) == ("running", "spilled", (0, 3, 2))
    harness.cancel(0)
    harness.stepped(50)
    assert (harness.stage(1), harness.held()) == ("fetching", (0, 2, 2))
    assert harness.last(cmd.Send).source == cmd.Worker("host", 0)
    harness.land_all()
    assert (harness.stage(1), harness.held()) == ("running", (0, 2, 0))
    join = harness.last(cmd.Decode).joins[0]
    assert (join.context, join.token_index) == (record.context, len(record.generated))
    counted = [harness.state.counts[name] for name in ("preemptions", "spills", "fetches", "recomputes")]
    assert counted == [1, 1, 1, 0]


def test_a_host_with_just_the_room_takes_a_spill():
    harness = spilling(host_blocks=2)
    assert harness.last(cmd.Preempted).choice.arm.value == "spill"
    assert (harness.stage(1), harness.held()) == ("spilling", (0, 4, 2))


def test_without_host_room_the_youngest_is_computed_again():
    harness = spilling(host_blocks=1)
    assert harness.last(cmd.Preempted).choice.spill_ns is None
    assert (harness.stage(0), harness.stage(1)) == ("running", "queued")
    harness.stepped(50)
    chunk = harness.last(cmd.Prefill).chunks[0]
    record = harness.state.records[1]
    assert chunk.tokens == record.job.prompt + tuple(record.generated)
    assert (chunk.token_index, chunk.final) == (len(record.generated), True)


@pytest.mark.parametrize("bring", [spilling, fetching])
def test_a_failing_spill_or_fetch_is_computed_again_once_its_copies_have_ended(bring):
    harness = bring()
    harness.tell(ev.TransferFailed(harness.transfer, "fault"))
    assert harness.stage(1) == bring.__name__ and isinstance(harness.out[0], cmd.Abort)
    harness.tell(ev.TransferClosed(harness.transfer))
    assert harness.stage(1) in ("queued", "prefilling") and harness.state.records[1].host_table is None
    assert (harness.state.counts["recomputes"], harness.ended().get(1), harness.held()[2]) == (1, None, 0)


# ---- what broke once -----------------------------------------------------------------------------------------------


def test_a_failed_hand_off_names_its_request_and_the_cause():
    harness = ControllerHarness().hand_off(7)
    harness.tell(ev.TransferFailed(harness.transfer, "layer 1 on hop two: bad digest"))
    assert harness.last(cmd.Ended).error == "bulk transfer of request 7 failed: layer 1 on hop two: bad digest"


def test_closed_without_an_abort_changes_nothing():
    harness = ControllerHarness().hand_off()
    harness.tell(ev.TransferClosed(harness.transfer))
    assert (harness.anomalies, harness.stage(), harness.out) == (1, "handing off", [])


def test_two_failing_copies_of_one_spill_count_once():
    harness = spilling()
    assert harness.stage(1) == "spilling"
    harness.tell(ev.TransferFailed(harness.transfer, "first"))
    harness.tell(ev.TransferFailed(harness.transfer, "second, of a copy that was under way too"))
    assert harness.state.counts["paging_failures"] == 1
    assert sum(isinstance(command, cmd.Abort) for command in harness.log) == 1


def test_a_second_landing_teaches_the_costs_nothing():
    harness = spilling()
    harness.landed(harness.part(0))
    known = harness.state.costs.copy_ns_per_byte
    harness.tell(ev.Landed(harness.transfer, (harness.part(0),), 16, 10**6))
    assert (harness.anomalies, harness.state.costs.copy_ns_per_byte) == (1, known)


def test_blocks_freed_for_a_row_are_not_given_back_to_the_one_that_was_spilled_for_it():
    harness = spilling()
    assert (harness.stage(0), harness.stage(1)) == ("landed", "spilling")
    harness.land_all()
    assert (harness.stage(0), harness.stage(1)) == ("running", "spilled")
    assert harness.last(cmd.Decode).joins[0].blocks == tuple(harness.state.records[0].decode_table.blocks)


def retuned(harness: ControllerHarness, **changes) -> list:
    return harness.tell(ev.Retune(harness.state.config.replace(**changes)))


def test_what_no_longer_fits_a_shrunk_pool_is_refused_or_fails_in_words():
    harness = ControllerHarness()
    harness.submit(0, prompt=20, new=8)
    harness.submit(1, prompt=6, new=2)
    harness.prefilled(1, 1)
    retuned(harness, decode_blocks=6)
    assert harness.ended() == {0: "failed"}
    assert harness.last(cmd.Ended).error == (
        "request 0 no longer fits: prompt of 20 tokens and 8 new ones need 7 blocks of 4, but decode 0 has 6; "
        "shorten the request or raise decode_blocks"
    )
    refusal = harness.controller.refusal(make_job(2, prompt=20, new=8))
    harness.submit(2, prompt=20, new=8)
    assert harness.ended()[2] == "failed" and harness.last(cmd.Ended).error == refusal
    assert refusal.startswith("prompt of 20 tokens and 8 new ones need 7 blocks of 4, but decode 0 has 6; shorten")


# ---- cancel ----------------------------------------------------------------------------------------------------------


def at(stage: str) -> tuple[ControllerHarness, int]:
    """A harness whose request (the second value) has reached this stage."""
    if stage in ("spilling", "spilled", "fetching"):
        harness = spilling() if stage != "fetching" else fetching()
        if stage == "spilled":
            harness.land_all()
        return harness, 1
    if stage == "parked":
        harness = ControllerHarness("paged", host_blocks=8, decode_blocks=5, prefill_blocks=6)
        harness.hand_off(0, prompt=15, new=5).land_all()
        harness.submit(1, prompt=15, new=5)
        harness.prefilled(21)
        harness.land_all()
        return harness, 1
    if stage == "landed":
        return spilling(), 0
    if stage == "parked":
        harness = parking()
        harness.prefilled(12)
        harness.land_all()
        return harness, 1
    harness = ControllerHarness("split", prefill_blocks=3)
    if stage == "queued":
        harness.submit(9)
    harness.submit(0)
    if stage in ("handing off", "running"):
        harness.prefilled(11)
    if stage == "running":
        harness.land_all()
    return harness, 0


OPEN = [stage.value for stage in Stage if stage is not Stage.ENDED]


@pytest.mark.parametrize("stage", OPEN)
def test_cancel_ends_at_once_and_frees_when_nothing_touches_the_blocks(stage):
    harness, request = at(stage)
    assert harness.stage(request) == stage
    record = harness.state.records[request]
    tables = record.tables
    harness.cancel(request)
    assert harness.ended()[request] == "cancelled"
    assert [command.request for command in harness.log if isinstance(command, cmd.Ended)].count(request) == 1
    busy = {"prefilling", "handing off", "running", "spilling", "fetching"}
    quarantined = sum(pool.counts()["quarantined"] for pool in harness.state.pools())
    assert (quarantined > 0) == (stage in busy)
    match stage:
        case "prefilling":
            harness.prefilled(11)
            assert not any(isinstance(command, cmd.Emit) for command in harness.out)
        case "running":
            harness.stepped(12)
            assert harness.last(cmd.Emit).requests == ()
        case "handing off" | "spilling" | "fetching":
            assert harness.last(cmd.Abort).transfer == harness.transfer
            harness.tell(ev.TransferClosed(harness.transfer))
    assert all(table.released and not table.pins for table in tables)
    assert sum(pool.counts()["quarantined"] for pool in harness.state.pools()) == 0
    assert harness.anomalies == 0
    harness.cancel(request)
    assert [command.request for command in harness.log if isinstance(command, cmd.Ended)].count(request) == 1


def test_cancel_of_a_streamed_prefill_waits_for_its_pass_and_its_copies():
    harness = ControllerHarness("streamed")
    harness.submit()
    harness.cancel()
    harness.prefilled(11)
    assert harness.held() == (2, 2, 0)
    harness.tell(ev.TransferClosed(harness.transfer))
    assert harness.held() == (0, 0, 0)


def test_a_late_landing_changes_no_outcome():
    harness = ControllerHarness().hand_off()
    harness.cancel()
    assert harness.held() == (2, 2, 0) and harness.kinds() == ["Abort", "Ended"]
    harness.land_all()
    assert (harness.out, harness.held(), harness.anomalies) == ([], (2, 2, 0), 0)
    harness.tell(ev.TransferClosed(harness.transfer))
    assert (harness.held(), harness.ended()) == ((0, 0, 0), {0: "cancelled"})


def test_each_hand_off_goes_to_the_decode_worker_with_the_most_free_blocks():
    harness = ControllerHarness("streamed", decode_workers=2, prefill_blocks=40, decode_blocks=20)
    workers = []
    for request, prompt in enumerate((20, 8, 6, 4)):
        harness.hand_off(request, prompt)
        workers.append(harness.state.records[request].decode_worker)
    assert workers == [0, 1, 1, 1], "six blocks are taken there; three, then five here"


# ---- one step ahead --------------------------------------------------------------------------------------------------


def test_one_step_ahead_drops_the_extra_token_and_returns_blocks_when_that_step_ends():
    harness = ControllerHarness(steps=2).run_one(prompt=6, new=8, eos=(77,))
    assert harness.last(cmd.Decode).step == 1, "the second step starts before the first one's token is known"
    harness.tell(ev.Tick())
    assert harness.out == []
    harness.stepped(77)
    assert harness.kinds() == ["Emit", "Ended"] and harness.ended() == {0: "eos"}
    assert harness.state.decodes[0].pool.counts()["quarantined"] == 2
    harness.stepped(12)
    assert harness.last(cmd.Emit).requests == () and harness.held() == (0, 0, 0)


def test_one_step_ahead_knows_the_last_step_by_count():
    harness = ControllerHarness(steps=2).run_one(prompt=6, new=3)
    harness.tell(ev.Tick())
    harness.stepped(12)
    assert harness.kinds() == ["Emit"], "both tokens it may still have are in flight already"
    harness.stepped(13)
    assert harness.ended() == {0: "length"} and harness.held() == (0, 0, 0)


def test_no_step_ahead_where_a_row_would_have_no_block():
    harness = ControllerHarness(steps=2, decode_blocks=5)
    for request in (0, 1):
        harness.run_one(request, prompt=7, new=8)
    harness.stepped(20)
    assert harness.last(cmd.Decode).joins[0].request == 1
    harness.stepped(21)
    assert len(harness.state.decodes[0].steps) == 1 and harness.stage(1) == "running"
    harness.stepped(22, 12)
    first = next(command for command in harness.out if isinstance(command, cmd.Decode))
    assert first.left == (1,), "it sits out until there is a block"
    assert (harness.stage(1), harness.state.records[1].gate) == ("landed", "decode 0 blocks")


def test_no_request_is_preempted_under_a_step_in_flight():
    """Two rows wait for the block of a third; one is served, the other must not take it from a row that computes."""
    harness = ControllerHarness("paged", steps=2, block_size=8, decode_blocks=6, host_blocks=8)
    for request, prompt in ((0, 15), (1, 15), (2, 2), (3, 1)):
        harness.submit(request, prompt, new=20)
    harness.prefilled(10)
    harness.prefilled(11, 12, 13)
    transfers = {command.request: command.transfer for command in harness.log if isinstance(command, cmd.Send)}
    for request in (3, 2, 1, 0):
        harness.land_all(transfers[request])
    harness.stepped(20)
    harness.stepped(21)
    harness.stepped(22, 22, 22, 22)
    assert [harness.stage(request) for request in range(4)] == ["landed", "landed", "running", "spilling"]
    harness.land_all()
    assert [harness.stage(request) for request in range(4)] == ["landed", "landed", "running", "spilled"]
    harness.stepped(23)
    assert [harness.stage(request) for request in range(4)] == ["running", "landed", "running", "spilled"]


# ---- deadlines -------------------------------------------------------------------------------------------------------

SECOND = 10**9


def test_a_pass_with_fewer_tokens_than_it_owes_is_a_bug_and_loses_no_request_in_silence():
    harness = ControllerHarness()
    harness.submit()
    with pytest.raises(ValueError, match="zip"):
        harness.prefilled()


def test_a_deadline_never_moves():
    harness = ControllerHarness().hand_off()
    due = harness.state.deadlines.next_ns
    assert due == harness.now + SECOND
    harness.landed(harness.part(0))
    harness.submit(1)
    harness.tell(ev.Tick(), after=due - 1 - harness.now)
    assert harness.state.deadlines.next_ns == due and harness.stage() == "handing off"
    harness.now = due - 1
    harness.tell(ev.Tick())
    assert harness.ended()[0] == "failed"
    error = next(c.error for c in harness.log if isinstance(c, cmd.Ended))
    assert error == "watchdog: request 0: its bulk transfer of 2 blocks has not landed within 1 s"


def test_a_hand_off_that_waits_for_blocks_has_no_deadline():
    harness = ControllerHarness(decode_blocks=4).run_one(0, prompt=10, new=4).hand_off(1, prompt=10)
    for token in (20, 21):
        harness.now += SECOND - 9
        harness.stepped(token)
    assert harness.stage(1) == "handing off" and harness.ended() == {}


def test_a_deadline_that_passes_makes_room_even_at_an_event_that_tells_nothing():
    harness = ControllerHarness(itl_target_s=9.0, max_batch=2)  # with a target two requests may be on their way
    for request in range(3):
        harness.submit(request)
    harness.prefilled(11)
    harness.prefilled(11)
    assert harness.stage(2) == "queued"
    harness.now = harness.state.deadlines.next_ns - 1
    harness.landed(harness.part(0), transfer=99)
    assert harness.ended() == {0: "failed"} and harness.last(cmd.Prefill).chunks[0].request == 2


def test_a_streamed_deadline_starts_when_only_copies_are_left():
    harness = ControllerHarness("streamed", watchdog_s=2.0)
    harness.submit()
    harness.tell(ev.Tick(), after=SECOND)
    harness.prefilled(11)
    assert harness.state.deadlines.next_ns == harness.now + 2 * SECOND


def test_an_overdue_transfer_stays_quarantined_until_closed_and_breaks_the_engine_if_it_never_is():
    harness = ControllerHarness().hand_off()
    harness.tell(ev.Tick(), after=SECOND)
    assert harness.ended() == {0: "failed"} and harness.held() == (2, 2, 0) and not harness.controller.broken
    harness.tell(ev.Tick(), after=SECOND)
    assert harness.controller.broken == "a bulk copy of request 0 has not ended within 1 s"
    assert harness.held() == (2, 2, 0), "what a copy may still write stays held"


@pytest.mark.parametrize("what, cause", [("pass", "prefill 0"), ("step", "decode 0")])
def test_a_silent_worker_breaks_the_engine(what, cause):
    harness = ControllerHarness()
    harness.submit()
    if what == "step":
        harness.prefilled(11)
        harness.land_all()
    harness.tell(ev.Tick(), after=SECOND)
    assert harness.controller.broken == f"{cause} has not answered a {what} within 1 s"
    assert harness.ended() == {0: "failed"} and isinstance(harness.out[-1], cmd.Broken)


def test_a_worker_that_died_fails_everything_open_and_nothing_follows():
    harness = ControllerHarness().run_one(0)
    harness.submit(1)
    harness.submit(2)
    harness.tell(ev.WorkerDied(PREFILL, "out of memory"))
    assert harness.ended() == {0: "failed", 1: "failed", 2: "failed"}
    errors = {c.error for c in harness.log if isinstance(c, cmd.Ended)}
    assert errors == {"prefill 0 died: out of memory"} == {harness.last(cmd.Broken).cause}
    assert harness.submit(3) == [] and harness.tell(ev.Tick(), after=5 * SECOND) == []


# ---- failures and stray notices --------------------------------------------------------------------------------------


def test_a_failed_pass_fails_only_its_requests():
    harness = ControllerHarness(chunk_tokens=8)
    for request in (0, 1, 2):
        harness.submit(request, prompt=8)
    harness.prefilled(11)
    harness.tell(ev.PassFailed(PREFILL, harness.last(cmd.Prefill).pass_id, "boom"))
    assert harness.ended() == {1: "failed"}
    assert harness.last(cmd.Ended).error == "prefill of request 1 failed: boom"
    assert (harness.stage(0), harness.stage(2)) == ("handing off", "prefilling")


def test_a_failed_step_fails_only_its_rows():
    harness = ControllerHarness(steps=2).run_one(0)
    harness.hand_off(1)
    harness.tell(ev.StepFailed(DECODE, 0, "boom"))
    assert harness.ended() == {0: "failed"} and harness.stage(1) == "handing off"
    assert harness.last(cmd.Ended).error == "decode of request 0 failed: boom"
    harness.stepped(50)
    harness.land_all()
    assert harness.stage(1) == "running"


def test_a_step_that_fails_leaves_its_place_to_the_next_request():
    harness = ControllerHarness(max_batch=1).run_one(0).run_one(1)
    assert harness.stage(1) == "landed"
    harness.tell(ev.StepFailed(DECODE, 0, "boom"))
    assert harness.stage(1) == "running" and harness.last(cmd.Decode).groups == ((1,),)


def view(harness: ControllerHarness) -> tuple:
    state = harness.state
    return (
        {r.id: (r.stage, tuple(r.generated), r.prefilled, r.transfer, len(r.tables)) for r in state.records.values()},
        [pool.counts() for pool in state.pools()], sorted(state.transfers), state.deadlines.next_ns, state.backlog,
        state.padding.used_slots, [tuple(step.requests for step in worker.steps) for worker in state.decodes],
    )  # fmt: skip


UNKNOWN = [
    ev.Landed(999, (Part(0, 1, 0, 1),), 16, 10), ev.SourceRead(999), ev.TransferFailed(999, "fault"),
    ev.TransferClosed(999), ev.Prefilled(PREFILL, 999, (1,), 0, 1), ev.PassFailed(PREFILL, 999, "fault"),
    ev.Stepped(DECODE, 999, (1,), 0, 1, 1, 1), ev.StepFailed(DECODE, 999, "fault"),
]  # fmt: skip


@pytest.mark.parametrize("event", UNKNOWN, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("stage", OPEN)
def test_unknown_notices_change_nothing_and_are_counted(event, stage):
    harness, _ = at(stage)
    before = view(harness)
    assert harness.tell(event) == []
    assert (view(harness), harness.anomalies) == (before, 1)


def test_every_notice_twice_changes_nothing_and_is_counted():
    harness = ControllerHarness("staged")
    again = 0
    harness.submit(prompt=6, new=3)

    def twice(event):
        nonlocal again
        harness.tell(event)
        before = view(harness)
        assert harness.tell(event) == []
        again += 1
        assert (view(harness), harness.anomalies) == (before, again)

    twice(ev.Landed(harness.transfer, (harness.part(0),), 16, 10))
    twice(ev.SourceRead(harness.transfer))
    twice(ev.Prefilled(PREFILL, harness.last(cmd.Prefill).pass_id, (11,), 0, 1))
    twice(ev.Landed(harness.transfer, (harness.part(1),), 16, 10))
    assert harness.stage() == "running"
    twice(ev.Stepped(DECODE, 0, (12,), 0, 1, 7, 7))
    twice(ev.Stepped(DECODE, 1, (13,), 0, 1, 8, 8))
    assert harness.ended() == {0: "length"} and harness.state.counts["padding_mismatches"] == 0


def test_steps_out_of_order_and_slots_other_than_planned_are_counted():
    harness = ControllerHarness(steps=2).run_one()
    harness.tell(ev.Tick())
    harness.stepped(12, step=1)
    assert harness.anomalies == 1 and len(harness.state.decodes[0].steps) == 2
    harness = ControllerHarness().run_one()
    harness.tell(ev.Stepped(DECODE, 0, (12,), 0, 1, 7, 64))
    assert harness.state.counts["padding_mismatches"] == 1


# ---- retune ----------------------------------------------------------------------------------------------------------


def test_what_a_running_engine_cannot_change_is_named():
    harness = ControllerHarness()
    with pytest.raises(ConfigError, match="block_size can't change while the engine runs; those that can: link, "):
        harness.controller.check_live(harness.state.config.replace(block_size=8))


def test_shrinking_a_pool_drains_it_first():
    harness = ControllerHarness().run_one(0, prompt=14, new=8)
    retuned(harness, decode_blocks=6)
    pool = harness.state.decodes[0].pool
    assert (pool.held, pool.available, pool.total) == (4, 2, 8)
    harness.hand_off(1, prompt=10, new=2)
    assert harness.kinds() == ["Emit", "Send"], "three blocks would be free, but only two of them are left to the pool"
    retuned(harness, decode_blocks=8)
    assert harness.kinds() == ["Retuned", "Assign"]


def test_retune_reorders_the_queue_and_changes_the_batch():
    harness = ControllerHarness(prefill_blocks=4, decode_blocks=8, chunk_tokens=16)
    for request, prompt in ((0, 14), (1, 12), (2, 3)):
        harness.submit(request, prompt, new=2)
    retuned(harness, policy="shortest", max_batch=1, bins=(8, 16))
    harness.prefilled(11)
    assert [harness.stage(request) for request in range(3)] == ["handing off", "queued", "queued"]
    harness.land_all()
    assert harness.last(cmd.Prefill).chunks[0].request == 2
    assert harness.state.decodes[0].bins == (8, 16)


def test_new_bins_regroup_the_rows_that_run():
    harness = ControllerHarness()
    for request, prompt in ((0, 3), (1, 9)):
        harness.run_one(request, prompt, new=9)
    harness.stepped(12)
    assert harness.last(cmd.Decode).groups == ((0, 1),)
    retuned(harness, bins=(8,))
    harness.stepped(13, 13)
    assert harness.last(cmd.Decode).groups == ((0,), (1,))


def test_a_row_that_outgrows_its_bin_moves_to_the_next_and_takes_no_block_for_it():
    harness = ControllerHarness(bins=(5,))
    for request, prompt in ((0, 3), (1, 12)):
        harness.run_one(request, prompt, new=9)
    harness.stepped(12)
    groups = []
    for _ in range(3):
        groups.append(harness.last(cmd.Decode).groups)
        harness.stepped(12, 12)
    assert groups == [((0,), (1,)), ((1, 0),), ((1, 0),)], "attention reads 5, 6 and 7 tokens of request 0"
    assert harness.held()[1] == 2 + 4


# ---- edges by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt, blocks", [(3, 1), (4, 1), (5, 2)])
def test_a_prompt_shorter_than_equal_to_and_one_over_a_block(prompt, blocks):
    harness = ControllerHarness()
    harness.submit(prompt=prompt, new=2)
    assert harness.held()[0] == blocks
    harness.prefilled(11)
    assert len(harness.last(cmd.Assign).blocks) == harness.last(cmd.Send).due_blocks == blocks
    assert harness.held()[1] == -(-(prompt + 1) // 4), "and there is a place for the next token"
    harness.land_all()
    harness.stepped(12)
    assert harness.ended() == {0: "length"} and harness.held() == (0, 0, 0)


@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "colocated"])
def test_a_one_token_answer_sends_nothing(preset):
    harness = ControllerHarness(preset)
    harness.submit(new=1)
    assert not any(isinstance(command, cmd.Send) for command in harness.log)
    harness.prefilled(11)
    assert harness.kinds() == ["Emit", "Ended"] and harness.ended() == {0: "length"}
    assert sum(harness.held()) == 0


@pytest.mark.parametrize("preset", ["split", "streamed", "colocated"])
def test_eos_at_the_first_token(preset):
    harness = ControllerHarness(preset)
    harness.submit(eos=(77,))
    harness.prefilled(77)
    assert harness.ended() == {0: "eos"}
    if preset == "streamed":
        assert harness.kinds() == ["Emit", "Abort", "Ended"]
        harness.tell(ev.TransferClosed(harness.transfer))
    assert sum(harness.held()) == 0


def test_another_requests_eos_ends_no_request():
    harness = ControllerHarness()
    for request, eos in ((0, ()), (1, (77,))):
        harness.run_one(request, eos=eos)
    harness.stepped(77)
    assert harness.ended() == {}
    harness.stepped(12, 77)
    assert harness.ended() == {1: "eos"}


def test_a_request_that_fills_the_pool_exactly_is_served_and_one_more_token_is_refused():
    harness = ControllerHarness()
    assert harness.controller.refusal(make_job(prompt=20, new=12)) is None
    assert harness.controller.refusal(make_job(prompt=20, new=13)) == (
        "prompt of 20 tokens and 13 new ones need 9 blocks of 4, but prefill 0 has 8; "
        "shorten the request or raise prefill_blocks"
    )
    harness.run_one(prompt=20, new=12)
    while harness.state.records:
        harness.stepped(5)
    assert harness.ended() == {0: "length"} and harness.state.decodes[0].pool.peak == 8


def test_an_idle_controller_does_nothing():
    harness = ControllerHarness()
    assert harness.tell(ev.Tick(), after=10 * SECOND) == [] and harness.state.deadlines.next_ns is None


def test_a_target_keeps_prefill_from_running_ahead_of_the_batch():
    harness = ControllerHarness("dynamic", host_blocks=8, max_batch=1)
    harness.submit(0)
    harness.hand_off(1)
    assert (harness.stage(1), harness.state.records[1].gate) == ("queued", "batch slot")


def test_waiting_requests_with_nothing_under_way_break_in_words():
    """A gate that never opens (here: admission patched shut) is named at once, not after a watchdog."""
    harness = ControllerHarness()
    harness.controller.prefilling._admit = lambda turn, worker, record: (
        setattr(record, "gate", "a closed gate") or False
    )
    harness.submit(3)
    assert harness.kinds() == ["Ended", "Broken"]
    assert harness.controller.broken == "nothing is under way, but these wait: request 3 (queued) for a closed gate"
