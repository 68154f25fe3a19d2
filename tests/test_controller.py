"""The controller, event by event."""

from hand import Hand, make_job

from disagg.plan import commands as cmd
from disagg.plan import events as ev


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


def spilling() -> Hand:
    """Request 0 needs a third block, and takes it from request 1, which is spilled."""
    hand = Hand("paged", decode_blocks=4, host_blocks=8, prefill_blocks=8)
    for request, prompt in ((0, 7), (1, 5)):
        hand.submit(request, prompt, new=8)
        hand.prefilled(request)
        hand.land_all()
    while "Preempted" not in hand.kinds():
        step = hand.book.decodes[0].steps[0]
        hand.stepped(*(50 for _ in step.requests))
    return hand


def test_two_failing_copies_of_one_spill_count_once():
    hand = spilling()
    assert hand.stage(1) == "spilling"
    hand.tell(ev.TransferFailed(hand.transfer, "first"))
    hand.tell(ev.TransferFailed(hand.transfer, "second, of a copy that was under way too"))
    assert hand.book.counts["paging_failures"] == 1
    assert sum(isinstance(command, cmd.Abort) for command in hand.log) == 1


def test_a_second_landing_teaches_the_costs_nothing():
    hand = spilling()
    hand.landed(hand.part(0))
    known = hand.book.costs.copy_ns_per_byte
    hand.tell(ev.Landed(hand.transfer, (hand.part(0),), 16, 10**6))
    assert (hand.anomalies, hand.book.costs.copy_ns_per_byte) == (1, known)


def test_blocks_freed_for_a_row_are_not_given_back_to_the_one_that_was_spilled_for_it():
    hand = spilling()
    assert (hand.stage(0), hand.stage(1)) == ("landed", "spilling")
    hand.land_all()
    assert (hand.stage(0), hand.stage(1)) == ("running", "spilled")
    assert hand.last(cmd.Decode).joins[0].blocks == tuple(hand.book.records[0].decode_table.blocks)


def retuned(hand: Hand, **changes) -> list:
    return hand.tell(ev.Retune(hand.book.config.replace(**changes)))


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
