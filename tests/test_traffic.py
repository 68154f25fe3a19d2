"""Pieces, lanes and the ring."""

from disagg.plan.commands import Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.traffic import Traffic

LAYERS = 3
DECODE, HOST = Worker("decode", 0), Worker("host", 0)


def traffic(route="staged", **changes) -> Traffic:
    config = Config(route=route, block_size=4, **{"ring_slots": 2, "host_blocks": 8, **changes})
    return Traffic(config, layers=LAYERS, token_bytes=2 * LAYERS)


def send(transfer=1, blocks=(5, 6), *, route="staged", first=0, due=None, priority=(0,), ready=True, source=None):
    source = source or Worker("prefill", 0)
    due = len(blocks) if due is None else due
    return Send(transfer, route, 40 + transfer, source, first, blocks, due, priority, ready)


def test_a_slot_of_the_ring_goes_only_to_what_has_a_way_out():
    """Else one request holds the ring and waits for blocks, and another holds the blocks and waits for the ring."""
    lanes = traffic(ring_slots=1)
    lanes.send(send(1, (5,)), 0)
    assert lanes.start("down 0") is None
    lanes.send(send(2, (6,)), 0)
    lanes.assign(Assign(2, DECODE, (0,)), 0)
    flight = lanes.start("down 0")
    assert flight.piece.transfer == 2
    lanes.finish(flight)
    assert lanes.start("up 0").target_blocks == (0,)
