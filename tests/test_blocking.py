"""Hand-offs that block (`overlap=False`): right bytes and tokens, nothing hidden, and no wait for what can't come."""

import threading
from collections.abc import Iterator

import pytest
import torch
from engine_tools import LIMIT_S, answered, before, check_run, joined, lengths, opened, prompt_of, small, started
from test_transfers import BLOCK, DECODE, PREFILL, SHAPE, Bench, gpu  # noqa: F401

from benchmarks.robustness import random_scenarios
from disagg import Config, Link, Request
from disagg.plan.commands import Abort, Assign, Worker
from disagg.plan.errors import ConfigError
from disagg.plan.events import Landed, Prefilled, SourceRead, Stepped, TransferFailed, WorkerDied
from disagg.plan.request import Job
from disagg.run.gpu.stream_copy import StreamCopier
from disagg.run.host_lane import HostLane
from disagg.run.prefill_worker import waits_of
from disagg.run.transfers import Departing, Transfers
from disagg.trace.results import Run
from disagg.twin.simulated_engine import SimulatedEngine, Speeds

NEVER = Link(latency_s=1e6)  # no copy lands while a test runs
DEPARTING = [Departing(1, 0, slice(None))]
SWITCHES = {
    "staged": {}, "blocking": dict(overlap=False), "direct": dict(route="direct"), "bulk": dict(route="bulk"),
    "direct, blocking": dict(route="direct", overlap=False),
    "blocking, one slot": dict(overlap=False, ring_slots=1),
    "blocking, few layers a copy": dict(overlap=False, layers_per_copy=3),
}  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
def test_tokens_are_the_references_on_every_switch(switch):
    requests = lengths((100, 6), (33, 9), (5, 4), (70, 1))
    run = answered(small("staged", chunk_tokens=48, **SWITCHES[switch]), requests)
    waits = [span.waits_ns for span in run.timeline.spans if span.kind == "prefill"]
    assert any(waits) == ("blocking" in switch)


def simulated(**changes) -> Run:
    """One prompt of one chunk under the virtual clock."""
    sizes = dict(prefill_blocks=64, decode_blocks=64, layers_per_copy=1)
    world = SimulatedEngine(Config(link=Link(2e6), **sizes, **changes), Speeds(layers=5, token_bytes=1000))
    world.submit(Job(0, tuple(range(40)), 5, 0))
    world.run()
    return world.so_far()


@pytest.mark.parametrize("ring_slots", [1, 8])
@pytest.mark.parametrize("route", ["direct", "staged"])
def test_blocking_hides_nothing_under_the_virtual_clock(route, ring_slots):
    free, blocking = (simulated(route=route, ring_slots=ring_slots, overlap=overlap) for overlap in (True, False))
    assert free.overlap(0).hidden > 0.5 and free.overlap(0).wall > 0.5
    found = blocking.overlap(0)
    assert (found.hidden, found.wall) == (0.0, 0.0) and found.exposed_s == found.transfer_s > 0
    assert free.law(0) is not None and blocking.law(0) is None
    [passing] = [span for span in blocking.timeline.spans if span.kind == "prefill"]
    assert sum(passing.waits_ns) == round(found.transfer_s * 1e9) and len(passing.waits_ns) == 5
    assert sum(end - start for start, end in passing.computing) == free.results[0].token_times_ns[0]
    assert free.results[0].token_ids == blocking.results[0].token_ids


@pytest.mark.parametrize("route", ["direct", "staged"])
def test_a_receipt_counts_what_a_blocking_hand_off_holds_up_as_transfer(route):
    free, blocking = (simulated(route=route, overlap=overlap) for overlap in (True, False))
    bill = blocking.results[0].receipt
    [passing] = [span for span in blocking.timeline.spans if span.kind == "prefill"]
    stops = [line for line in bill.lines if line.name == "transfer"]
    assert [(line.start_ns, line.end_ns - line.start_ns) for line in stops] == list(
        zip(passing.hand_offs_ns, passing.waits_ns, strict=True)
    )
    assert bill.totals()["transfer"] == pytest.approx(blocking.overlap(0).exposed_s)
    assert bill.totals()["prefill"] == pytest.approx(free.results[0].receipt.totals()["prefill"])
    assert bill.unaccounted_s == 0


def order(run: Run) -> Iterator[str]:
    """Hand-offs, landings and the controller's events, one after the other."""
    spans = run.timeline.spans
    found = [(span.end_ns, 0, f"{span.place} {span.index} landed") for span in spans if span.kind == "copy"]
    for span in spans:
        found += [(at, 1, f"layer {layer} handed off") for layer, at in enumerate(span.hand_offs_ns)]
    found += [(at, 2, type(event).__name__) for at, event in run.log if isinstance(event, (Prefilled, Stepped))]
    return (what for _, _, what in sorted(found))


@pytest.mark.parametrize("route", ["direct", "staged"])
@pytest.mark.parametrize("together", [1, 3])
def test_twin_and_engine_go_in_the_same_order(route, together):
    config = small(route=route, overlap=False, layers_per_copy=together, link=Link(fixed_s=2e-3))
    with opened(config) as engine:
        real, layers = engine.serve([Request(prompt_of(40), 4, ignore_eos=True)]), engine.model.layers
    world = SimulatedEngine(config, Speeds(layers=layers, token_bytes=1000))
    world.submit(Job(0, tuple(range(40)), 4, 0))
    world.run()
    assert list(order(real)) == list(order(world.so_far()))


def waiting(bench) -> list[threading.Thread]:
    return started(lambda: bench.transfers.wait_for(DEPARTING))


def waited(bench):
    """The wait for transfer 1 comes to its end; a failure instead of a hang where it does not."""
    waits = waiting(bench)
    try:
        joined(waits)
    finally:
        if waits[0].is_alive():
            bench.transfers.let_go()


@pytest.mark.parametrize("lanes", ["cores", "fakes"])
@pytest.mark.parametrize("route, ring", [("direct", 8), ("staged", 1), ("staged", 3)])
def test_a_layer_has_landed_when_the_wait_for_it_ends(request, lanes, route, ring):
    if lanes == "fakes":
        request.getfixturevalue("gpu")
    blocks, onto = [5, 0, 3], [2, 8, 0]
    with Bench(route, ring_slots=ring, prefill_blocks=11, link=Link(fixed_s=1e-3)) as bench:
        bench.post(1, route, PREFILL, blocks, DECODE, onto, ready=False)
        for layer in range(SHAPE.layers):
            bench.hand_off(1, layer, blocks)
            waited(bench)
            moved = bench.caches[DECODE].data[: layer + 1, :, onto]
            assert torch.equal(moved, bench.originals[PREFILL][: layer + 1, :, blocks])
        assert bench.transfers.scheduler.progress == {}
        notices = [bench.notices.get_nowait() for _ in range(SHAPE.layers + (route == "staged"))]
        assert sum(notice.nbytes for notice in notices if isinstance(notice, Landed)) == 3 * BLOCK * SHAPE.token_bytes
        assert sum(isinstance(notice, SourceRead) for notice in notices) == (route == "staged")
    bench.check(PREFILL, blocks, DECODE, onto)


def test_what_has_no_target_yet_is_not_waited_for():
    with Bench("staged", ring_slots=1) as bench:
        bench.post(1, "staged", PREFILL, [1], None, None, ready=False)
        bench.hand_off(1, 0, [1])
        waited(bench)
        bench.transfers.obey(Assign(1, DECODE, (4,)))
        bench.hand_off(1, 1, [1])
        waited(bench)
        assert torch.equal(bench.caches[DECODE].data[:2, :, [4]], bench.originals[PREFILL][:2, :, [1]])
        bench.transfers.obey(Abort(1))


def held_up(bench) -> list[threading.Thread]:
    """A thread that waits for transfer 1, whose copy does not land."""
    bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
    bench.hand_off(1, 0, [1])
    assert bench.transfers.scheduler.holds_up(1)
    return waiting(bench)


ENDS = {"abort": lambda bench: bench.transfers.obey(Abort(1)), "let go": lambda bench: bench.transfers.let_go()}


@pytest.mark.parametrize("end", ENDS)
def test_a_wait_ends_with_its_transfer_or_its_engine(end):
    with Bench("direct", link=NEVER) as bench:
        held = held_up(bench)
        ENDS[end](bench)
        joined(held)


@pytest.mark.parametrize("lanes", ["cores", "fakes"])
def test_a_wait_ends_where_its_copy_fails(request, monkeypatch, lanes):
    if lanes == "fakes":
        request.getfixturevalue("gpu")
    with Bench("direct", prefill_blocks=11) as bench:
        for kind in (HostLane, StreamCopier):
            monkeypatch.setattr(kind, "_move", lambda *args: 1 / 0)
        bench.post(1, "direct", PREFILL, [1], DECODE, [1], ready=False)
        bench.hand_off(1, 0, [1])
        waited(bench)
        assert isinstance(bench.notices.get(timeout=LIMIT_S), TransferFailed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_wait_ends_where_its_lane_dies(monkeypatch):
    with Bench("direct") as bench:
        monkeypatch.setattr(bench.transfers.scheduler, "finish", lambda copy: 1 / 0)
        joined(held_up(bench))
        assert isinstance(died := bench.notices.get(timeout=LIMIT_S), WorkerDied)
        assert died.worker == Worker("lane direct 0", 0)


@pytest.fixture
def waits(monkeypatch) -> threading.Event:
    """Set when a pass comes to its first wait."""
    begun = threading.Event()
    before(monkeypatch, Transfers, "wait_for", lambda self, departing: begun.set())
    return begun


def closed(engine):
    """A failure instead of a hang where it does not close."""
    try:
        joined(started(engine.close))
    finally:
        engine.executor.transfers.let_go()


@pytest.mark.parametrize("preset", ["streamed", "staged"])
@pytest.mark.parametrize("cancels", [True, False])
def test_a_cancel_or_a_close_amid_a_blocking_hand_off_ends(waits, preset, cancels):
    with opened(small(preset, overlap=False, link=NEVER)) as engine:
        handle = engine.submit(Request(prompt_of(40), 20, ignore_eos=True))
        assert waits.wait(LIMIT_S)
        if cancels:
            handle.cancel()
            assert handle.result(LIMIT_S).finish_reason == "cancelled"
            engine.retune(overlap=True)
            rest = lengths((20, 1))
            check_run(engine.serve(rest), rest)  # the worker is free
        closed(engine)
    assert handle.result(LIMIT_S).finish_reason == "cancelled"


def test_a_broken_engine_closes_amid_a_blocking_hand_off(waits):
    with opened(small("streamed", overlap=False, link=NEVER), broken=True) as engine:
        handle = engine.submit(Request(prompt_of(40), 20, ignore_eos=True))
        assert waits.wait(LIMIT_S)
        engine._loop.ask(lambda: engine._core.fail(RuntimeError("a bug")))
        closed(engine)
    assert handle.result(LIMIT_S).finish_reason == "failed"


def test_overlap_changes_while_it_runs():
    with opened(small("staged")) as engine:
        for overlap in (False, True):
            engine.retune(overlap=overlap)
            requests = lengths((40, 4))
            run = engine.serve(requests)
            check_run(run, requests)
            assert any(span.waits_ns for span in run.timeline.spans) != overlap


def test_a_recording_keeps_the_waits(tmp_path):
    run = simulated(route="staged", overlap=False)
    run.save(tmp_path / "run.jsonl")
    loaded = Run.load(tmp_path / "run.jsonl")
    assert loaded.timeline.spans == run.timeline.spans and loaded.config == run.config
    assert loaded.overlap(0) == run.overlap(0)


@pytest.mark.parametrize(
    "waits, found",
    [([], ()), ([(12, 15), (25, 30)], (3, 5)), ([(8, 15), (19, 30)], (5, 10)), ([(11, 22), (25, 30)], (9, 5))],
    ids=["none", "after the mark", "on a GPU, before it", "no longer than to the next mark"],
)
def test_a_pass_stands_still_from_its_mark_to_the_end_of_the_wait(waits, found):
    assert waits_of((10, 20), waits) == found


@pytest.mark.parametrize("seed", range(0, 120, 3))
def test_worlds_with_faults_end_well_where_hand_offs_block(monkeypatch, seed):
    drawn = random_scenarios.draw_config

    def blocking(*args) -> Config:
        config = drawn(*args)
        return config if config.route == "bulk" else config.replace(overlap=False)

    monkeypatch.setattr(random_scenarios, "draw_config", blocking)
    random_scenarios.simulate_seed(seed)


REFUSED = {
    "in bulk": (dict(route="bulk", overlap=False), "overlap=False: with route='bulk' nothing is handed off by layers"),
    "on cores": (dict(pinned=False), "pinned=False: between CPU cores every copy is a copy in host memory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_switch_that_switches_nothing_is_refused_in_words(case):
    fields, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        Config(**fields)
