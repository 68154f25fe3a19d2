"""The hand-off of a captured pass, by fakes that do everything at once: bytes, lanes, ring, ends. Races need a GPU."""

import ctypes
import time
from types import SimpleNamespace

import fake_cuda as fake_cuda_module
import fake_triton
import numpy as np
import pytest
import torch
from engine_tools import LIMIT_S
from fake_cuda import fake_cuda
from fake_driver import Code, FakeDriver
from test_transfers import BLOCK, DECODE, HOST, PREFILL, SHAPE, SIZES, Bench, flip_a_bit

import disagg.run.attention
import disagg.run.gpu
from disagg.plan.commands import Abort, Assign, Send, Worker
from disagg.plan.errors import EngineError
from disagg.plan.events import Landed, TransferClosed, TransferFailed
from disagg.plan.link import Link
from disagg.run.clock import now_ns
from disagg.run.gpu import captured_hand_off, hand_off_links, hand_off_streams, hand_off_turn, stream_memory
from disagg.run.gpu.captured_hand_off import TURNS, CapturedHandOff, part
from disagg.run.gpu.hand_off_links import HandOffLinks
from disagg.run.gpu.hand_off_streams import DEPTH, Steps
from disagg.run.transfers import Departing


@pytest.fixture
def gpu(monkeypatch):
    """What is put on a stream is done at once."""
    fake_cuda(monkeypatch, SIZES[HOST])
    fake_triton.install(monkeypatch, disagg.run.gpu, "device_kernels")
    monkeypatch.setattr(captured_hand_off, "reason_against", lambda device: None)
    monkeypatch.setattr(captured_hand_off, "timer_of", lambda device: SimpleNamespace(ns=lambda stamp: stamp))
    monkeypatch.setattr(hand_off_streams, "wait_for", wait)
    for module in (hand_off_streams, hand_off_links):
        monkeypatch.setattr(module, "tell", tell)
        monkeypatch.setattr(module, "RowCopy", Rows)


def wait(flag, stream):
    """All is done at once, so what a step waits for has happened."""
    assert ctypes.c_int64.from_address(flag).value > 0, "waits for what is put on a stream after it"


def tell(flag, stream):
    ctypes.c_int64.from_address(flag).value = 1


class Rows:
    """A RowCopy of the host."""

    def __init__(self, target_pitch, source_pitch, width):
        self.pitches, self.width = (target_pitch, source_pitch), width

    def launch(self, target, source, rows, stream):
        for row in range(rows):
            ends = (end + row * pitch for end, pitch in zip((target, source), self.pitches, strict=True))
            ctypes.memmove(*ends, self.width)


class Packed(Rows):
    """Rows that follow each other at both ends."""

    def __init__(self, target_pitch, source_pitch, width):
        assert target_pitch == source_pitch == width
        super().__init__(target_pitch, source_pitch, width)


def scatter(monkeypatch):
    """From here on no blocks lie in few enough runs for a copy engine."""
    monkeypatch.setattr(hand_off_turn, "MOST_RUNS", 0)


class Passes(Bench):
    """A bench whose passes are captured."""

    def __init__(self, route: str, **changes):
        super().__init__(route, prefill_blocks=11, **changes)
        self.captured = CapturedHandOff.of(self.transfers, self.transfers.config, PREFILL)
        self.stored, self.seen = (torch.full((1 + TURNS, SHAPE.layers), now_ns()) for _ in range(2))
        self.captured.prepare(self.stored, self.seen)

    def open(self, number, blocks, onto, target=DECODE, first=0, due=None):
        self.post(number, self.transfers.config.route, PREFILL, blocks, target, onto, ready=False, first=first, due=due)

    def run(self, *chunks, answered=True) -> bool:
        """A pass over chunks (transfer, first block, blocks, tokens); whether it hands them off."""
        slots, departing, at, at_ns = [], [], 0, now_ns()
        for number, first, blocks, tokens in chunks:
            slots += [block * BLOCK + place for block in blocks for place in range(BLOCK)][:tokens]
            departing.append(Departing(number, first, slice(at, at + tokens)))
            at += tokens
        turn = self.captured.free_turn()
        for times in (self.stored, self.seen):  # as the pass does
            times[0 if turn is None else 1 + turn].fill_(at_ns)
        if turn is None or not self.captured.launch(turn, departing, np.array(slots)):
            return False
        if answered:
            self.captured.turns[turn].answered.set()
        return True


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("route, ring", [("direct", 8), ("staged", 1), ("staged", 3)])
def test_a_pass_moves_its_tokens_and_touches_no_other(gpu, monkeypatch, route, ring, together, scattered, verify):
    if scattered:
        scatter(monkeypatch)
    with Passes(route, ring_slots=ring, layers_per_copy=together, verify_kv=verify) as bench:
        bench.open(1, [4, 7], [9, 2])
        bench.open(2, [0], [12])
        assert bench.run((1, 0, [4, 7], 2 * BLOCK), (2, 0, [0], BLOCK))
        notices = bench.landed(1) + bench.landed(2, 0)
        scheduler = bench.transfers.scheduler
        assert [len(n.parts) for n in notices] == [-(-SHAPE.layers // together)] * len(notices), "each lands once"
        bench.captured.lanes[0].wake()
    bench.check(PREFILL, [4, 7, 0], DECODE, [9, 2, 12])
    assert scheduler.progress == {} and scheduler.ring.held == 0
    assert not any(lane.passes or lane.running or lane.ready for lane in scheduler.lanes.values())
    hops = 1 if route == "direct" else 2
    assert len(bench.spans) == 2 * hops * -(-SHAPE.layers // together)
    for name in {span.place for span in bench.spans}:
        times = sorted((span.start_ns, span.start_ns + span.occupied_ns) for span in bench.spans if span.place == name)
        assert all(a[1] <= b[0] for a, b in zip(times, times[1:], strict=False)), "a link carries one at a time"


@pytest.mark.parametrize("scattered", [False, True])
def test_a_prompt_in_two_passes_arrives_whole(gpu, monkeypatch, scattered):
    if scattered:
        scatter(monkeypatch)
    with Passes("staged") as bench:
        bench.open(1, [1, 2], [3, 4], due=3)
        assert bench.run((1, 0, [1, 2], 2 * BLOCK))
        bench.transfers.obey(Send(1, "staged", 41, PREFILL, 2, (5,), 3, (0,), False))
        bench.transfers.obey(Assign(1, DECODE, (3, 4, 6)))
        assert bench.run((1, 2, [5], BLOCK - 1))
        bench.landed(1), bench.landed(1)
    assert torch.equal(bench.caches[DECODE].data[:, :, [3, 4]], bench.originals[PREFILL][:, :, [1, 2]])
    assert torch.equal(bench.caches[DECODE].data[:, :, 6, :-1], bench.originals[PREFILL][:, :, 5, :-1])
    assert torch.equal(bench.caches[DECODE].data[:, :, 6, -1], bench.originals[DECODE][:, :, 6, -1]), (
        "beyond its tokens"
    )
    assert bench.transfers.scheduler.progress == {}


def test_a_pass_takes_nothing_that_others_use_or_that_has_no_target(gpu):
    with Passes("staged") as bench:
        bench.open(1, [1], None)
        assert not bench.run((1, 0, [1], BLOCK)), "no block to land in"
        bench.transfers.obey(Assign(1, HOST, (0,)))
        assert not bench.run((1, 0, [1], BLOCK)), "it is parked in host memory"
        lane = bench.transfers.scheduler.lanes[bench.captured.names[0]]
        bench.open(2, [2], [5])
        lane.running = 1
        assert not bench.run((2, 0, [2], BLOCK)), "the link carries a copy"
        lane.running = 0
        bench.transfers.scheduler.ring.reserve(1, 9)
        assert not bench.run((2, 0, [2], BLOCK)), "a slot of the ring is held"
        assert not any(lane.passes for lane in bench.transfers.scheduler.lanes.values())


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_while_a_pass_has_the_lanes_no_other_copy_starts_and_tokens_go_first(gpu, route):
    with Passes(route) as bench:
        bench.open(1, [1], [5])
        bench.open(2, [2], [6])
        bench.open(3, [3], [7])
        assert bench.run((1, 0, [1], BLOCK), answered=False) and bench.run((2, 0, [2], BLOCK), answered=False)
        assert bench.captured.free_turn() is None, "both turns are out"
        bench.hand_off_all(3, [3])  # after its pass
        assert bench.notices.empty()
        assert bench.transfers.scheduler.waiting(bench.captured.names[0]) == SHAPE.layers, "a copy has started"
        for turn in bench.captured.turns:
            turn.answered.set()
        for number in (1, 2, 3):
            bench.landed(number)
    bench.check(PREFILL, [1, 2, 3], DECODE, [5, 6, 7])


def test_an_abort_waits_for_the_last_copy_of_the_pass(gpu):
    with Passes("direct") as bench:
        bench.open(1, [1], [5])
        assert bench.run((1, 0, [1], BLOCK), answered=False)
        bench.transfers.obey(Abort(1))
        assert bench.notices.empty(), "closed while its copies ran"
        bench.captured.turns[0].answered.set()
        assert bench.notices.get(timeout=LIMIT_S) == TransferClosed(1)
        assert bench.notices.empty() and bench.transfers.scheduler.progress == {}


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("route", ["direct", "staged"])
@pytest.mark.parametrize("where, row", [(DECODE, 2), (PREFILL, 0), (PREFILL, 1)], ids=["target", "before", "after"])
def test_a_flipped_bit_fails_its_own_transfer(gpu, monkeypatch, route, scattered, where, row):
    """At the target before its checksum, or at the source between its copy and one of its checksums."""
    whole = Steps._sum

    def flip(self, turn, travel, end, at, layers):
        going = travel.onto[0] >= 0 and at == row and 3 in layers
        if going and row:
            flip_a_bit(bench.caches[where].data[3, 1, 9 if where == DECODE else 4, 2])
        whole(self, turn, travel, end, at, layers)
        if going and not row:
            flip_a_bit(bench.caches[where].data[3, 1, 4, 2])

    monkeypatch.setattr(Steps, "_sum", flip)
    if scattered:
        scatter(monkeypatch)
    with Passes(route, verify_kv=True) as bench:
        bench.open(1, [4], [9])
        bench.open(2, [0], [12])
        assert bench.run((1, 0, [4], BLOCK), (2, 0, [0], BLOCK))
        found = [bench.notices.get(timeout=LIMIT_S) for _ in range(2)]
        failed, landed = sorted(found, key=lambda notice: isinstance(notice, Landed))
    assert isinstance(failed, TransferFailed) and failed.transfer == 1 and "layer 3" in failed.error
    assert landed.transfer == 2


@pytest.mark.parametrize("route", ["direct", "staged"])
@pytest.mark.parametrize("link", [Link(latency_s=1e-3), Link(1e8), Link(fixed_s=1e-4)], ids=str)
def test_transfers_of_a_pass_share_a_dialled_link_one_after_the_other(gpu, route, link):
    with Passes(route, link=link) as bench:
        bench.open(1, [4, 7], [9, 2])
        bench.open(2, [0], [12])
        assert bench.run((1, 0, [4, 7], 2 * BLOCK), (2, 0, [0], BLOCK))
        bench.landed(1), bench.landed(2, 0)
    bench.check(PREFILL, [4, 7, 0], DECODE, [9, 2, 12])
    ends = {(span.place, span.index, span.transfer): span.start_ns + span.occupied_ns for span in bench.spans}
    for span in bench.spans:
        last = span.place == str(bench.captured.names[-1])
        assert span.end_ns - span.start_ns - span.occupied_ns == last * round(1e9 * link.latency_s)
        assert span.transfer == 1 or span.start_ns == ends[span.place, span.index, 1]


@pytest.mark.parametrize("ring", [1, 2, 8])
@pytest.mark.parametrize("links", [(20, 20), (20, 30), (30, 20), (20, None), (None, 20)], ids=str)
def test_a_dialled_link_is_taken_as_soon_as_the_layer_slot_and_link_allow(gpu, monkeypatch, links, ring):
    """Whatever the kernel of a dial waits for: the rule of plan/link, on two links and the ring between them."""
    monkeypatch.setattr(fake_cuda_module.FakeDial, "now_ns", lambda dial: 0)  # all was posted long ago
    dials = tuple(milliseconds and Link(fixed_s=milliseconds / 1e3) for milliseconds in links)
    with Passes("staged", link=dials, ring_slots=ring) as bench:
        for number, (block, onto) in enumerate([(4, 9), (7, 2)], start=1):
            bench.open(number, [block], [onto])
            assert bench.run((number, 0, [block], BLOCK))  # while the pass before is on its way
        bench.landed(1), bench.landed(2)
    bench.check(PREFILL, [4, 7], DECODE, [9, 2])
    spans = sorted(bench.spans, key=lambda span: (span.transfer, span.index))
    down, up = ([span for span in spans if span.place == str(name)] for name in bench.captured.names)
    assert len(down) == len(up) == 2 * SHAPE.layers
    for own, milliseconds in ((down, links[0]), (up, links[1])):
        if milliseconds is not None:
            assert min(span.occupied_ns for span in own) >= 1e6 * milliseconds
    if None in links:
        return
    for number, (first, second) in enumerate(zip(down, up, strict=True)):
        before, slot = down[number - 1 : number], number % SHAPE.layers - ring
        left = up[number - ring : number - ring + 1] if slot >= 0 else up[number - 1 : number]
        earliest = [first.ready_ns] + [span.end_ns for span in before]
        earliest += [span.end_ns for span in left] if slot >= 0 or number % SHAPE.layers == 0 else []
        assert first.start_ns == max(earliest)
        assert second.start_ns == max([first.end_ns] + [span.end_ns for span in up[number - 1 : number]])


@pytest.mark.parametrize("scattered", [False, True])
def test_a_dialled_copy_is_carried_again_while_the_dial_holds_it_and_a_kernels_is_not(gpu, monkeypatch, scattered):
    """A copy's own time, that of another one, and SPARE_NS are left to the kernel that waits."""
    carried = []
    link = Link(fixed_s=1e-3)
    with Passes("direct" if scattered else "staged", link=link) as bench:
        bench.open(1, [4], [9])
        links = bench.captured.steps._links
        copy_ns = 100_000 / hand_off_links.SLOWER
        links._byte_ns = [copy_ns / (BLOCK * SHAPE.layer_token_bytes)] * len(links._byte_ns)
        launch = Rows.launch
        monkeypatch.setattr(Rows, "launch", lambda *args: carried.append(args[-1]) or launch(*args))
        assert bench.run((1, 0, [4], BLOCK))
        bench.landed(1)
    bench.check(PREFILL, [4], DECODE, [9])
    copiers = [lane.copier for lane in bench.captured.lanes]
    once = [carried.count(copier.streams[0]) for copier in copiers]
    again = [carried.count(copier.prepare_dial().beside) for copier in copiers]
    assert once == [0 if scattered else SHAPE.layers] * len(copiers) and again == [7 * count for count in once]


def test_the_kernel_of_a_dial_counts_from_the_latest_of_its_times(gpu):
    kernel = disagg.run.gpu.device_kernels.occupy[(1,)]
    now, millisecond = now_ns(), 10**6
    for latest in range(4):
        state, ready, freed, times = torch.tensor([now, 0]), *torch.full((2, 1), now), torch.zeros(2, dtype=torch.long)
        posted = torch.tensor([now])
        (state, posted, ready, freed)[latest][0] += millisecond
        posted = int(posted)
        kernel(state, posted, ready, freed, times, 2 * millisecond)
        taken, left = times.tolist()
        assert taken == now + millisecond and left >= taken + 2 * millisecond and state.tolist() == [left, 0]
    state[1] = 1  # the engine closes
    kernel(state, posted, ready, freed, times, 10**18)
    assert times[1] < now + 10**12


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_a_pass_whose_end_fails_fails_its_copies_and_gives_the_lanes_back(gpu, monkeypatch, route):
    with Passes(route) as bench:
        bench.open(1, [1], [5])
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(captured_hand_off, "timer_of", lambda device: 1 / 0)
            assert bench.run((1, 0, [1], BLOCK))
            failed = bench.notices.get(timeout=LIMIT_S)
        assert isinstance(failed, TransferFailed) and "division by zero" in failed.error
        scheduler = bench.transfers.scheduler
        assert scheduler.ring.held == 0 and not any(lane.passes or lane.running for lane in scheduler.lanes.values())


class Behind:
    """A device's clock that is 0.1 s late."""

    def anchor(self):
        return SimpleNamespace(ns=lambda event: event.at_ns - 100_000_000)


def test_hops_on_two_clocks_follow_each_other(gpu, monkeypatch):
    told = []
    with Passes("staged") as bench:
        bench.transfers.scheduler.on_ring = lambda at_ns, held: told.append(held)
        late = bench.captured.lanes[1].copier.clocks
        behind = Behind()
        monkeypatch.setattr(bench.captured.lanes[1].copier, "clocks", [behind, *late[1:]])
        bench.open(1, [1], [5])
        assert bench.run((1, 0, [1], BLOCK))
        bench.landed(1)
    assert min(told) == 0 and told[-1] == 0
    for span in bench.spans:
        assert span.ready_ns <= span.start_ns <= span.end_ns and span.occupied_ns >= 0


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_planes_that_lie_too_far_apart_for_a_copy_engine_are_gathered(gpu, monkeypatch, route):
    monkeypatch.setattr(hand_off_streams, "MOST_PITCH", 1)
    for module in (hand_off_streams, hand_off_links):
        monkeypatch.setattr(module, "RowCopy", Packed)
    with Passes(route) as bench:
        bench.open(1, [1, 2], [5, 6])
        assert bench.run((1, 0, [1, 2], 2 * BLOCK))
        bench.landed(1)
    bench.check(PREFILL, [1, 2], DECODE, [5, 6])


@pytest.mark.parametrize(
    "changes",
    [dict(route="bulk"), dict(pinned=False), dict(decode_workers=2)],
    ids=str,
)
def test_what_no_graph_can_hand_off_streams_from_a_pass_without_one(gpu, changes):
    with Bench("direct", prefill_blocks=11) as bench:
        places = dict(prefill_device="cuda:0", decode_device="cuda:0")
        config = bench.transfers.config.replace(**places, **changes)
        assert CapturedHandOff.of(bench.transfers, config, PREFILL) is None
        assert CapturedHandOff.of(bench.transfers, bench.transfers.config, Worker("decode", 0)) is None


def test_a_full_ring_is_told_as_it_was(gpu):
    told = []
    with Passes("staged", ring_slots=2) as bench:
        bench.transfers.scheduler.on_ring = lambda at_ns, held: told.append((at_ns, held))
        bench.open(1, [4, 7], [9, 2])
        assert bench.run((1, 0, [4, 7], 2 * BLOCK))
        bench.landed(1)
    assert [at for at, _ in told] == sorted(at for at, _ in told) and told[-1][1] == 0
    assert max(held for _, held in told) <= 2 and len(told) == 2 * SHAPE.layers


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("ring", [1, 2, 3, 8])
def test_a_layer_waits_until_its_slot_of_the_ring_and_its_buffers_are_free(gpu, monkeypatch, ring, scattered):
    waited = []
    monkeypatch.setattr(hand_off_streams, "wait_for", lambda flag, stream: waited.append(flag))
    if scattered:
        scatter(monkeypatch)
    with Passes("staged", ring_slots=ring) as bench:
        waited.clear()
        bench.open(1, [4, 7], [9, 2])
        assert bench.run((1, 0, [4, 7], 2 * BLOCK))
        bench.landed(1)
        turn, layers = bench.captured.turns[0], range(SHAPE.layers)
        times = lambda flags: [waited.count(flag) for flag in flags]  # noqa: E731
        again = lambda slots: [int(layer + slots < SHAPE.layers) for layer in layers]  # noqa: E731
        assert times(turn.written) == [1] * SHAPE.layers, "by what reads the source first"
        assert times(turn.gathered) == [int(scattered)] * SHAPE.layers
        by_down, by_leave = again(ring), [scattered * more for more in again(DEPTH)]
        assert times(turn.carried[0]) == [1 + more for more in by_leave]
        assert times(turn.carried[1]) == [scattered + more for more in by_down]
        assert times(turn.scattered) == by_leave, "by the copies up"
        for slot, kept in enumerate(bench.captured.steps.memory.ring):
            layer = max((layer for layer in layers if layer % ring == slot), default=None)
            if layer is not None:
                key, value = bench.caches[PREFILL].tokens(layer, [4, 7], 2 * BLOCK)
                sent = kept.flatten()[: 2 * key.numel()].view(2, *key.shape)
                assert torch.equal(sent, torch.stack([key, value]))


def test_few_runs_need_no_kernel_and_each_end_is_seen_by_itself(gpu, monkeypatch):
    """Blocks in few runs at the source and many at the target: nothing is gathered, all is scattered."""
    stayed, kernels = [0, 1, 2, 3, 4, 5], []
    whole = Steps._tokens
    monkeypatch.setattr(
        Steps, "_tokens", lambda self, *given: (kernels.append(given[3] is self.memory.words[1]), whole(self, *given))
    )
    with Passes("staged") as bench:
        kernels.clear()
        bench.open(1, stayed, [11, 9, 7, 5, 3, 1])
        assert bench.run((1, 0, stayed, 6 * BLOCK))
        bench.landed(1)
    assert kernels == [True] * SHAPE.layers, "from a buffer into the target's blocks"
    bench.check(PREFILL, stayed, DECODE, [11, 9, 7, 5, 3, 1])


def test_a_pass_lands_while_the_streams_are_full_of_the_next(gpu, monkeypatch):
    """What only waits for the pass's own end must not wait for all that its streams were given since."""
    with Passes("staged") as bench:
        stuck = Stuck(bench.captured.steps._streams)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(fake_cuda_module.FakeStream, "synchronize", stuck)
            bench.open(1, [1], [5])
            assert bench.run((1, 0, [1], BLOCK))
            bench.landed(1)
    assert stuck.asked, "nothing was waited for"
    bench.check(PREFILL, [1], DECODE, [5])


class Stuck:
    """Streams that never end, among others."""

    def __init__(self, streams):
        self.streams, self.asked = streams, []

    def __get__(self, stream, kind):
        return lambda: self.wait(stream)

    def wait(self, stream):
        self.asked.append(stream)
        assert stream not in self.streams, "waits for the next pass"


def test_layers_of_a_pass_that_could_not_leave_are_not_taken_for_those_of_the_next(gpu):
    with Passes("staged") as bench:
        bench.open(1, [1], None)
        assert not bench.run((1, 0, [1], BLOCK)), "no block to land in"
        assert bench.captured.free_turn() == 0 and not bench.captured.turns[0].stored.any()
        bench.open(2, [2], [6])
        assert bench.run((2, 0, [2], BLOCK))
        bench.landed(2)
        while bench.captured.turns[0].busy:
            time.sleep(1e-3)
        assert not bench.captured.turns[0].stored.any()


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_copies_that_could_not_be_launched_fail_their_transfers_and_hold_nothing(gpu, monkeypatch, route):
    whole = HandOffLinks.take

    def refuse(self, stream, turn, travel, hop, index, *how):
        return 1 / (index < 2 or hop + 1 < len(turn.events)) and whole(self, stream, turn, travel, hop, index, *how)

    with Passes(route) as bench:
        bench.open(1, [1], [5])
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(HandOffLinks, "take", refuse)
            assert bench.run((1, 0, [1], BLOCK))
        *others, last = bench.captured.steps._streams
        assert {stream for event in last.waited for stream in [event._stream]} >= {*others}, (
            "its end is not that of all"
        )
        failed = bench.notices.get(timeout=LIMIT_S)
        assert isinstance(failed, TransferFailed) and "division" in failed.error
        bench.transfers.obey(Abort(1))
        assert bench.notices.get(timeout=LIMIT_S) == TransferClosed(1)
        scheduler = bench.transfers.scheduler
        assert scheduler.ring.held == 0 and not any(lane.passes or lane.running for lane in scheduler.lanes.values())
        bench.open(2, [2], [6])
        assert bench.run((2, 0, [2], BLOCK))
        bench.landed(2)
    assert torch.equal(bench.caches[DECODE].data[:, :, 6], bench.originals[PREFILL][:, :, 2])


@pytest.mark.parametrize("together", [2, 5, 64])
def test_each_copy_takes_the_link_for_its_own_layers_and_for_each_transfer(gpu, together):
    link, gone = Link(1e8, fixed_s=1e-3), Departing(3, 0, slice(3 * BLOCK, 4 * BLOCK))
    with Passes("staged", layers_per_copy=together, link=link) as bench:
        bench.open(1, [1, 4], [5, 6])
        bench.open(2, [2], [7])
        departing = [Departing(1, 0, slice(0, 2 * BLOCK)), Departing(2, 0, slice(2 * BLOCK, 3 * BLOCK)), gone]
        taken = bench.captured._take(departing, np.arange(4 * BLOCK))
        layers = [min(together, SHAPE.layers - first) for first in range(0, SHAPE.layers, together)]
        nbytes = bench.transfers.scheduler.layer_block_bytes
        wanted = [[link.occupancy_ns(count * size * nbytes) for size in (2, 1)] for count in layers]
        assert taken.travel.occupancy_ns == 2 * [[sum(parts) for parts in wanted]] and taken.parts == 2 * [
            [0, wanted[0][0], sum(wanted[0])]
        ]
        assert part((0, sum(wanted[0])), taken.parts[0], 1) == (wanted[0][0], sum(wanted[0]))
        assert (taken.travel.onto[3 * BLOCK :] == -1).all(), "its request ended meanwhile"


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("count, least, layers", [(1, 3, 3), (2, 3, 2), (4, 100, 4), (10, 100, 1)])
def test_small_layers_travel_together_where_their_number_is_free(gpu, monkeypatch, count, least, layers, scattered):
    """As many as have the least bytes, as far as a buffer holds them: one layer of a full pass, of 16 blocks."""
    if scattered:
        scatter(monkeypatch)
    blocks, onto = list(range(count)), [12 - block for block in range(count)]
    with Passes("staged", layers_per_copy=None) as bench:
        scheduler = bench.transfers.scheduler
        monkeypatch.setattr(hand_off_streams, "LEAST_BYTES", least * scheduler.layer_block_bytes)
        scheduler.measured(bench.transfers.config, 1 << 30)
        bench.open(1, blocks, onto)
        assert bench.run((1, 0, blocks, count * BLOCK))
        [landed] = bench.landed(1)
    copies = -(-SHAPE.layers // layers)
    assert len(landed.parts) == copies and len(bench.spans) == 2 * copies
    bench.check(PREFILL, blocks, DECODE, onto)


@pytest.mark.parametrize("route, carried", [("direct", {2, 4}), ("staged", {2})])
def test_layers_of_a_copy_may_change_as_far_as_buffers_hold_them(gpu, route, carried):
    with Passes(route, layers_per_copy=2) as bench:
        for number, layers in ((1, 4), (2, 2)):
            bench.transfers.scheduler.retune(bench.transfers.config.replace(layers_per_copy=layers))
            blocks, onto = list(range(9)), [12 - block for block in range(9)]
            bench.open(number, blocks, onto)
            assert bench.run((number, 0, blocks, 9 * BLOCK)) == (layers in carried)
            if layers in carried:
                assert len(bench.landed(number)[-1].parts) == -(-SHAPE.layers // layers)
                bench.check(PREFILL, blocks, DECODE, onto)


def test_a_pass_leaves_the_buffers_to_the_pass_before_it(gpu):
    """Its gather waits for the copies down of that pass, those for the copies up, and those for the scatters."""
    with Passes("staged") as bench:
        bench.open(1, [1], [5])
        bench.open(2, [2], [6])
        streams = bench.captured.steps._streams
        assert bench.run((1, 0, [1], BLOCK))
        ends = bench.captured.steps._ended
        assert bench.run((2, 0, [2], BLOCK))
        for stream, after, ended in zip(streams, streams[1:], ends[1:], strict=False):
            assert ended in stream.waited and ended._stream is after
        bench.landed(1), bench.landed(2)
    bench.check(PREFILL, [1, 2], DECODE, [5, 6])


@pytest.mark.parametrize(
    "able, words",
    [
        (1, "possible: layers leave a captured pass by themselves"),
        (0, "not on cuda:0: its driver has no stream memory operations on 64 bits; a pass that hands layers off is"),
        (None, "not on cuda:0: its driver can't be asked, which takes cuda.bindings and CUDA 12.5; a pass that hands"),
    ],
)
def test_doctor_says_whether_layers_leave_a_captured_pass(monkeypatch, able, words):
    driver = FakeDriver()
    if able is not None:
        driver.CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS=7)
        driver.cuDeviceGetAttribute = lambda attribute, device: (Code(0), able * (attribute == 7))
    monkeypatch.setattr(stream_memory, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert stream_memory.describe().startswith(words)


def test_the_driver_is_asked_for_what_it_knows_and_a_refusal_says_what_to_do(monkeypatch):
    asked, driver, stream = {}, FakeDriver(), SimpleNamespace(cuda_stream=5)
    monkeypatch.setattr(stream_memory, "_driver", lambda: driver)
    driver.CUstreamWaitValue_flags = SimpleNamespace(CU_STREAM_WAIT_VALUE_GEQ=3)
    driver.CUstreamWriteValue_flags = SimpleNamespace(CU_STREAM_WRITE_VALUE_DEFAULT=4)
    driver.CUDA_MEMCPY2D, driver.CUmemorytype = SimpleNamespace, SimpleNamespace(CU_MEMORYTYPE_UNIFIED=6)
    driver.cuStreamWaitValue64 = lambda *given: asked.setdefault("wait", given) and (Code(0),)
    driver.cuStreamWriteValue64 = lambda *given: asked.setdefault("tell", given) and (Code(0),)
    driver.cuMemcpy2DAsync = lambda copy, at: asked.setdefault("copy", (vars(copy), at)) and (Code(0),)
    stream_memory._flags.cache_clear()
    stream_memory.wait_for(7, stream)
    stream_memory.tell(8, stream)
    stream_memory.RowCopy(64, 32, 8).launch(9, 10, 2, stream)
    types = dict(dstMemoryType=6, srcMemoryType=6)
    copy = dict(dstDevice=9, dstPitch=64, srcDevice=10, srcPitch=32, WidthInBytes=8, Height=2, **types)
    assert asked == {"wait": (5, 7, 1, 3), "tell": (5, 8, 1, 4), "copy": (copy, 5)}

    def refuses(*given):
        return (Code(2),)

    driver.cuStreamWaitValue64 = refuses
    with pytest.raises(EngineError, match="refuses failed with CUDA_ERROR_OUT_OF_MEMORY; `graphs=False` launches"):
        stream_memory.wait_for(7, stream)
    driver.cuStreamWaitValue64 = lambda *given: (Code(700),)
    with pytest.raises(EngineError, match="^CUDA error: .* failed with CUDA_ERROR_UNKNOWN$"):
        stream_memory.wait_for(7, stream)
    stream_memory._flags.cache_clear()
