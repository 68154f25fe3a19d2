"""Why does a request wait: the gate, its holders and the age in words; cycles are printed."""

import pytest
from hand import DECODE, PREFILL, Hand, make_job

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Table
from disagg.plan.waiting import Wait, cycle_of
from disagg.plan.why import why
from disagg.plan.wording import command_in_words, event_in_words


def test_what_is_worked_at_waits_for_nobody():
    hand = Hand()
    hand.submit()
    expected = "request 0 (prefilling) waits for nobody: its prefill is under way, 0.0 ms since it began"
    assert why(hand.book, 0) == expected


def test_who_waits_for_blocks_hears_who_holds_them():
    hand = Hand(prefill_blocks=3)
    hand.submit(0, prompt=8, new=2)
    hand.submit(1, prompt=8, new=2)
    hand.prefilled(1)
    text = why(hand.book, 1, hand.now + 3_000_000).splitlines()
    assert text[0] == ("request 1 (queued) waits for 3.0 ms for prefill 0 blocks; held by request 0 (2); 1 free")
    assert text[1].startswith("request 0 (handing off) waits for 3.0 ms for bulk transfer, holds 2 of prefill 0, ")
    assert text[1].endswith("; 0 of 4 (layer, block) pairs have landed")


def test_who_waits_for_a_place_hears_who_sits_there():
    hand = Hand(max_batch=1)
    hand.run_one(0)
    hand.run_one(1)
    hand.stepped(2)
    assert why(hand.book, 1).startswith("request 1 (landed) waits for 0.0 ms for batch slot, holds ")
    assert "; held by request 0 (1)" in why(hand.book, 1).splitlines()[0]


def test_behind_the_head_of_a_queue_one_waits_for_what_the_head_waits_for():
    hand = Hand(prefill_blocks=3)
    for request in range(3):
        hand.submit(request, prompt=8, new=2)
    hand.prefilled(1)
    assert "for prefill 0 blocks" in why(hand.book, 2).splitlines()[0]


def test_nobody_waits_after_the_end():
    hand = Hand()
    hand.submit()
    hand.cancel()
    assert why(hand.book, 0) == why(hand.book, 0, 5) == "request 0 is not open: it has ended, or never came"


def test_a_cycle_is_printed():
    """Each holds what the other wants, as with a reservation in two halves."""
    hand = Hand()
    book = hand.book
    for request in range(2):
        book.enter(make_job(request))
        book.prefills[0].queue.remove(book.records[request])
    first, second = book.records[0], book.records[1]
    first.prefill_table, first.gate = Table.reserve(book.prefills[0].pool, 8, 0), "decode 0 blocks"
    second.decode_table, second.gate = Table.reserve(book.decodes[0].pool, 8, 1), "prefill 0 blocks"
    text = why(book, 0, 2_000_000)
    assert text.splitlines() == [
        "request 0 (queued) waits for 2.0 ms for decode 0 blocks, holds 8 of prefill 0; held by request 1 (8); 0 free",
        "request 1 (queued) waits for 2.0 ms for prefill 0 blocks, holds 8 of decode 0; held by request 0 (8); 0 free",
        "cycle: request 0 → request 1 → request 0",
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
    hand = Hand()
    hand.submit(0, prompt=6, new=4)
    prefill = hand.last(cmd.Prefill)
    assert command_in_words(prefill) == f"prefill 0: run pass {prefill.pass_id} (request 0 tokens 0 to 6)"
    hand.prefilled(11)
    assert command_in_words(hand.last(cmd.Send)) == "prefill 0: 2 of 2 blocks of request 0 may travel at once (bulk)"
    hand.land_all()
    assert command_in_words(hand.last(cmd.Decode)) == "decode 0: run step 0 with 1 rows, 1 join"
    worked = (3_000_000, 4_500_000)
    ended = event_in_words(ev.Stepped(DECODE, 0, (12,), *worked, 7, 7))
    assert ended == "decode 0 ended step 0 after 1.5 ms: 1 rows, 7 slots read"
    ended = event_in_words(ev.Prefilled(PREFILL, 1, (11,), *worked))
    assert ended == "prefill 0 ended pass 1 after 1.5 ms with 1 first tokens"
