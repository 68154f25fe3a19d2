"""Pieces, lanes and the ring; the emulated link below them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg.plan.blocks import Part
from disagg.plan.commands import Assign, Send, Worker
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.events import Landed, SourceRead, TransferClosed
from disagg.plan.link import CPU_DIAL_LIMIT, PRESETS, LaneName, Link, LinkClock, parse_link
from disagg.plan.transfer_scheduler import TransferScheduler

LAYERS = 3
DECODE, HOST = Worker("decode", 0), Worker("host", 0)
DIRECT, DOWN, UP = (LaneName(role, 0) for role in ("direct", "down", "up"))


def scheduler(route="staged", **changes) -> TransferScheduler:
    config = Config(route=route, block_size=4, **{"ring_slots": 2, "host_blocks": 8, **changes})
    return TransferScheduler(config, layers=LAYERS, token_bytes=2 * LAYERS)


def send(transfer=1, blocks=(5, 6), *, route="staged", first=0, due=None, priority=(0,), ready=True, source=None):
    source = source or Worker("prefill", 0)
    due = len(blocks) if due is None else due
    return Send(transfer, route, 40 + transfer, source, first, blocks, due, priority, ready)


def test_a_slot_of_the_ring_goes_only_to_what_has_a_way_out():
    """Else one request holds the ring and waits for blocks, and another holds the blocks and waits for the ring."""
    lanes = scheduler(ring_slots=1)
    lanes.send(send(1, (5,)), 0)
    assert lanes.start(DOWN) is None
    lanes.send(send(2, (6,)), 0)
    lanes.assign(Assign(2, DECODE, (0,)), 0)
    copy = lanes.start(DOWN)
    assert copy.transfer == 2
    lanes.finish(copy)
    assert lanes.start(UP).target_blocks == (0,)


def hand_off(lanes: TransferScheduler, layers=LAYERS):
    for layer in range(layers):
        lanes.hand_off(1, layer, 0)


def fly(lanes: TransferScheduler, name: LaneName):
    """One copy over a lane: the copy, and the notices it leads to."""
    copy = lanes.start(name)
    return copy, lanes.finish(copy)


def test_a_bulk_transfer_is_one_copy_and_one_landing():
    lanes = scheduler("bulk")
    lanes.send(send(route="bulk"), 0)
    assert lanes.start(DIRECT) is None, "it waits for blocks to land in"
    lanes.assign(Assign(1, DECODE, (8, 9)), 0)
    copy, notices = fly(lanes, DIRECT)
    assert (copy.blocks, copy.target, copy.target_blocks, copy.slot) == ((5, 6), DECODE, (8, 9), None)
    assert notices == [Landed(1, (Part(0, LAYERS, 0, 2),), LAYERS * 2 * 4 * 2, 0)]
    assert lanes.progress == {}


@given(st.integers(0, 3), st.integers(1, 4) | st.none(), st.integers(0, 60))
def test_the_layers_after_which_copies_start_are_known_ahead(blocks, layers_per_copy, least_bytes):
    config = Config(route="direct", block_size=4, layers_per_copy=layers_per_copy)
    lanes = TransferScheduler(config, layers=5, token_bytes=10)
    lanes.measured(config, least_bytes)
    lanes.send(send(1, tuple(range(blocks)), route="direct", ready=False), 0)
    told = lanes.copied_after(1)
    assert told == [layer for layer in range(5) if lanes.hand_off(1, layer, 0) is not None] and told[-1] == 4


def test_layers_travel_as_they_are_handed_off_in_groups():
    lanes = scheduler("direct", layers_per_copy=2)
    lanes.send(send(route="direct", ready=False), 0)
    lanes.assign(Assign(1, DECODE, (8, 9)), 0)
    assert lanes.hand_off(1, 0, 1) is None and lanes.start(DIRECT) is None
    assert lanes.hand_off(1, 1, 2) == Part(0, 2, 0, 2)
    assert lanes.hand_off(1, 2, 3) == Part(2, 3, 0, 2), "the last group may be smaller"
    assert fly(lanes, DIRECT)[1][0].parts == (Part(0, 2, 0, 2),)
    assert 1 in lanes.progress
    fly(lanes, DIRECT)
    assert lanes.progress == {}


def test_a_second_chunk_continues_the_table():
    lanes = scheduler("direct")
    for first, blocks in ((0, (5, 6)), (2, (7,))):
        lanes.send(send(blocks=blocks, route="direct", first=first, due=3, ready=False), 0)
        if not first:
            lanes.assign(Assign(1, DECODE, (0, 1, 2)), 0)
        hand_off(lanes)
    flights = [fly(lanes, DIRECT)[0] for _ in range(2 * LAYERS)]
    assert [flight.target_blocks for flight in flights] == [(0, 1)] * LAYERS + [(2,)] * LAYERS
    assert lanes.progress == {}


def test_two_hops_through_the_ring():
    lanes = scheduler(ring_slots=2)
    lanes.assign(Assign(1, DECODE, (8, 9)), 0)
    lanes.send(send(ready=False), 0)
    lanes.assign(Assign(1, DECODE, (8, 9)), 0)
    hand_off(lanes)
    down = [lanes.start(DOWN), lanes.start(DOWN)]
    assert lanes.start(DOWN) is None and lanes.waiting(DOWN) == 1, "the ring is full"
    assert lanes.start(UP) is None
    assert [lanes.finish(copy) for copy in down] == [[], []]
    up = lanes.start(UP)
    up.landing_ns = 9  # without a dial, who copies says when it was done
    notices = lanes.finish(up)
    assert (up.slot, up.target_blocks) == (down[0].slot, (8, 9))
    assert notices == [Landed(1, (Part(0, 1, 0, 2),), 16, 9)]
    third, notices = fly(lanes, DOWN)
    assert third.start_ns == 9, "from when the slot was free"
    assert notices == [SourceRead(1)], "every first hop has ended"
    fly(lanes, UP)
    fly(lanes, UP)
    assert lanes.progress == {} and lanes.ring.held == 0


def test_smaller_priority_goes_first_and_equals_in_order():
    lanes = scheduler("bulk")
    for transfer, priority in ((1, (5,)), (2, (3,)), (3, (3,))):
        lanes.send(send(transfer, route="bulk", priority=priority), 0)
        lanes.assign(Assign(transfer, DECODE, (0, 1)), 0)
    assert [lanes.start(DIRECT).transfer for _ in range(3)] == [2, 3, 1]


def test_spills_and_fetches_take_the_decode_devices_links():
    lanes = scheduler("staged", decode_workers=2)
    lanes.send(send(1, route="spill", source=Worker("decode", 1)), 0)
    lanes.assign(Assign(1, HOST, (0, 1)), 0)
    assert fly(lanes, LaneName("spill", 1))[0].target == HOST
    lanes.send(send(2, route="fetch", source=HOST), 0)
    lanes.assign(Assign(2, Worker("decode", 1), (0, 1)), 0)
    copy, notices = fly(lanes, LaneName("up", 1))
    assert copy.slot is None and isinstance(notices[0], Landed) and lanes.ring.peak == 0


def test_lanes_exist_where_something_may_travel():
    assert list(map(str, scheduler("staged", prefill_workers=2, decode_workers=2, host_blocks=0).lanes)) == [
        "down 0", "down 1", "up 0", "up 1"
    ]  # fmt: skip
    assert list(map(str, scheduler("bulk", host_blocks=0).lanes)) == ["direct 0"]
    assert list(map(str, scheduler("bulk", host_blocks=4).lanes)) == ["direct 0", "spill 0", "up 0"]
    assert list(map(str, scheduler("bulk", prefill_workers=0, host_blocks=0).lanes)) == []


def test_hop_two_and_fetches_take_the_second_link():
    links = {str(name): lane.clock.link.bandwidth for name, lane in scheduler(link=(1e7, 2e7)).lanes.items()}
    assert links == {"down 0": 1e7, "spill 0": 1e7, "up 0": 2e7, "park 0": math.inf}, "parking stays in the host"


def test_abort_before_anything_flies_closes_at_once():
    lanes = scheduler()
    lanes.send(send(), 0)
    assert lanes.abort(1, 0) == [TransferClosed(1)] and lanes.progress == {}
    assert lanes.abort(1, 0) == [TransferClosed(1)], "unknown or over: nothing runs, nor will"
    lanes.assign(Assign(1, DECODE, (0, 1)), 0)
    assert lanes.hand_off(1, 0, 0) is None and lanes.start(DOWN) is None


def test_abort_waits_for_the_last_copy_and_returns_its_slots():
    lanes = scheduler(ring_slots=3)
    lanes.send(send(ready=False), 0)
    lanes.assign(Assign(1, DECODE, (8, 9)), 0)
    hand_off(lanes)
    first, second = lanes.start(DOWN), lanes.start(DOWN)
    lanes.finish(first)
    up = lanes.start(UP)
    assert lanes.abort(1, 0) == [] and lanes.waiting(DOWN) == 0
    assert lanes.hand_off(1, 0, 0) is None
    assert lanes.finish(up) == []
    assert lanes.finish(second) == [TransferClosed(1)]
    assert lanes.ring.held == 0 and lanes.progress == {}


def test_abort_returns_slots_that_wait_for_hop_two_and_leaves_others_alone():
    lanes = scheduler(ring_slots=8)
    for transfer in (1, 2):
        lanes.send(send(transfer), 0)
        lanes.assign(Assign(transfer, DECODE, (0, 1)), 0)
        fly(lanes, DOWN)
    assert lanes.ring.held == 2
    assert lanes.abort(1, 0) == [TransferClosed(1)]
    assert lanes.ring.held == 1 and lanes.start(UP).transfer == 2


def test_retune_changes_links_and_granularity_from_the_next_copy_on():
    lanes = scheduler("direct")
    lanes.retune(Config(route="direct", layers_per_copy=3, link=(1e8, 2e8), block_size=4, host_blocks=8))
    assert lanes.lanes[DIRECT].clock.link.bandwidth == 1e8
    assert lanes.lanes[UP].clock.link.bandwidth == 2e8
    lanes.send(send(route="direct", ready=False), 0)
    assert [lanes.hand_off(1, layer, 0) is None for layer in range(LAYERS)] == [True, True, False]


def test_automatic_grouping_puts_layers_together_until_a_copy_is_worth_its_fixed_cost():
    automatic = Config(route="direct", layers_per_copy=None, block_size=4, host_blocks=8)
    lanes = scheduler("direct", layers_per_copy=None)
    assert lanes.layers_per_copy == 1
    one = lanes.layer_block_bytes
    for least, blocks, made in ((0, 2, [0, 1, 2]), (3 * one, 2, [1, 2]), (99 * one, 2, [2]), (2 * one, 2, [0, 1, 2])):
        lanes.measured(automatic, least)
        transfer = least + blocks
        lanes.send(send(transfer, blocks=(5, 6)[:blocks], route="direct", ready=False), 0)
        assert [n for n in range(LAYERS) if lanes.hand_off(transfer, n, 0) is not None] == made
    lanes.retune(Config(route="direct", layers_per_copy=1, block_size=4, host_blocks=8))
    assert lanes.least_bytes == 0, "a number that was asked for is kept"
    lanes.retune(automatic)
    assert lanes.least_bytes == 2 * one


@given(st.integers(1, 4), st.lists(st.booleans(), max_size=12))
def test_nothing_enters_a_ring_slot_before_it_was_free_however_late_its_lane_looks(slots, late):
    """Deadlines of two hops are a function of the wires and the ring, not of when a thread wakes up."""
    links = Link(1e8, fixed_s=1e-5), Link(1e8, fixed_s=4e-5)
    config = Config(route="staged", block_size=4, ring_slots=slots, layers_per_copy=1, link=links)
    lanes = TransferScheduler(config, layers=12, token_bytes=24)
    lanes.send(send(1, (5,), ready=False), 0)
    lanes.assign(Assign(1, DECODE, (0,)), 0)
    hand_off(lanes, 12)
    down, up, turns = [], [], iter(late)
    for _ in range(200):
        while not (next(turns, False) and up) and (copy := lanes.start(DOWN)) is not None:
            down.append(copy)
            lanes.finish(copy)
        if (copy := lanes.start(UP)) is not None:
            up.append(copy)
            lanes.finish(copy)
    assert len(up) == 12
    for index in range(slots, 12):
        assert down[index].start_ns == max(up[index - slots].landing_ns, down[index - 1].busy_until_ns)


def test_the_rule_of_the_dial():
    wire = LinkClock(Link(1e9, latency_s=5e-9, fixed_s=10e-9))
    assert wire.post(100, now_ns=1000) == (1000, 1110, 1115)
    assert wire.post(100, now_ns=1050) == (1110, 1220, 1225), "one after the other; latency is paid once"
    assert wire.post(0, now_ns=5000) == (5000, 5010, 5015)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1000)), min_size=1))
def test_copies_never_overlap_and_never_start_early(posts):
    wire, now, busy = LinkClock(Link(1e8, 1e-8, 2e-8)), 0, 0
    for wait, nbytes in posts:
        now += wait
        start, end, landing = wire.post(nbytes, now)
        assert start == max(now, busy) and end - start == 20 + 10 * nbytes and landing == end + 10
        busy = end


def test_an_undialled_wire_takes_no_time_of_its_own():
    assert not Link().dialled and Link().occupancy_ns(10**9) == 0
    assert all(link.dialled for link in (Link(1e6), Link(latency_s=1e-6), Link(fixed_s=1e-6)))


def test_a_ratio_waits_for_the_machine_s_compute():
    link = Link.ratio(0.62, latency_s=1e-6)
    assert (link.compute_ratio, link.bandwidth, link.latency_s) == (0.62, math.inf, 1e-6)
    assert parse_link(link) is link


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"bandwidth": 0}, "link bandwidth must be bytes a second, 1 or more; got 0"),
        ({"bandwidth": math.nan}, "link bandwidth must be bytes a second, 1 or more; got nan"),
        ({"bandwidth": "fast"}, "link bandwidth must be bytes a second, 1 or more; got 'fast'"),
        ({"latency_s": -1}, "link latency_s must be seconds, from 0 to 1e+09; got -1"),
        ({"latency_s": math.nan}, "link latency_s must be seconds, from 0 to 1e+09; got nan"),
        ({"fixed_s": math.inf}, "link fixed_s must be seconds, from 0 to 1e+09; got inf"),
        ({"compute_ratio": 0}, "Link.ratio takes c/x above 0 (compute of a layer over its transfer); got 0"),
        ({"compute_ratio": math.nan}, "Link.ratio takes c/x above 0 (compute of a layer over its transfer); got nan"),
        ("pcie", "link 'pcie' is unknown; known: nvlink5, nvlink4, "),
        (True, "link must be a Link, a preset's name or bytes a second; got True"),
        ([1], "link must be a Link, a preset's name or bytes a second; got [1]"),
        (-5, "link bandwidth must be bytes a second, 1 or more; got -5.0"),
        ("nvlink", "link of 450 GB/s is faster than the emulation holds on a CPU (0.5 GB/s); take Link.ratio(c/x)"),
    ],
)
def test_a_link_refuses_in_words(fields, words):
    with pytest.raises(ConfigError) as caught:
        Link(**fields) if isinstance(fields, dict) else parse_link(fields)
    assert str(caught.value).startswith(words)


def test_parse():
    assert parse_link(None) == Link()
    assert parse_link(1000) == Link(1000.0)
    assert parse_link("1gbe") == Link(PRESETS["1gbe"])
    assert parse_link("nvlink", "cuda:0") == Link(PRESETS["nvlink"])
    assert parse_link(CPU_DIAL_LIMIT) == Link(CPU_DIAL_LIMIT)


def test_a_pass_shares_the_ring_only_while_no_other_sender_waits_for_it():
    lanes = scheduler(prefill_workers=2, ring_slots=2)
    for number, index in ((1, 0), (2, 0), (3, 1), (4, 0)):
        source = Worker("prefill", index)
        lanes.send(send(number, (number,), source=source, ready=False), 0)
        lanes.assign(Assign(number, DECODE, (number,)), 0)
    assert lanes.take_pass([1], DECODE, [DOWN, UP], LAYERS) and lanes.take_pass([2], DECODE, [DOWN, UP], LAYERS)
    other = LaneName("down", 1)
    for layer in range(LAYERS):
        lanes.hand_off(3, layer, 0)
    assert lanes.waiting(other) and lanes.start(other) is None, "passes have the ring"
    assert not lanes.take_pass([4], DECODE, [DOWN, UP], LAYERS), "it would keep the ring from the other sender"
    lanes.end_pass([DOWN, UP])
    lanes.end_pass([DOWN, UP])
    assert lanes.start(other).transfer == 3
