"""The controller, event by event: each stage of a request's life, and what must not change it."""

import pytest
from hand import DECODE, LAYERS, PREFILL, Hand, make_job

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.errors import ConfigError
from disagg.plan.request import LEGAL_MOVES, Record, Stage

# ---- the life of a request -------------------------------------------------------------------------------------------


def test_a_split_request_step_by_step():
    hand = Hand("split")
    hand.submit(prompt=6, new=3)
    assert (hand.stage(), hand.kinds(), hand.held()) == ("prefilling", ["Prefill"], (2, 0, 0))
    chunk = hand.last(cmd.Prefill).chunks[0]
    assert (chunk.start, chunk.stop, chunk.final, chunk.transfer) == (0, 6, True, None)
    assert chunk.tokens == tuple(range(100, 106))
    hand.prefilled(11)
    assert (hand.stage(), hand.kinds()) == ("handing off", ["Emit", "Send", "Assign"])
    assert hand.last(cmd.Send).route == "bulk" and hand.last(cmd.Send).layers_ready
    hand.landed(hand.part(1))
    assert (hand.stage(), hand.out) == ("handing off", [])
    hand.landed(hand.part(0))
    assert (hand.stage(), hand.kinds(), hand.held()) == ("running", ["Decode"], (0, 2, 0))
    join = hand.last(cmd.Decode).joins[0]
    assert (join.token, join.context, join.token_index, len(join.blocks)) == (11, 6, 1, 2)
    hand.stepped(12)
    assert hand.kinds() == ["Emit", "Decode"]
    hand.stepped(13)
    assert hand.kinds() == ["Emit", "Ended"]
    assert hand.held() == (0, 0, 0), "blocks come back in the event of the last token"
    ended = hand.last(cmd.Ended)
    assert (ended.finish.value, ended.error) == ("length", None)
    assert [stage.value for _, stage in ended.stages] == [
        "queued", "prefilling", "handing off", "landed", "running", "ended"
    ]  # fmt: skip
    assert hand.state.next_deadline_ns is None and hand.anomalies == 0


def test_bulk_sends_after_prefill_and_streams_send_before_it():
    bulk, direct, staged = Hand("split"), Hand("streamed"), Hand("staged")
    for hand in (bulk, direct, staged):
        hand.submit()
    assert bulk.kinds() == ["Prefill"]
    assert direct.kinds() == staged.kinds() == ["Send", "Prefill", "Assign"]
    for hand in (direct, staged):
        assert not hand.last(cmd.Send).layers_ready
        assert hand.last(cmd.Prefill).chunks[0].transfer == hand.transfer
    assert [h.last(cmd.Send).route for h in (direct, staged)] == ["direct", "staged"]


def test_a_streamed_hand_off_that_beats_its_prefill_waits_for_token_one():
    hand = Hand("streamed")
    hand.submit()
    hand.land_all()
    assert (hand.stage(), hand.out) == ("prefilling", [])
    hand.prefilled(11)
    assert (hand.stage(), hand.kinds(), hand.held()) == ("running", ["Emit", "Decode"], (0, 2, 0))


def test_a_staged_source_goes_when_hop_one_is_through():
    hand = Hand("staged")
    hand.submit()
    hand.prefilled(11)
    assert hand.held() == (2, 2, 0)
    hand.tell(ev.SourceRead(hand.transfer))
    assert (hand.stage(), hand.held()) == ("handing off", (0, 2, 0))
    hand.land_all()
    assert hand.stage() == "running"


def test_a_source_read_before_the_end_of_prefill_stays_until_then():
    hand = Hand("staged")
    hand.submit()
    hand.tell(ev.SourceRead(hand.transfer))
    assert hand.held()[0] == 2
    hand.prefilled(11)
    assert hand.held()[0] == 0


def test_chunks_hand_off_whole_blocks_as_they_are_computed():
    hand = Hand("streamed", chunk_tokens=8)
    hand.submit(prompt=11)
    assert (hand.last(cmd.Send).blocks, hand.last(cmd.Send).due_blocks) == ((0, 1), 3)
    assert not hand.last(cmd.Prefill).chunks[0].final
    hand.prefilled()
    assert hand.kinds() == ["Send", "Prefill"]
    assert (hand.last(cmd.Send).first_block, hand.last(cmd.Send).blocks) == (2, (2,))
    hand.landed(ev.Part(0, LAYERS, 0, 2))
    hand.prefilled(11)
    hand.landed(hand.part(1, 2, 1))
    assert hand.stage() == "handing off", "a set of (layer, block), not a count"
    hand.landed(hand.part(0, 2, 1))
    assert hand.stage() == "running"


def test_decode_blocks_are_reserved_when_something_is_about_to_travel():
    hand = Hand("split", decode_blocks=4)
    hand.run_one(0, prompt=6, new=8)
    hand.submit(1, prompt=12, new=2)
    assert hand.held() == (3, 2, 0)
    hand.prefilled(1)
    assert hand.kinds() == ["Emit", "Send"], "no place yet: four blocks are needed, two are there"
    assert hand.state.records[1].gate == "decode 0 blocks"
    hand.cancel(0)
    assert hand.held() == (3, 2, 0), "the step in flight still writes them"
    hand.stepped(5)
    assert hand.kinds() == ["Emit", "Assign"] and hand.last(cmd.Emit).requests == ()
    assert hand.held() == (3, 4, 0)


def test_the_device_of_a_colocated_request_alternates_passes_and_steps():
    hand = Hand("colocated")
    hand.submit(0, prompt=6, new=5)
    assert hand.held() == (2, 0)
    hand.prefilled(11)
    assert (hand.stage(), hand.kinds()) == ("running", ["Emit", "Decode"])
    hand.submit(1, prompt=6, new=5)
    assert hand.out == [], "one device: the pass waits for the step"
    hand.stepped(12)
    assert hand.kinds() == ["Emit", "Prefill"]
    hand.prefilled(21)
    assert hand.kinds() == ["Emit", "Decode"]
    assert hand.last(cmd.Decode).groups == ((0, 1),)


def test_a_step_is_alone_while_no_prefill_worker_has_a_pass():
    hand = Hand("split", prefill_workers=2)
    hand.run_one(0, prompt=6, new=8)
    assert hand.last(cmd.Decode).alone
    hand.submit(1, prompt=6, new=8)
    hand.stepped(12)
    assert hand.kinds() == ["Emit", "Decode"] and not hand.last(cmd.Decode).alone, "one of two has a pass"
    hand.prefilled(21)
    hand.stepped(13)
    assert hand.last(cmd.Decode).alone


def test_a_full_baseline_names_the_gate():
    hand = Hand("baseline", chunk_tokens=64)
    hand.submit(0)
    hand.prefilled(11)
    hand.submit(1)
    hand.stepped(12)
    assert (hand.stage(1), hand.state.records[1].gate) == ("queued", "batch slot")


def test_two_colocated_take_turns_by_arrival():
    hand = Hand("two_colocated")
    for request in range(3):
        hand.submit(request)
    assert [record.decode_worker for record in hand.state.records.values()] == [0, 1, 0]


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


def spilling(**changes) -> Hand:
    """Request 0 needs a third block, and takes it from request 1, which is spilled."""
    hand = Hand("paged", **{"decode_blocks": 4, "host_blocks": 8, **changes})
    for request, prompt in ((0, 7), (1, 5)):
        hand.submit(request, prompt, new=8)
        hand.prefilled(request)
        hand.land_all()
    while "Preempted" not in hand.kinds():
        hand.stepped(*(50 for _ in hand.state.decodes[0].steps[0].requests))
    return hand


def fetching() -> Hand:
    """Request 1 on its way back: request 0 has ended."""
    hand = spilling()
    hand.land_all()
    hand.cancel(0)
    hand.stepped(50)
    return hand


def test_spill_and_fetch_step_by_step():
    hand = spilling()
    record = hand.state.records[1]
    choice = hand.last(cmd.Preempted).choice
    assert choice.arm.value == "spill" and choice.spill_ns < choice.recompute_ns
    assert (hand.stage(0), hand.stage(1), hand.held()) == ("landed", "spilling", (0, 4, 2))
    assert hand.state.records[0].gate == "decode 0 blocks"
    hand.land_all()
    assert (hand.stage(0), hand.stage(1), hand.held()) == ("running", "spilled", (0, 3, 2))
    hand.cancel(0)
    hand.stepped(50)
    assert (hand.stage(1), hand.held()) == ("fetching", (0, 2, 2))
    assert hand.last(cmd.Send).source == cmd.Worker("host", 0)
    hand.land_all()
    assert (hand.stage(1), hand.held()) == ("running", (0, 2, 0))
    join = hand.last(cmd.Decode).joins[0]
    assert (join.context, join.token_index) == (record.context, len(record.generated))
    counted = [hand.state.counts[name] for name in ("preemptions", "spills", "fetches", "recomputes")]
    assert counted == [1, 1, 1, 0]


def test_a_host_with_just_the_room_takes_a_spill():
    hand = spilling(host_blocks=2)
    assert hand.last(cmd.Preempted).choice.arm.value == "spill"
    assert (hand.stage(1), hand.held()) == ("spilling", (0, 4, 2))


def test_without_host_room_the_youngest_is_computed_again():
    hand = spilling(host_blocks=1)
    assert hand.last(cmd.Preempted).choice.spill_ns is None
    assert (hand.stage(0), hand.stage(1)) == ("running", "queued")
    hand.stepped(50)
    chunk = hand.last(cmd.Prefill).chunks[0]
    record = hand.state.records[1]
    assert chunk.tokens == record.job.prompt + tuple(record.generated)
    assert (chunk.token_index, chunk.final) == (len(record.generated), True)


@pytest.mark.parametrize("bring", [spilling, fetching])
def test_a_failing_spill_or_fetch_is_computed_again_once_its_copies_have_ended(bring):
    hand = bring()
    hand.tell(ev.TransferFailed(hand.transfer, "fault"))
    assert hand.stage(1) == bring.__name__ and isinstance(hand.out[0], cmd.Abort)
    hand.tell(ev.TransferClosed(hand.transfer))
    assert hand.stage(1) in ("queued", "prefilling") and hand.state.records[1].host_table is None
    assert (hand.state.counts["recomputes"], hand.ended().get(1), hand.held()[2]) == (1, None, 0)


# ---- what broke once -----------------------------------------------------------------------------------------------


def test_a_failed_hand_off_names_its_request_and_the_cause():
    hand = Hand()
    hand.submit(7)
    hand.prefilled(1)
    hand.tell(ev.TransferFailed(hand.transfer, "layer 1 on hop two: bad digest"))
    assert hand.last(cmd.Ended).error == "bulk transfer of request 7 failed: layer 1 on hop two: bad digest"


def test_a_second_source_read_is_counted():
    hand = Hand("staged")
    hand.submit()
    hand.tell(ev.SourceRead(hand.transfer))
    assert hand.anomalies == 0
    hand.tell(ev.SourceRead(hand.transfer))
    assert hand.anomalies == 1


def test_closed_without_an_abort_changes_nothing():
    hand = Hand()
    hand.submit()
    hand.prefilled(1)
    hand.tell(ev.TransferClosed(hand.transfer))
    assert (hand.anomalies, hand.stage(), hand.out) == (1, "handing off", [])


def test_two_failing_copies_of_one_spill_count_once():
    hand = spilling()
    assert hand.stage(1) == "spilling"
    hand.tell(ev.TransferFailed(hand.transfer, "first"))
    hand.tell(ev.TransferFailed(hand.transfer, "second, of a copy that was under way too"))
    assert hand.state.counts["paging_failures"] == 1
    assert sum(isinstance(command, cmd.Abort) for command in hand.log) == 1


def test_a_second_landing_teaches_the_costs_nothing():
    hand = spilling()
    hand.landed(hand.part(0))
    known = hand.state.costs.copy_ns_per_byte
    hand.tell(ev.Landed(hand.transfer, (hand.part(0),), 16, 10**6))
    assert (hand.anomalies, hand.state.costs.copy_ns_per_byte) == (1, known)


def test_blocks_freed_for_a_row_are_not_given_back_to_the_one_that_was_spilled_for_it():
    hand = spilling()
    assert (hand.stage(0), hand.stage(1)) == ("landed", "spilling")
    hand.land_all()
    assert (hand.stage(0), hand.stage(1)) == ("running", "spilled")
    assert hand.last(cmd.Decode).joins[0].blocks == tuple(hand.state.records[0].decode_table.blocks)


def retuned(hand: Hand, **changes) -> list:
    return hand.tell(ev.Retune(hand.state.config.replace(**changes)))


def test_what_no_longer_fits_a_shrunk_pool_is_refused_or_fails_in_words():
    hand = Hand()
    hand.submit(0, prompt=20, new=8)
    hand.submit(1, prompt=6, new=2)
    hand.prefilled(1, 1)
    retuned(hand, decode_blocks=6)
    assert hand.ended() == {0: "failed"}
    assert hand.last(cmd.Ended).error == (
        "request 0 no longer fits: prompt of 20 tokens and 8 new ones need 7 blocks of 4, but decode 0 has 6; "
        "shorten the request or raise decode_blocks"
    )
    assert "decode 0 has 6" in hand.controller.refusal(make_job(2, prompt=20, new=8))


# ---- cancel ----------------------------------------------------------------------------------------------------------


def at(stage: str) -> tuple[Hand, int]:
    """A hand whose request (the second value) has reached this stage."""
    if stage in ("spilling", "spilled", "fetching"):
        hand = spilling() if stage != "fetching" else fetching()
        if stage == "spilled":
            hand.land_all()
        return hand, 1
    if stage == "landed":
        return spilling(), 0
    hand = Hand("split", prefill_blocks=3)
    if stage == "queued":
        hand.submit(9)
    hand.submit(0)
    if stage in ("handing off", "running"):
        hand.prefilled(11)
    if stage == "running":
        hand.land_all()
    return hand, 0


OPEN = [stage.value for stage in Stage if stage is not Stage.ENDED]


@pytest.mark.parametrize("stage", OPEN)
def test_cancel_ends_at_once_and_frees_when_nothing_touches_the_blocks(stage):
    hand, request = at(stage)
    assert hand.stage(request) == stage
    record = hand.state.records[request]
    tables = record.tables
    hand.cancel(request)
    assert hand.ended()[request] == "cancelled"
    assert [command.request for command in hand.log if isinstance(command, cmd.Ended)].count(request) == 1
    busy = {"prefilling", "handing off", "running", "spilling", "fetching"}
    quarantined = sum(pool.counts()["quarantined"] for pool in hand.state.pools())
    assert (quarantined > 0) == (stage in busy)
    match stage:
        case "prefilling":
            hand.prefilled(11)
            assert not any(isinstance(command, cmd.Emit) for command in hand.out)
        case "running":
            hand.stepped(12)
            assert hand.last(cmd.Emit).requests == ()
        case "handing off" | "spilling" | "fetching":
            assert hand.last(cmd.Abort).transfer == hand.transfer
            hand.tell(ev.TransferClosed(hand.transfer))
    assert all(table.released and not table.pins for table in tables)
    assert sum(pool.counts()["quarantined"] for pool in hand.state.pools()) == 0
    assert hand.anomalies == 0
    hand.cancel(request)
    assert [command.request for command in hand.log if isinstance(command, cmd.Ended)].count(request) == 1


def test_cancel_of_a_streamed_prefill_waits_for_its_pass_and_its_copies():
    hand = Hand("streamed")
    hand.submit()
    hand.cancel()
    hand.prefilled(11)
    assert hand.held() == (2, 2, 0)
    hand.tell(ev.TransferClosed(hand.transfer))
    assert hand.held() == (0, 0, 0)


def test_a_late_landing_changes_no_outcome():
    hand = Hand()
    hand.submit()
    hand.prefilled(11)
    hand.cancel()
    assert hand.held() == (2, 2, 0) and hand.kinds() == ["Abort", "Ended"]
    hand.land_all()
    assert (hand.out, hand.held(), hand.anomalies) == ([], (2, 2, 0), 0)
    hand.tell(ev.TransferClosed(hand.transfer))
    assert (hand.held(), hand.ended()) == ((0, 0, 0), {0: "cancelled"})


# ---- one step ahead --------------------------------------------------------------------------------------------------


def test_one_step_ahead_drops_the_extra_token_and_returns_blocks_when_that_step_ends():
    hand = Hand(steps=2)
    hand.submit(prompt=6, new=8, eos=(77,))
    hand.prefilled(11)
    hand.land_all()
    assert hand.last(cmd.Decode).step == 1, "the second step starts before the first one's token is known"
    hand.tell(ev.Tick())
    assert hand.out == []
    hand.stepped(77)
    assert hand.kinds() == ["Emit", "Ended"] and hand.ended() == {0: "eos"}
    assert hand.state.decodes[0].pool.counts()["quarantined"] == 2
    hand.stepped(12)
    assert hand.last(cmd.Emit).requests == () and hand.held() == (0, 0, 0)


def test_one_step_ahead_knows_the_last_step_by_count():
    hand = Hand(steps=2)
    hand.submit(prompt=6, new=3)
    hand.prefilled(11)
    hand.land_all()
    hand.tell(ev.Tick())
    hand.stepped(12)
    assert hand.kinds() == ["Emit"], "both tokens it may still have are in flight already"
    hand.stepped(13)
    assert hand.ended() == {0: "length"} and hand.held() == (0, 0, 0)


def test_no_step_ahead_where_a_row_would_have_no_block():
    hand = Hand(steps=2, decode_blocks=5)
    for request in (0, 1):
        hand.submit(request, prompt=7, new=8)
        hand.prefilled(request)
        hand.land_all()
    hand.stepped(20)
    assert hand.last(cmd.Decode).joins[0].request == 1
    hand.stepped(21)
    assert len(hand.state.decodes[0].steps) == 1 and hand.stage(1) == "running"
    hand.stepped(22, 12)
    first = next(command for command in hand.out if isinstance(command, cmd.Decode))
    assert first.left == (1,), "it sits out until there is a block"
    assert (hand.stage(1), hand.state.records[1].gate) == ("landed", "decode 0 blocks")


def test_nobody_is_preempted_under_a_step_in_flight():
    """Two rows wait for the block of a third; one is served, the other must not take it from a row that computes."""
    hand = Hand("paged", steps=2, block_size=8, decode_blocks=6, host_blocks=8)
    for request, prompt in ((0, 15), (1, 15), (2, 2), (3, 1)):
        hand.submit(request, prompt, new=20)
    hand.prefilled(10)
    hand.prefilled(11, 12, 13)
    transfers = {command.request: command.transfer for command in hand.log if isinstance(command, cmd.Send)}
    for request in (3, 2, 1, 0):
        hand.land_all(transfers[request])
    hand.stepped(20)
    hand.stepped(21)
    hand.stepped(22, 22, 22, 22)
    assert [hand.stage(request) for request in range(4)] == ["landed", "landed", "running", "spilling"]
    hand.land_all()
    assert [hand.stage(request) for request in range(4)] == ["landed", "landed", "running", "spilled"]
    hand.stepped(23)
    assert [hand.stage(request) for request in range(4)] == ["running", "landed", "running", "spilled"]


# ---- deadlines -------------------------------------------------------------------------------------------------------

SECOND = 10**9


def test_a_deadline_never_moves():
    hand = Hand()
    hand.submit()
    hand.prefilled(11)
    due = hand.state.next_deadline_ns
    assert due == hand.now + SECOND
    hand.landed(hand.part(0))
    hand.submit(1)
    hand.tell(ev.Tick(), after=due - 1 - hand.now)
    assert hand.state.next_deadline_ns == due and hand.stage() == "handing off"
    hand.now = due - 1
    hand.tell(ev.Tick())
    assert hand.ended()[0] == "failed"
    error = next(c.error for c in hand.log if isinstance(c, cmd.Ended))
    assert error == "watchdog: request 0: its bulk transfer of 2 blocks has not landed within 1 s"


def test_a_deadline_that_passes_makes_room_even_at_an_event_that_tells_nothing():
    hand = Hand(itl_target_s=9.0)  # two requests may be on their way while no step has been seen
    for request in range(3):
        hand.submit(request)
    hand.prefilled(11)
    hand.prefilled(11)
    assert hand.stage(2) == "queued"
    hand.now = hand.state.next_deadline_ns - 1
    hand.landed(hand.part(0), transfer=99)
    assert hand.ended() == {0: "failed"} and hand.last(cmd.Prefill).chunks[0].request == 2


def test_a_request_that_no_longer_fits_fails_in_words():
    hand = Hand()
    hand.tell(ev.Retune(hand.state.config.replace(decode_blocks=2)))
    hand.submit(prompt=6, new=4)
    assert hand.ended() == {0: "failed"}
    words = "prompt of 6 tokens and 4 new ones need 3 blocks of 4, but decode 0 has 2; shorten"
    assert hand.last(cmd.Ended).error.startswith(words)


def test_a_streamed_deadline_starts_when_only_copies_are_left():
    hand = Hand("streamed", watchdog_s=2.0)
    hand.submit()
    hand.tell(ev.Tick(), after=SECOND)
    hand.prefilled(11)
    assert hand.state.next_deadline_ns == hand.now + 2 * SECOND


def test_an_overdue_transfer_stays_quarantined_until_closed_and_breaks_the_engine_if_it_never_is():
    hand = Hand()
    hand.submit()
    hand.prefilled(11)
    hand.tell(ev.Tick(), after=SECOND)
    assert hand.ended() == {0: "failed"} and hand.held() == (2, 2, 0) and not hand.controller.broken
    hand.tell(ev.Tick(), after=SECOND)
    assert hand.controller.broken == "a bulk copy of request 0 has not ended within 1 s"
    assert hand.held() == (2, 2, 0), "what a copy may still write is given to nobody"


@pytest.mark.parametrize("what, cause", [("pass", "prefill 0"), ("step", "decode 0")])
def test_a_silent_worker_breaks_the_engine(what, cause):
    hand = Hand()
    hand.submit()
    if what == "step":
        hand.prefilled(11)
        hand.land_all()
    hand.tell(ev.Tick(), after=SECOND)
    assert hand.controller.broken == f"{cause} has not answered a {what} within 1 s"
    assert hand.ended() == {0: "failed"} and isinstance(hand.out[-1], cmd.Broken)


def test_a_worker_that_died_fails_everything_open_and_nothing_follows():
    hand = Hand()
    hand.run_one(0)
    hand.submit(1)
    hand.submit(2)
    hand.tell(ev.WorkerDied(PREFILL, "out of memory"))
    assert hand.ended() == {0: "failed", 1: "failed", 2: "failed"}
    errors = {c.error for c in hand.log if isinstance(c, cmd.Ended)}
    assert errors == {"prefill 0 died: out of memory"} == {hand.last(cmd.Broken).cause}
    assert hand.submit(3) == [] and hand.tell(ev.Tick(), after=5 * SECOND) == []


# ---- failures and stray notices --------------------------------------------------------------------------------------


def test_a_failed_pass_fails_those_in_it_and_nobody_else():
    hand = Hand(chunk_tokens=8)
    for request in (0, 1, 2):
        hand.submit(request, prompt=8)
    hand.prefilled(11)
    hand.tell(ev.PassFailed(PREFILL, hand.last(cmd.Prefill).pass_id, "boom"))
    assert hand.ended() == {1: "failed"}
    assert hand.last(cmd.Ended).error == "prefill of request 1 failed: boom"
    assert (hand.stage(0), hand.stage(2)) == ("handing off", "prefilling")


def test_a_failed_step_fails_its_rows_and_nobody_else():
    hand = Hand(steps=2)
    hand.run_one(0)
    hand.submit(1)
    hand.prefilled(11)
    hand.tell(ev.StepFailed(DECODE, 0, "boom"))
    assert hand.ended() == {0: "failed"} and hand.stage(1) == "handing off"
    assert hand.last(cmd.Ended).error == "decode of request 0 failed: boom"
    hand.stepped(50)
    hand.land_all()
    assert hand.stage(1) == "running"


def view(hand: Hand) -> tuple:
    """What a stray notice must leave as it is."""
    state = hand.state
    return (
        {r.id: (r.stage, tuple(r.generated), r.prefilled, r.transfer, len(r.tables)) for r in state.records.values()},
        [pool.counts() for pool in state.pools()], sorted(state.transfers), state.next_deadline_ns, state.backlog,
        state.padding.used_slots, [tuple(step.requests for step in seat.steps) for seat in state.decodes],
    )  # fmt: skip


UNKNOWN = [
    ev.Landed(999, (ev.Part(0, 1, 0, 1),), 16, 10), ev.SourceRead(999), ev.TransferFailed(999, "fault"),
    ev.TransferClosed(999), ev.Prefilled(PREFILL, 999, (1,), 0, 1), ev.PassFailed(PREFILL, 999, "fault"),
    ev.Stepped(DECODE, 999, (1,), 0, 1, 1, 1), ev.StepFailed(DECODE, 999, "fault"),
]  # fmt: skip


@pytest.mark.parametrize("event", UNKNOWN, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("stage", OPEN)
def test_unknown_notices_change_nothing_and_are_counted(event, stage):
    hand, _ = at(stage)
    before = view(hand)
    assert hand.tell(event) == []
    assert (view(hand), hand.anomalies) == (before, 1)


def test_every_notice_twice_changes_nothing_and_is_counted():
    hand = Hand("staged")
    again = 0
    hand.submit(prompt=6, new=3)

    def twice(event):
        nonlocal again
        hand.tell(event)
        before = view(hand)
        assert hand.tell(event) == []
        again += 1
        assert (view(hand), hand.anomalies) == (before, again)

    twice(ev.Landed(hand.transfer, (hand.part(0),), 16, 10))
    twice(ev.SourceRead(hand.transfer))
    twice(ev.Prefilled(PREFILL, hand.last(cmd.Prefill).pass_id, (11,), 0, 1))
    twice(ev.Landed(hand.transfer, (hand.part(1),), 16, 10))
    assert hand.stage() == "running"
    twice(ev.Stepped(DECODE, 0, (12,), 0, 1, 7, 7))
    twice(ev.Stepped(DECODE, 1, (13,), 0, 1, 8, 8))
    assert hand.ended() == {0: "length"} and hand.state.counts["padding_mismatches"] == 0


def test_steps_out_of_order_are_counted():
    hand = Hand(steps=2)
    hand.run_one()
    hand.tell(ev.Tick())
    hand.stepped(12, step=1)
    assert hand.anomalies == 1 and len(hand.state.decodes[0].steps) == 2


def test_a_step_that_read_other_slots_than_planned_shows():
    hand = Hand()
    hand.run_one()
    hand.tell(ev.Stepped(DECODE, 0, (12,), 0, 1, 7, 64))
    assert hand.state.counts["padding_mismatches"] == 1


# ---- retune ----------------------------------------------------------------------------------------------------------


def test_what_a_running_engine_cannot_change_is_named():
    hand = Hand()
    with pytest.raises(ConfigError, match="block_size can't change while the engine runs; those that can: link, "):
        hand.controller.check_live(hand.state.config.replace(block_size=8))


def test_shrinking_a_pool_drains_it_first():
    hand = Hand()
    hand.run_one(0, prompt=14, new=8)
    retuned(hand, decode_blocks=6)
    pool = hand.state.decodes[0].pool
    assert (pool.held, pool.available, pool.total) == (4, 2, 8)
    hand.submit(1, prompt=10, new=2)
    hand.prefilled(11)
    assert hand.kinds() == ["Emit", "Send"], "three blocks would be free, but only two of them are left to the pool"
    retuned(hand, decode_blocks=8)
    assert hand.kinds() == ["Retuned", "Assign"]


def test_retune_reorders_the_queue_and_changes_the_batch():
    hand = Hand(prefill_blocks=4, decode_blocks=8, chunk_tokens=16)
    for request, prompt in ((0, 14), (1, 12), (2, 3)):
        hand.submit(request, prompt, new=2)
    retuned(hand, policy="shortest", max_batch=1, bins=(8, 16))
    hand.prefilled(11)
    assert [hand.stage(request) for request in range(3)] == ["handing off", "queued", "queued"]
    hand.land_all()
    assert hand.last(cmd.Prefill).chunks[0].request == 2
    assert hand.state.decodes[0].bins == (8, 16)


def test_new_bins_regroup_the_rows_that_run():
    hand = Hand()
    for request, prompt in ((0, 3), (1, 9)):
        hand.submit(request, prompt, new=9)
        hand.prefilled(11)
        hand.land_all()
    hand.stepped(12)
    assert hand.last(cmd.Decode).groups == ((0, 1),)
    retuned(hand, bins=(8,))
    hand.stepped(13, 13)
    assert hand.last(cmd.Decode).groups == ((0,), (1,))


def test_a_row_that_outgrows_its_bin_moves_to_the_next_and_takes_no_block_for_it():
    hand = Hand(bins=(5,))
    for request, prompt in ((0, 3), (1, 12)):
        hand.submit(request, prompt, new=9)
        hand.prefilled(11)
        hand.land_all()
    hand.stepped(12)
    groups = []
    for _ in range(3):
        groups.append(hand.last(cmd.Decode).groups)
        hand.stepped(12, 12)
    assert groups == [((0,), (1,)), ((1, 0),), ((1, 0),)], "attention reads 5, 6 and 7 tokens of request 0"
    assert hand.held()[1] == 2 + 4


# ---- edges by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt, blocks", [(3, 1), (4, 1), (5, 2)])
def test_a_prompt_shorter_than_equal_to_and_one_over_a_block(prompt, blocks):
    hand = Hand()
    hand.submit(prompt=prompt, new=2)
    assert hand.held()[0] == blocks
    hand.prefilled(11)
    assert len(hand.last(cmd.Assign).blocks) == hand.last(cmd.Send).due_blocks == blocks
    assert hand.held()[1] == -(-(prompt + 1) // 4), "and there is a place for the next token"
    hand.land_all()
    hand.stepped(12)
    assert hand.ended() == {0: "length"} and hand.held() == (0, 0, 0)


@pytest.mark.parametrize("preset", ["split", "streamed", "staged", "colocated"])
def test_a_one_token_answer_sends_nothing(preset):
    hand = Hand(preset)
    hand.submit(new=1)
    assert not any(isinstance(command, cmd.Send) for command in hand.log)
    hand.prefilled(11)
    assert hand.kinds() == ["Emit", "Ended"] and hand.ended() == {0: "length"}
    assert sum(hand.held()) == 0


@pytest.mark.parametrize("preset", ["split", "streamed", "colocated"])
def test_eos_at_the_first_token(preset):
    hand = Hand(preset)
    hand.submit(eos=(77,))
    hand.prefilled(77)
    assert hand.ended() == {0: "eos"}
    if preset == "streamed":
        assert hand.kinds() == ["Emit", "Abort", "Ended"]
        hand.tell(ev.TransferClosed(hand.transfer))
    assert sum(hand.held()) == 0


def test_another_request_eos_ends_nobody():
    hand = Hand()
    for request, eos in ((0, ()), (1, (77,))):
        hand.submit(request, eos=eos)
        hand.prefilled(11)
        hand.land_all()
    hand.stepped(77)
    assert hand.ended() == {}
    hand.stepped(12, 77)
    assert hand.ended() == {1: "eos"}


def test_a_request_that_fills_the_pool_exactly_is_served_and_one_more_token_is_refused():
    hand = Hand()
    assert hand.controller.refusal(make_job(prompt=20, new=12)) is None
    assert hand.controller.refusal(make_job(prompt=20, new=13)) == (
        "prompt of 20 tokens and 13 new ones need 9 blocks of 4, but prefill 0 has 8; "
        "shorten the request or raise prefill_blocks"
    )
    hand.submit(prompt=20, new=12)
    hand.prefilled(1)
    hand.land_all()
    while hand.state.records:
        hand.stepped(5)
    assert hand.ended() == {0: "length"} and hand.state.decodes[0].pool.peak == 8


def test_an_idle_controller_does_nothing():
    hand = Hand()
    assert hand.tell(ev.Tick(), after=10 * SECOND) == [] and hand.state.next_deadline_ns is None


def test_a_target_keeps_prefill_from_running_ahead_of_the_batch():
    hand = Hand("dynamic", host_blocks=8, max_batch=1)
    hand.submit(0)
    hand.submit(1)
    hand.prefilled(11)
    assert (hand.stage(1), hand.state.records[1].gate) == ("queued", "batch slot")


def test_nothing_under_way_and_somebody_waiting_breaks_in_words():
    """A gate that never opens (here: admission patched shut) is named at once, not after a watchdog."""
    hand = Hand()
    hand.controller.prefilling._admit = lambda turn, worker, record: setattr(record, "gate", "a closed gate") or False
    hand.submit(3)
    assert hand.kinds() == ["Ended", "Broken"]
    assert hand.controller.broken == "nothing is under way, but these wait: request 3 (queued) for a closed gate"
