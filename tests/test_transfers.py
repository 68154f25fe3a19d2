"""Copies: the right bytes in the right blocks and nowhere else, deadlines by the rule, digests at each stop."""

import itertools
import queue
import sys
import threading

import fake_triton
import pytest
import torch
from engine_tools import (
    LIMIT_S,
    Gate,
    after,
    answered,
    before,
    check_greedy,
    check_logits,
    check_run,
    fail_nth,
    held_at,
    lengths,
    opened,
    overflowing,
    small,
)
from fake_cuda import FakeDial, FakeStream, fake_cuda

import disagg.run.gpu
from disagg import Config, Link
from disagg.plan.commands import Abort, Assign, Retuned, Send, Worker
from disagg.plan.errors import ConfigError, EngineError
from disagg.plan.events import Landed, SourceRead, TransferClosed, TransferFailed, WorkerDied
from disagg.plan.link import LaneName
from disagg.run.decode_worker import DecodeStage
from disagg.run.gpu.device import Scratch
from disagg.run.gpu.link_dial import check_triton
from disagg.run.gpu.stream_copy import Route, StreamCopier, copy_blocks
from disagg.run.gpu.stream_lane import AHEAD
from disagg.run.host_lane import HostLane
from disagg.run.kv_cache import KVCache, KVShape, slots_of
from disagg.run.transfers import Departing, Transfers
from disagg.twin.model_shapes import TINY
from disagg.twin.route_cost import cost_of

LAYERS = TINY["num_hidden_layers"]

SHAPE = KVShape(layers=5, kv_heads=2, head_dim=4, dtype=torch.float32)
PREFILL, DECODE, HOST = Worker("prefill", 0), Worker("decode", 0), Worker("host", 0)
SIZES = {PREFILL: 11, DECODE: 13, HOST: 9}
BLOCK = 4
CORES, ONE_GPU, TWO_GPUS = ("cpu", "cpu"), ("cuda:0", "cuda:0"), ("cuda:0", "cuda:1")
one_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device that torch can use")
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices that torch can use")
ONE = pytest.param(ONE_GPU, marks=one_gpu, id="one_gpu")
TWO = pytest.param(TWO_GPUS, marks=two_gpus, id="two_gpus")
HOPS = [("bulk", "direct"), ("direct", "direct"), ("staged", "down"), ("staged", "up")]
TOGETHER = [1, 2, 3, 5]  # one, two that do not divide, three, all


class Bench:
    """Transfers between three caches full of random numbers, without controller or workers."""

    def __init__(self, route: str = "direct", devices=CORES, parts=None, **changes):
        changes = {"layers_per_copy": 1, **changes}
        config = Config(route=route, block_size=BLOCK, chunk_tokens=64, host_blocks=SIZES[HOST], **changes)
        generator = torch.Generator().manual_seed(3)
        places = {PREFILL: devices[0], DECODE: devices[1], HOST: "cpu"}
        self.caches = {n: KVCache(SHAPE, size, BLOCK, places[n], pinned=True) for n, size in SIZES.items()}
        self.notices: queue.SimpleQueue = queue.SimpleQueue()
        self.spans: list = []
        self.transfers = Transfers(config, self.caches, self.notices.put, self.spans.append, parts)
        self.transfers.start()  # which may time a copy or two through the caches, while they are empty
        for cache in self.caches.values():
            cache.data.copy_(torch.randn(cache.data.shape, generator=generator))
        if devices[0] != "cpu":
            torch.cuda.synchronize()
        self.originals = {name: cache.data.clone() for name, cache in self.caches.items()}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.transfers.close()

    def post(self, number, route, source, blocks, target, onto, ready=True, priority=(0,), first=0, due=None,
             request=None):  # fmt: skip
        due = len(blocks) if due is None else due
        request = 40 + number if request is None else request
        self.transfers.obey(Send(number, route, request, source, first, tuple(blocks), due, priority, ready))
        if onto is not None:
            self.transfers.obey(Assign(number, target, tuple(onto)))

    def hand_off(self, number, layer, blocks, tokens=None, first=0):
        """As prefill does from inside a layer whose K/V are in the cache; full blocks, where no tokens are given."""
        key, value = self.caches[PREFILL].tokens(layer, blocks, tokens or len(blocks) * BLOCK)
        self.transfers.hand_off(layer, [Departing(number, first, slice(None))], key, value)

    def hand_off_all(self, number, blocks, tokens=None, first=0):
        for layer in range(SHAPE.layers):
            self.hand_off(number, layer, blocks, tokens, first)

    def streamed(self, number, route, blocks, onto, tokens=None) -> list:
        """The notices of a hand-off by layers from prefill to decode."""
        self.post(number, route, PREFILL, blocks, DECODE, onto, ready=False)
        self.hand_off_all(number, blocks, tokens)
        return self.landed(number)

    def page(self, number, route, source, blocks, target, onto, request=None) -> list:
        self.post(number, route, source, blocks, target, onto, request=request)
        return self.landed(number)

    def landed(self, number, layers=SHAPE.layers) -> list:
        """Notices up to the landing of the last layer."""
        seen, found = set(), []
        while len(seen) < layers:
            found.append(self.notices.get(timeout=LIMIT_S))
            assert isinstance(found[-1], Landed | SourceRead), found[-1]
            if isinstance(found[-1], Landed) and found[-1].transfer == number:
                seen |= {layer for part in found[-1].parts for layer in range(part.layer, part.layer_end)}
        return found

    def check(self, source, blocks, target, onto):
        """Mapped blocks equal, all others untouched, the source unchanged, and so is every other memory."""
        for name, original in self.originals.items():
            expected = original.clone()
            if name == target:
                expected[:, :, list(onto)] = self.originals[source][:, :, list(blocks)]
            assert torch.equal(self.caches[name].data, expected), f"{name} is not what it should be"


def flip_a_bit(row):
    row.view(-1)[:1].view(torch.uint8)[0] ^= 1


def random_map(seed: int, count: int, source, target):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(SIZES[place], generator=generator)[:count].tolist() for place in (source, target))


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("route, ring", [("direct", 8), ("staged", 1), ("staged", 3), ("staged", 8)])
@pytest.mark.parametrize("lanes", ["cores", "fakes"])
def test_a_hand_off_by_layers_moves_its_blocks_and_touches_no_other(request, lanes, route, ring, together, verify):
    if lanes == "fakes":
        request.getfixturevalue("gpu")
    blocks, onto = random_map(together, 6, PREFILL, DECODE)
    with Bench(route, ring_slots=ring, layers_per_copy=together, prefill_blocks=11, verify_kv=verify) as bench:
        notices = bench.streamed(1, route, blocks, onto, 6 * BLOCK - 3)
        assert bench.transfers.scheduler.progress == {} and bench.transfers.scheduler.ring.held == 0
    bench.check(PREFILL, blocks, DECODE, onto)
    assert sum(isinstance(n, SourceRead) for n in notices) == (route == "staged")
    copies = -(-SHAPE.layers // together)
    assert sum(isinstance(n, Landed) for n in notices) == copies
    assert sum(n.nbytes for n in notices if isinstance(n, Landed)) == 6 * BLOCK * SHAPE.token_bytes
    assert len(bench.spans) == copies * (1 if route == "direct" else 2)
    if lanes == "fakes":
        assert bench.transfers.streams.in_words().endswith(" us")
        assert all(span.start_ns <= span.end_ns == span.deadline_ns for span in bench.spans)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lanes, route", [("cores", "bulk"), ("fakes", "bulk"), ("fakes", "staged")])
def test_a_hand_off_in_one_piece(request, lanes, route, seed, verify):
    if lanes == "fakes":
        request.getfixturevalue("gpu")
    blocks, onto = random_map(seed, 5, PREFILL, DECODE)
    with Bench(route, prefill_blocks=11, verify_kv=verify) as bench:
        notices = bench.page(1, route, PREFILL, blocks, DECODE, onto)
        assert sum(isinstance(notice, Landed) for notice in notices) == 1 or route == "staged"
    bench.check(PREFILL, blocks, DECODE, onto)


@pytest.mark.parametrize("source, target, route", [(DECODE, HOST, "spill"), (HOST, DECODE, "fetch")])
@pytest.mark.parametrize("together", [1, 5])
def test_a_spill_or_a_fetch_moves_its_blocks_and_touches_no_other(source, target, route, together):
    blocks, onto = random_map(4, 7, source, target)
    with Bench("staged", layers_per_copy=together, verify_kv=False) as bench:
        bench.page(1, route, source, blocks, target, onto)
    bench.check(source, blocks, target, onto)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("devices", ["cores", "fakes", ONE])
def test_there_and_back_through_host_memory(request, devices, verify):
    if devices == "fakes":
        request.getfixturevalue("gpu")
    blocks, onto, back = [4, 5, 0, 7], [2, 3, 4, 6], [12, 0, 5, 3]
    places = devices if devices == ONE_GPU else CORES
    with Bench("staged", places, prefill_blocks=11, verify_kv=verify) as bench:
        bench.page(1, "spill", DECODE, blocks, HOST, onto)
        bench.caches[DECODE].poison(blocks)
        if devices == ONE_GPU:
            torch.cuda.synchronize()
        bench.page(2, "fetch", HOST, onto, DECODE, back, request=41)
        assert bench.transfers.spilled == {}, "the checksums are used once"
    assert torch.equal(bench.caches[DECODE].data[:, :, back], bench.originals[DECODE][:, :, blocks])
    assert torch.equal(bench.caches[HOST].data[:, :, onto], bench.originals[DECODE][:, :, blocks].cpu())


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_chunks_travel_while_later_ones_are_computed(route):
    blocks, onto = random_map(6, 5, PREFILL, DECODE)
    with Bench(route, layers_per_copy=2, ring_slots=2) as bench:
        bench.post(1, route, PREFILL, blocks[:2], DECODE, onto, ready=False, due=5)
        bench.hand_off_all(1, blocks[:2])
        first = bench.landed(1)
        assert not any(isinstance(notice, SourceRead) for notice in first)
        bench.post(1, route, PREFILL, blocks[2:], None, None, ready=False, first=2, due=5)
        bench.hand_off_all(1, blocks[2:], 2 * BLOCK + 1, first=2)
        second = bench.landed(1)
        assert {(p.block, p.block_end) for n in first if isinstance(n, Landed) for p in n.parts} == {(0, 2)}
        assert {(p.block, p.block_end) for n in second if isinstance(n, Landed) for p in n.parts} == {(2, 5)}
    bench.check(PREFILL, blocks, DECODE, onto)


def test_layers_that_prefill_has_not_reported_stay():
    with Bench("direct") as bench:
        bench.post(1, "direct", PREFILL, [1, 2], DECODE, [3, 4], ready=False)
        for layer in range(3):
            bench.hand_off(1, layer, [1, 2])
        bench.landed(1, layers=3)
        assert torch.equal(bench.caches[DECODE].data[3:], bench.originals[DECODE][3:])
        bench.transfers.obey(Abort(1))
        assert bench.notices.get(timeout=LIMIT_S) == TransferClosed(1)


def test_what_has_no_target_yet_waits():
    with Bench("direct") as bench:
        bench.post(1, "direct", PREFILL, [1, 2], None, None)
        bench.page(2, "direct", PREFILL, [3], DECODE, [0])
        assert len(bench.spans) == 1 and bench.notices.empty()
        bench.transfers.obey(Assign(1, DECODE, (5, 6)))
        bench.landed(1)


def test_an_abort_waits_for_the_copy_in_the_air_and_starts_no_other(monkeypatch):
    gate = held_at(monkeypatch, HostLane, "_move")
    with Bench("direct") as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
        bench.hand_off_all(1, [1])
        gate.wait()
        bench.transfers.obey(Abort(1))
        assert bench.notices.empty(), "closed while its copy ran"
        gate.open()
        assert bench.notices.get(timeout=LIMIT_S) == TransferClosed(1)
        assert len(bench.spans) == 1 and bench.notices.empty()


# ---- lanes of a GPU, by fakes that do everything at once -------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    fake_cuda(monkeypatch, SIZES[HOST])


@pytest.mark.parametrize(
    "route, sides",
    [
        ("direct", {"direct 0": "decode", "spill 0": "decode", "up 0": "decode"}),
        ("staged", {"down 0": "decode", "park 0": "decode", "spill 0": "decode", "up 0": "decode"}),
    ],
)
def test_on_a_split_gpu_lanes_run_on_the_sms_of_decode(gpu, route, sides):
    class FakePart:
        def __init__(self):
            self.made = []

        def stream(self, priority):
            self.made.append(FakeStream(priority=priority))
            return self.made[-1]

    parts = {"prefill": FakePart(), "decode": FakePart()}
    blocks, onto = random_map(3, 5, PREFILL, DECODE)
    with Bench(route, prefill_blocks=11, parts=parts) as bench:
        lanes = {str(name): lane for name, lane in bench.transfers.lanes.items()}
        assert {n: r for n in lanes for r, part in parts.items() if lanes[n].copier.streams[0] in part.made} == sides
        bench.streamed(1, route, blocks, onto)
    bench.check(PREFILL, blocks, DECODE, onto)
    assert bench.transfers.ring == [], "pinned memory outlives the streams that copied it"


@pytest.mark.parametrize("route", ["direct", "staged"])
@pytest.mark.parametrize("verify", [False, True])
def test_what_a_prefill_pass_launches_leaves_nothing_of_its_mode_behind(gpu, route, verify):
    """Prefill hands off in inference mode; buffers that grow there are written by other threads later."""
    with Bench(route, prefill_blocks=11, layers_per_copy=1, verify_kv=verify) as bench:
        bench.transfers.obey(
            Retuned(bench.transfers.config.replace(layers_per_copy=SHAPE.layers))
        )  # larger than any before
        for number, blocks, onto, mode in ((1, [1, 2, 3], [3, 4, 7], True), (2, [5, 6, 8], [8, 9, 1], False)):
            bench.post(number, route, PREFILL, blocks, DECODE, onto, ready=False)
            with torch.inference_mode(mode):
                bench.hand_off_all(number, blocks)
            bench.landed(number)
            moved = bench.caches[DECODE].data[:, :, onto]
            assert torch.equal(moved, bench.originals[PREFILL][:, :, blocks])


@pytest.mark.parametrize("route, lane", HOPS)
def test_checksums_on_a_gpu_find_a_flipped_bit(gpu, monkeypatch, route, lane):
    seen = []

    def flip(self, path, *rest):
        if (path.target is None) == (lane == "down") and 3 in path.layers:
            seen.append(path)
            if lane == "down":
                token = path.slot[3 - path.layers.start, 1, 0, 2]
            else:
                token = path.target.data[3, 1, path.target_blocks[0], 2]
            flip_a_bit(token)

    after(monkeypatch, StreamCopier, "_move", flip)
    with Bench(route, prefill_blocks=11, verify_kv=True) as bench:
        bench.post(1, route, PREFILL, [1, 2], DECODE, [3, 4], ready=route == "bulk")
        if route != "bulk":
            bench.hand_off_all(1, [1, 2])
        while not isinstance(notice := bench.notices.get(timeout=LIMIT_S), TransferFailed):
            pass
    assert seen and f"digest differs after hop '{lane} 0'" in notice.error and "layer 3" in notice.error


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_an_automatic_grouping_measures_the_route_and_moves_the_same_blocks(gpu, route):
    """The bench's blocks are full of numbers, where an engine's are empty: the target's first ones are overwritten."""
    with Bench(route, layers_per_copy=None, prefill_blocks=11) as bench:
        assert bench.transfers.scheduler.least_bytes == bench.transfers.scheduler.measured_bytes >= 0
        bench.streamed(1, route, [1, 2], [10, 9])
    assert torch.equal(bench.caches[DECODE].data[:, :, [10, 9]], bench.originals[PREFILL][:, :, [1, 2]])
    assert torch.equal(bench.caches[PREFILL].data, bench.originals[PREFILL])


def test_the_cost_of_a_route_is_the_line_through_two_copies():
    cost = cost_of((1000, 3e-6), (101_000, 103e-6))
    assert abs(cost.fixed_s - 2e-6) < 1e-12 and abs(cost.bandwidth - 1e9) < 1
    assert cost.least_bytes == 12_000, "on a busy host 6 us of 18 are the fixed cost"


def test_a_copy_that_a_gpu_refuses_fails_its_transfer(gpu, monkeypatch):
    def refusing(self, path, *ids):
        raise torch.OutOfMemoryError("no room")

    drained_by = []
    with Bench("direct", prefill_blocks=11) as bench:
        monkeypatch.setattr(StreamCopier, "_move", refusing)
        before(monkeypatch, StreamCopier, "drain", lambda self: drained_by.append(threading.current_thread().name))
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
        bench.hand_off_all(1, [1])
        notice = bench.notices.get(timeout=LIMIT_S)
        assert notice == TransferFailed(1, "copy on lane 'direct 0' failed: OutOfMemoryError: no room")
        bench.transfers.obey(Abort(1))
        assert bench.notices.get(timeout=LIMIT_S) == TransferClosed(1)
    assert set(drained_by) == {"disagg direct 0", "disagg spill 0", "disagg up 0"}, "no pass waits for what is left"


def test_only_hand_offs_are_launched_by_who_makes_them_possible(gpu, monkeypatch):
    """A spill of scattered blocks is a thousand launches: the engine's thread hears no event meanwhile."""
    launched = []
    with Bench("direct", prefill_blocks=11, layers_per_copy=SHAPE.layers) as bench:
        before(monkeypatch, StreamCopier, "_move", lambda *args: launched.append(threading.current_thread().name))
        bench.page(1, "spill", DECODE, [4, 5], HOST, [2, 3])
        bench.page(2, "fetch", HOST, [2, 3], DECODE, [12, 0], request=41)
        bench.streamed(3, "direct", [1], [1])
    assert launched == ["disagg spill 0", "disagg up 0", threading.current_thread().name]


def test_a_lane_that_breaks_is_reported_on_every_thread(gpu, monkeypatch):
    def broken(name):
        raise AssertionError("a slot is held twice")

    with Bench("direct", prefill_blocks=11) as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
        monkeypatch.setattr(bench.transfers.scheduler, "start", broken)
        with pytest.raises(AssertionError):
            bench.hand_off(1, 0, [1])
        died = WorkerDied(Worker("lane direct 0", 0), "AssertionError: a slot is held twice")
        assert bench.notices.get(timeout=LIMIT_S) == died


def test_copies_go_on_while_others_are_within_their_latency(gpu):
    """The wire is free long before the first copy lands, and there is room on the streams."""
    with Bench("direct", prefill_blocks=11, link=Link(bandwidth=4e8, latency_s=0.5)) as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
        bench.hand_off(1, 0, [1])
        while bench.transfers.lanes[LaneName("direct", 0)]._room._value < AHEAD:
            pass  # until it is off the wire
        for layer in range(1, SHAPE.layers):
            bench.hand_off(1, layer, [1])
        bench.landed(1)
    assert max(span.start_ns for span in bench.spans) < min(span.end_ns for span in bench.spans)


def test_what_a_refused_copy_held_lets_others_start(gpu, monkeypatch):
    """The second hop of one transfer is refused, and another waits for its ring slot: nobody else wakes that lane."""
    refused = []

    def refusing(self, path, *ids):
        if path.source is None and not refused:
            refused.append(path)
            while not bench.transfers.scheduler.waiting(LaneName("down", 0)):
                pass  # until the other one waits
            raise torch.OutOfMemoryError("no room")

    before(monkeypatch, StreamCopier, "_move", refusing)
    with Bench("staged", ring_slots=1, layers_per_copy=SHAPE.layers, prefill_blocks=11) as bench:
        bench.post(1, "staged", PREFILL, [1], DECODE, [1])
        bench.post(2, "staged", PREFILL, [2], DECODE, [2])
        notices = [bench.notices.get(timeout=LIMIT_S) for _ in range(4)]
    assert {(type(notice), notice.transfer) for notice in notices} == {
        (SourceRead, 1), (TransferFailed, 1), (SourceRead, 2), (Landed, 2)
    }  # fmt: skip


def test_the_dial_of_a_gpu_keeps_the_rule_by_its_events(gpu):
    with Bench("staged", link=DIAL, ring_slots=3, prefill_blocks=11) as bench:
        bench.streamed(1, "staged", [1, 2, 3], [1, 2, 3])
    for name, lane in bench.transfers.lanes.items():
        spans, deadlines = [span for span in bench.spans if span.place == str(name)], lane.copier._dial.deadlines[1:]
        if name.role not in ("down", "up"):
            continue
        assert [span.index for span in spans] == list(range(SHAPE.layers))
        step = occupancy_ns(spans[0].nbytes)
        assert all(later - sooner >= step for sooner, later in zip(deadlines, deadlines[1:], strict=False))
        for span, deadline in zip(spans, deadlines, strict=True):
            assert span.busy_end_ns >= deadline - 2000, "freed before the dial allows; float32 milliseconds"
            assert span.deadline_ns == span.busy_end_ns + round(DIAL.latency_s * 1e9)


@pytest.mark.parametrize("pinned", [True, False])
def test_a_dial_is_told_to_go_before_a_copy_that_holds_up_the_host(gpu, monkeypatch, pinned):
    """Its post waits for the end of the launch, and a pageable copy's launch waits for the post."""
    calls = []
    for owner, name in ((FakeDial, "post"), (FakeDial, "go"), (FakeDial, "hold"), (StreamCopier, "_move")):
        before(monkeypatch, owner, name, lambda *args, name=name: calls.append(name))
    copier = StreamCopier([torch.device("cpu")], torch.float32, pinned=pinned)
    cache = KVCache(SHAPE, 4, BLOCK)
    with copier.current():
        copier.launch(None, Route(range(1), cache, (1,), cache, (2,), None), None, 1000)
    assert calls == (["post", "_move", "hold", "go"] if pinned else ["post", "go", "_move", "hold", "go"])


def test_a_dial_without_triton_says_what_to_install(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "disagg.run.gpu.device_kernels", raising=False)
    with pytest.raises(ConfigError, match="pip install triton"):
        check_triton()


def test_a_ring_that_does_not_fit_into_pinned_memory_says_what_to_lower(gpu, monkeypatch):
    def refusing(self, shape):
        raise RuntimeError("CUDA error: out of memory\nlong story")

    monkeypatch.setattr(Scratch, "view", refusing)
    with pytest.raises(EngineError, match="8 slots of 2,816.*Lower ring_slots.*out of memory$"):
        Bench("staged", prefill_blocks=11)


def test_closing_stops_a_dial_and_abandons_copies_on_the_link(gpu):
    with Bench("direct", link=Link(bandwidth=1.0), prefill_blocks=11) as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1])
        while not bench.transfers.scheduler.progress[1].running:
            pass
    notice = bench.notices.get(timeout=LIMIT_S)
    assert isinstance(notice, Landed) or "was given up: the engine closes" in notice.error


# ---- lanes of GPUs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [ONE, TWO])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("together", [1, 2, 5, None])
@pytest.mark.parametrize("route, ring", [("direct", 8), ("staged", 1), ("staged", 3), ("bulk", 8)])
def test_gpus_move_the_right_blocks_behind_the_writes_of_prefill(devices, route, ring, together, verify):
    """Each layer is written after a delay on prefill's stream, so that a copy that does not wait takes old bytes."""
    blocks, onto = random_map(6, 6, PREFILL, DECODE)
    fields = dict(ring_slots=ring, layers_per_copy=together, prefill_blocks=11, verify_kv=verify)
    with Bench(route, devices, **fields) as bench:
        cache, tokens = bench.caches[PREFILL], 6 * BLOCK
        fresh = torch.randn(SHAPE.layers, 2, tokens, SHAPE.kv_heads, SHAPE.head_dim, device=devices[0])
        slots = slots_of(blocks, 0, tokens, BLOCK).to(devices[0])
        torch.cuda.synchronize()
        bench.post(1, route, PREFILL, blocks, DECODE, onto, ready=False)
        with torch.cuda.stream(torch.cuda.Stream(devices[0])):
            for layer in range(SHAPE.layers):
                torch.cuda._sleep(3_000_000)
                cache.write(layer, slots, *fresh[layer])
                bench.transfers.hand_off(layer, [Departing(1, 0, slice(None))], *fresh[layer])
        bench.landed(1)
        torch.cuda.synchronize()
        for layer in range(SHAPE.layers):
            found = bench.caches[DECODE].tokens(layer, onto, tokens)
            assert torch.equal(torch.stack(found).to(devices[0]), fresh[layer]), f"layer {layer}"
        others = [block for block in range(SIZES[DECODE]) if block not in onto]
        assert torch.equal(bench.caches[DECODE].data[:, :, others], bench.originals[DECODE][:, :, others])
        assert bench.transfers.scheduler.progress == {} and bench.transfers.scheduler.ring.held == 0


@pytest.mark.parametrize("devices", [ONE, TWO])
@pytest.mark.parametrize("route", ["direct", "staged"])
def test_the_dial_of_gpus_keeps_a_copy_as_long_as_the_rule_says(devices, route):
    pytest.importorskip("triton", reason="needs triton, whose kernel is the dial")
    with Bench(route, devices, link=DIAL, prefill_blocks=11) as bench:
        bench.streamed(1, route, [1, 2, 3], [1, 2, 3])
    for span in bench.spans:
        assert span.occupied_ns >= occupancy_ns(span.nbytes) - 60_000, "freed before the dial allows"
        assert span.deadline_ns == span.busy_end_ns + round(DIAL.latency_s * 1e9)


@pytest.mark.parametrize("devices", [ONE])
def test_closing_stops_a_dial_that_would_take_hours(devices):
    pytest.importorskip("triton", reason="needs triton, whose kernel is the dial")
    with Bench("direct", devices, link=Link(bandwidth=1.0), prefill_blocks=11) as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1])
        while not bench.transfers.scheduler.progress[1].running:
            pass


# ---- the dial --------------------------------------------------------------------------------------------------------

DIAL = Link(bandwidth=2e6, latency_s=3e-4, fixed_s=1e-4)


def occupancy_ns(nbytes: int) -> int:
    return round((DIAL.fixed_s + nbytes / DIAL.bandwidth) * 1e9)


def check_lane(spans):
    """busy_until = max(posted, busy_until) + fixed + bytes / bandwidth; landing = busy_until + latency."""
    busy = 0
    for span in spans:
        assert span.occupied_ns == occupancy_ns(span.nbytes)
        assert span.start_ns >= busy, "two copies on one wire at once"
        busy = span.start_ns + span.occupied_ns
        assert span.deadline_ns == busy + round(DIAL.latency_s * 1e9)
        assert span.end_ns >= span.deadline_ns, "announced before the dial allows"


@pytest.mark.parametrize("together", TOGETHER)
def test_deadlines_on_one_hop_follow_the_rule(together):
    """Copies posted together take the wire back to back: deadlines follow from deadlines, to the nanosecond."""
    with Bench("direct", link=DIAL, layers_per_copy=together) as bench:
        bench.post(1, "direct", PREFILL, [1, 2, 3], None, None)
        bench.post(2, "direct", PREFILL, [4], None, None)
        bench.transfers.obey(Assign(1, DECODE, (1, 2, 3)))
        bench.transfers.obey(Assign(2, DECODE, (4,)))
        bench.landed(1)
        bench.landed(2)
    spans = sorted(bench.spans, key=lambda span: span.start_ns)
    check_lane(spans)
    assert [span.deadline_ns for span in bench.spans] == sorted(span.deadline_ns for span in bench.spans)


def test_layers_handed_off_at_once_land_back_to_back():
    """One deadline after the other although threads wake up late: errors do not add up."""
    with Bench("direct", link=DIAL) as bench:
        bench.post(1, "direct", PREFILL, [1, 2, 3], None, None, ready=False)
        bench.hand_off_all(1, [1, 2, 3])
        bench.transfers.obey(Assign(1, DECODE, (1, 2, 3)))
        bench.landed(1)
    check_lane(bench.spans)
    starts = [span.start_ns for span in bench.spans]
    step = occupancy_ns(bench.spans[0].nbytes)
    assert [b - a for a, b in zip(starts, starts[1:], strict=False)] == [step] * (SHAPE.layers - 1)


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_deadlines_on_two_hops_follow_the_rule(slots):
    with Bench("staged", link=DIAL, ring_slots=slots) as bench:
        bench.post(1, "staged", PREFILL, [1, 2, 3], None, None, ready=False)
        bench.hand_off_all(1, [1, 2, 3])
        bench.transfers.obey(Assign(1, DECODE, (1, 2, 3)))
        bench.landed(1)
    down, up = ([s for s in bench.spans if s.place.startswith(lane)] for lane in ("down", "up"))
    check_lane(down)
    check_lane(up)
    first, step, busy_down, busy_up = down[0].start_ns, occupancy_ns(down[0].nbytes), 0, 0
    for index, (one, two) in enumerate(zip(down, up, strict=True)):
        slot_free = up[index - slots].deadline_ns if index >= slots else 0  # hop two has read it
        assert one.index == two.index == index
        assert one.start_ns == max(first, busy_down, slot_free)
        assert two.start_ns == max(one.deadline_ns, busy_up), "hop two follows from hop one's landing"
        busy_down, busy_up = one.start_ns + step, two.start_ns + step


def test_priorities_order_what_waits_for_a_wire(monkeypatch):
    gate = held_at(monkeypatch, HostLane, "_move")
    with Bench("direct") as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], priority=(0,))
        gate.wait()
        for number, priority in ((2, (5,)), (3, (1,)), (4, (3,))):
            bench.post(number, "direct", PREFILL, [number], DECODE, [number], priority=priority)
        gate.open()
        bench.landed(2)
    assert [span.transfer for span in bench.spans] == [1, 3, 4, 2]


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_the_first_layer_lands_before_the_last_is_computed(monkeypatch, route):
    landed = Gate()

    def landing(self, flight, at_ns, _):
        if not flight.hop_one and flight.layer == 0:
            landed.open()

    def computing(self, layer, *rest):
        if layer == LAYERS - 1:
            landed.hold()

    after(monkeypatch, Transfers, "land", landing)
    before(monkeypatch, Transfers, "hand_off", computing)
    run = answered(small(route=route), lengths((50, 5)))
    [prefill] = [span for span in run.timeline.spans if span.kind == "prefill"]
    assert len(prefill.hand_offs_ns) == LAYERS and list(prefill.hand_offs_ns) == sorted(prefill.hand_offs_ns)
    first = min(s.end_ns for s in run.timeline.spans if s.kind == "copy" and s.place.startswith(("direct", "up")))
    assert prefill.hand_offs_ns[0] < first < prefill.end_ns
    assert run.overlap(0).wall > 0


def test_in_bulk_nothing_travels_before_the_first_token():
    with opened(small("split")) as engine:
        run = engine.serve(lengths((50, 5), (90, 5)))
    for result in run.results:
        copies = run.timeline.hand_off(result.request)
        assert copies and min(s.start_ns for s in copies) >= run.timeline.prefill_end_ns(result.request)


# ---- wrong bytes, and copies that fail -------------------------------------------------------------------------------


def flip_after_the_copy(monkeypatch, lane: str, layer: int, nth: int = 1):
    """Flips one bit of what arrives in the nth copy of that layer on that lane, before it is checked."""
    copies = itertools.count(1)

    def flip(self, flight, data):
        if flight.lane.role == lane and flight.layer <= layer < flight.layer_end and next(copies) == nth:
            place = data if flight.hop_one else self.transfers.caches[flight.target].data
            where = (layer - flight.layer, 1, 0) if flight.hop_one else (layer, 1, flight.target_blocks[0])
            flip_a_bit(place[where])

    after(monkeypatch, HostLane, "_move", flip)


def raise_in_the_copy(monkeypatch, lane: str, layer: int, nth: int = 1):
    carries = lambda _, flight: flight.lane.role == lane and flight.layer <= layer < flight.layer_end  # noqa: E731
    fail_nth(monkeypatch, HostLane, "_move", nth, RuntimeError("the link broke"), carries)


def decoded_requests(monkeypatch) -> set:
    seen = set()
    before(monkeypatch, DecodeStage, "step", lambda self, command: seen.update(j.request for j in command.joins))
    return seen


def failed_alone(decoded: set, route: str, **changes):
    """The one result of three that failed: no step has seen it, the others are right, and all are in the next run."""
    requests = lengths((40, 9), (33, 9), (20, 9))
    with opened(small(route=route, **changes)) as engine:
        results = engine.serve(requests).results
        check_run(engine.serve(requests), requests)
    [failed] = [result for result in results if result.finish_reason == "failed"]
    assert failed.request not in decoded and f"request {failed.request}" in failed.error
    for request, result in zip(requests, results, strict=True):
        if result is not failed:
            check_greedy(request.prompt, result, 9)
    return failed


@pytest.mark.parametrize("route, lane", HOPS)
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
@pytest.mark.parametrize("together", [1, 3])
def test_a_flipped_bit_is_found_before_any_step_uses_it(monkeypatch, route, lane, layer, together):
    flip_after_the_copy(monkeypatch, lane, layer, nth=2)
    decoded = decoded_requests(monkeypatch)
    failed = failed_alone(decoded, route, layers_per_copy=together, chunk_tokens=48)
    assert len(failed.token_ids) <= 1 and f"layer {layer}" in failed.error
    assert f"hop '{lane} 0'" in failed.error and "blocks 0 to" in failed.error


@pytest.mark.parametrize("route", ["bulk", "direct", "staged"])
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
def test_the_last_token_of_the_last_block_is_checked_too(monkeypatch, route, which):

    def flip(self, flight, data):
        if not flight.hop_one and flight.layer_end == LAYERS:
            token = self.transfers.caches[flight.target].data[LAYERS - 1, which, flight.target_blocks[2], 40 % 16 - 1]
            token.view(-1)[-1:].view(torch.uint8)[0] ^= 1

    after(monkeypatch, HostLane, "_move", flip)
    with opened(small(route=route)) as engine:
        [result] = engine.serve(lengths((40, 9))).results
    assert result.finish_reason == "failed" and f"layer {LAYERS - 1}" in result.error


@pytest.mark.parametrize("route, lane", HOPS)
@pytest.mark.parametrize("nth", [1, 3])
def test_a_copy_that_raises_fails_its_request_alone(monkeypatch, route, lane, nth):
    raise_in_the_copy(monkeypatch, lane, LAYERS - 1, nth)
    decoded = decoded_requests(monkeypatch)
    failed = failed_alone(decoded, route)
    assert f"{lane} 0" in failed.error and "RuntimeError: the link broke" in failed.error


@pytest.mark.parametrize("damage", [flip_after_the_copy, raise_in_the_copy])
@pytest.mark.parametrize("lane", ["spill", "up"])
def test_damaged_paging_is_computed_again(monkeypatch, damage, lane):
    """On the lane up, hand-offs travel too: `bulk` keeps them off it."""
    damage(monkeypatch, lane, 2)
    requests = overflowing(keep_logits=True)
    with opened(small("paged", route="bulk", decode_blocks=8, host_blocks=8)) as engine:
        run = engine.serve(requests)
    assert run.counts["paging_failures"] == 1 and run.counts["recomputes"] >= 1
    check_run(run, requests)
    for request, result in zip(requests, run.results, strict=True):
        check_logits(request.prompt, result)


def test_a_flip_in_host_memory_between_spill_and_fetch_is_found(monkeypatch):
    flipped = []

    def landing(self, flight, at_ns):
        if flight.lane.role == "spill" and not flipped:
            flipped.append(flight)
            block = self.caches[HOST].data[2, 0, flight.target_blocks[0]]
            flip_a_bit(block)

    before(monkeypatch, Transfers, "land", landing)
    requests = overflowing()
    with opened(small("paged", decode_blocks=8, host_blocks=8)) as engine:
        run = engine.serve(requests)
    assert flipped and run.counts["paging_failures"] == 1
    check_run(run, requests)


def test_without_verification_nothing_is_digested(monkeypatch):
    for name in ("transfers.digest", "host_lane.digest_blocks"):
        monkeypatch.setattr(f"disagg.run.{name}", lambda *args: 1 / 0)
    requests = overflowing()
    for route in ("bulk", "staged"):
        run = answered(small("paged", route=route, verify_kv=False, decode_blocks=8, host_blocks=8), requests)
        assert run.counts["spills"] >= 1


def test_a_second_failing_copy_of_one_transfer_is_no_second_failure(monkeypatch):
    before(monkeypatch, HostLane, "_move", lambda self, flight: 1 / 0)
    with Bench("direct") as bench:
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
        bench.hand_off_all(1, [1])
        assert isinstance(bench.notices.get(timeout=LIMIT_S), TransferFailed)
        bench.transfers.obey(Abort(1))
        assert bench.notices.get(timeout=LIMIT_S) == TransferClosed(1)
        assert bench.notices.empty() and bench.spans == []


# ---- the kernel between caches of GPUs -------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim, block_size", [(64, 16), (80, 128), (3, 5)], ids=["words", "tiles", "no_words"])
def test_the_kernel_copies_blocks_to_blocks_and_touches_nothing_else(monkeypatch, head_dim, block_size):
    """On the CPU, under a triton of few lines; blocks of less than a tile, of more than one, and of no whole words."""
    fake_triton.install(monkeypatch, disagg.run.gpu, "device_kernels")
    shape = KVShape(4, 2, head_dim, torch.bfloat16)
    source, target = KVCache(shape, 6, block_size), KVCache(shape, 9, block_size)
    source.data.copy_(torch.randn(source.data.shape))
    blocks, onto, layers = (5, 0, 3), (2, 8, 0), range(1, 3)
    expected = target.data.clone()
    expected[1:3, :, list(onto)] = source.data[1:3, :, list(blocks)]
    copy_blocks(Route(layers, source, blocks, target, onto, None), torch.tensor(blocks), torch.tensor(onto))
    assert torch.equal(target.data, expected)


def test_notices_come_in_the_order_of_the_schedulers_changes():
    """An abort between a landing and its notice would tell the end of the transfer first."""
    with Bench() as bench:
        post, alone = bench.transfers._post, []

        def noted(notice):
            alone.append(bench.transfers.lock._is_owned())  # nobody else can change the traffic now
            post(notice)

        bench.transfers._post = noted
        bench.page(1, "direct", PREFILL, [1, 2], DECODE, [3, 4])
        bench.transfers.obey(Abort(1))
        assert len(alone) >= 2 and all(alone)
