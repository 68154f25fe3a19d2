"""The controller, event by event."""

from hand import Hand

from disagg.plan import commands as cmd
from disagg.plan import events as ev


def test_a_failed_hand_off_names_its_request_and_the_cause():
    hand = Hand()
    hand.submit(7)
    hand.prefilled(1)
    hand.tell(ev.TransferFailed(hand.transfer, "layer 1 on hop two: bad digest"))
    assert hand.last(cmd.Ended).error == "bulk transfer of request 7 failed: layer 1 on hop two: bad digest"
