"""A failure ends its own requests in words; the others' tokens stay right, nothing is held and no thread is left."""

import itertools
import threading
import time

import pytest
from engine_tools import (
    LIMIT_S,
    Gate,
    before,
    check_greedy,
    expected_logits,
    fail_nth,
    held,
    held_at,
    joined,
    lengths,
    on_lane,
    opened,
    overflowing,
    prompt_of,
    small,
    started,
    threads,
    tiny,
)
from interrupts import interrupt_main

from disagg import Engine, Link, Request
from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.errors import EngineError
from disagg.plan.link import LaneName
from disagg.plan.request import Stage
from disagg.run.core import EngineCore
from disagg.run.decode_worker import DecodeStage
from disagg.run.handle import Handle
from disagg.run.host_lane import HostLane
from disagg.run.model.model import Model
from disagg.run.prefill_worker import PrefillStage
from disagg.run.serving import ServedRun
from disagg.run.transfers import Transfers
from disagg.trace.recorder import Recorder
from disagg.twin.model_shapes import TINY_EOS as EOS

PRESETS = ("colocated", "split", "streamed", "staged")
STAGES = {"prefill": (PrefillStage, ev.PassFailed), "decode": (DecodeStage, ev.StepFailed)}
LONG = overflowing()


class Dies(BaseException):
    """No worker catches this one."""


def check_partial(prompt, result):
    if result.token_ids:
        logits = expected_logits(prompt, result.token_ids)
        assert logits.argmax(dim=-1).tolist() == result.token_ids


def check_others(requests, results, ended_early=("failed", "cancelled")):
    for request, result in zip(requests, results, strict=True):
        if result.finish_reason in ended_early:
            check_partial(request.prompt, result)
        else:
            check_greedy(request.prompt, result, request.max_new_tokens, request.ignore_eos)


# ---- a batch fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("method", STAGES)
def test_a_model_that_raises_fails_its_batch_alone(monkeypatch, preset, method, nth):
    fail_nth(monkeypatch, Model, method, nth, RuntimeError("no memory\nframes"))
    requests = lengths((40, 12), (20, 3), (50, 12), (9, 12), (33, 12))
    with opened(small(preset, chunk_tokens=48)) as engine:
        batches = batches_of(monkeypatch, method)
        results = engine.serve(requests).results
        failures = [event for event in engine.watch.events if isinstance(event, STAGES[method][1])]
        again = engine.serve(requests)
    failed = {result.request for result in results if result.finish_reason == "failed"}
    assert len(failures) == 1 and failed == batches[nth - 1]
    assert len(failed) < len(requests) or method == "prefill" or nth > 2
    for result in results:
        if result.request in failed:
            rows = result.token_ids and method == "prefill"  # of a mixed pass
            what = "decode" if rows else method
            assert result.error == f"{what} of request {result.request} failed: RuntimeError: no memory\nframes"
    check_others(requests, results)
    check_others(requests, again.results, ())


def batches_of(monkeypatch, method: str) -> list[set[int]]:
    batches: list[set[int]] = []

    def note(self, command):
        if isinstance(command, cmd.Prefill):
            batches.append({chunk.request for chunk in command.chunks})
        else:
            batches.append({request for group in command.groups for request in group})

    before(monkeypatch, STAGES[method][0], "step", note)
    return batches


@pytest.mark.parametrize("method", STAGES)
def test_every_call_raises_and_the_engine_still_answers_each_request(monkeypatch, method):
    with monkeypatch.context() as patch, opened(small("staged")) as engine:
        before(patch, Model, method, lambda self, *args: 1 / 0)
        results = engine.serve(lengths((40, 12), (20, 3), (9, 12))).results
    assert [result.finish_reason for result in results] == ["failed"] * 3
    assert all("ZeroDivisionError" in result.error for result in results)


def test_a_hand_off_hook_that_raises_fails_the_pass(monkeypatch):
    fail_nth(monkeypatch, Transfers, "hand_off", 3, ZeroDivisionError())
    requests = lengths((40, 5), (20, 5))
    with opened(small("staged", chunk_tokens=48)) as engine:
        results = engine.serve(requests).results
    assert {r.finish_reason for r in results} == {"failed", "length"}
    check_others(requests, results)


# ---- a thread dies ---------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_threads(monkeypatch):
    """A dying lane or engine thread prints its traceback; these tests expect that."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)


DEATHS = {
    "prefill": ((Model, "prefill", 2, Dies("gone")), "prefill 0 died: Dies: gone"),
    "decode": ((Model, "decode", 3, Dies("gone")), "decode 0 died: Dies: gone"),
    "lane": ((HostLane, "_move", 1, Dies("gone"), on_lane("up")), "lane up 0 .*died: Dies: gone"),
    "record": ((Recorder, "span", 6, Dies("gone")), "died: Dies: gone"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_dead_thread_breaks_the_engine_in_words(monkeypatch, quiet_threads, death):
    failure, cause = DEATHS[death]
    fail_nth(monkeypatch, *failure)
    requests = lengths((40, 12), (20, 3), (50, 12), (9, 12))
    with opened(small("staged", chunk_tokens=48), broken=True) as engine:
        with pytest.raises(EngineError, match=f"broken and must be rebuilt: .*{cause}") as caught:
            engine.serve(requests)
        results = caught.value.run.results
        assert "failed" in {result.finish_reason for result in results}
        for request, result in zip(requests, results, strict=True):
            assert result.finish_reason == "length" or cause.rpartition("*")[2] in result.error
            check_partial(request.prompt, result)
        for call in (engine.serve, lambda them: engine.submit(them[0]), lambda them: engine.retune(bins=())):
            with pytest.raises(EngineError, match=cause):
                call(requests)
        assert engine.controller.state.deadlines.next_ns is None, "the loop would wake up for deadlines for ever"


def test_a_bug_in_the_controller_breaks_the_engine_in_words(monkeypatch, quiet_threads):
    with opened(small("staged"), broken=True) as engine:
        ended, calls = engine.controller.decoding.ended, itertools.count(1)

        def buggy(turn, event):
            assert next(calls) < 3, "impossible"
            return ended(turn, event)

        engine.controller.decoding.ended = buggy
        with pytest.raises(EngineError, match="the controller failed: AssertionError: impossible"):
            engine.serve(lengths((40, 12), (20, 5)))
        with pytest.raises(EngineError, match="must be rebuilt"):
            engine.submit(lengths((5, 5))[0])


def test_serve_knows_that_the_engine_broke_as_soon_as_its_requests_have_ended(monkeypatch):
    """The last request's end is told before `Broken` is; by then the engine is known to be broken."""
    known = []

    def noting(self, command):
        if isinstance(command, cmd.Ended):
            known.append(self.broken)

    before(monkeypatch, EngineCore, "_obey", noting)
    fail_nth(monkeypatch, Model, "decode", 2, Dies("gone"))
    with opened(small(), broken=True) as engine, pytest.raises(EngineError, match="died: Dies: gone"):
        engine.serve(lengths((20, 9)))
    assert known == ["decode 0 died: Dies: gone"]


def test_a_request_that_comes_while_the_engine_breaks_ends_too(monkeypatch):
    gate = Gate()
    with opened(small(), broken=True) as engine:
        handle_event = engine.controller.handle

        def slow(event, now):
            if isinstance(event, ev.WorkerDied):
                gate.hold()
            return handle_event(event, now)

        engine.controller.handle = slow
        engine._loop._inbox.put(ev.WorkerDied(cmd.Worker("decode", 0), "gone"))
        gate.wait()
        opening = started(gate.open)
        with pytest.raises(EngineError, match="^this engine is broken and must be rebuilt: decode 0 died: gone$"):
            engine.submit(lengths((20, 9))[0])
        joined(opening)
        assert not engine.open_handles()


# ---- cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.ENDED], ids=lambda s: s.name.lower())
def test_a_cancel_in_each_stage(stage):
    """The Cancel is consumed right behind the event that brought the first request into this stage.

    In bulk nothing lands before prefill is over, so that every request is seen handing off.
    """
    parks = {"route": "staged", "prefill_blocks": 6, "decode_blocks": 5}
    pools = parks if stage is Stage.PARKED else {"route": "bulk", "decode_blocks": 8}
    with opened(small("paged", **pools, host_blocks=8)) as engine:
        next_event, cancelled = engine._loop._inbox.next, []

        def cancelling(*waits):
            if not cancelled:
                for record in engine.controller.state.records.values():
                    if record.stage is stage:
                        cancelled.append(record.id)
                        return ev.Cancel(record.id)
            return next_event(*waits)

        engine._loop._inbox.next = cancelling
        run = engine.serve(LONG)
        engine.watch.until_idle()
    reasons = {result.request: result.finish_reason for result in run.results}
    assert [request for request, reason in reasons.items() if reason == "cancelled"] == cancelled
    assert len(cancelled) == 1 and run.anomalies == 0
    check_others(LONG, run.results)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", STAGES)
def test_a_cancel_during_a_pass_or_a_step_ends_at_once_and_frees_later(monkeypatch, preset, method):
    gate = held_at(monkeypatch, Model, method)
    with opened(small(preset)) as engine:
        handle = engine.submit(lengths((40, 9))[0])
        other = engine.submit(lengths((20, 9))[0])
        gate.wait()
        handle.cancel()
        result = handle.result(LIMIT_S)
        assert result.finish_reason == "cancelled" and bool(result.token_ids) == (method == "decode")
        pools = [pool.counts()["quarantined"] for pool in engine.controller.state.pools()]
        assert sum(pools) >= 3, "the worker still writes to them"
        gate.open()
        check_greedy(prompt_of(20), other.result(LIMIT_S), 9)
        engine.watch.until_idle()
    assert handle.result().finish_reason == "cancelled" and bool(result.token_ids) == (method == "decode")


@pytest.mark.parametrize("lane", ["direct", "down", "up"])
def test_a_cancel_during_a_copy_ends_at_once_and_frees_later(monkeypatch, lane):
    gate = held_at(monkeypatch, HostLane, "_move", on_lane(lane))
    with opened(small(route="direct" if lane == "direct" else "staged")) as engine:
        handle = engine.submit(lengths((40, 9))[0])
        gate.wait()
        engine.watch.until_stage(0, Stage.HANDING_OFF)
        if lane == "up":
            engine.watch.until(lambda state: state.prefills[0].pool.held == 0, "hop one's end")
        handle.cancel()
        handle.cancel()
        assert handle.result(LIMIT_S).finish_reason == "cancelled"
        counts = {pool.name: pool.counts()["quarantined"] for pool in engine.controller.state.pools()}
        assert counts == {"prefill 0": 0 if lane == "up" else 3, "decode 0": 3, "host": 0}
        gate.open()
        engine.watch.until_idle()
        handle.cancel()


@pytest.mark.parametrize("lane", ["spill", "up"])
def test_a_cancel_during_paging_keeps_the_blocks_until_the_copy_has_ended(monkeypatch, lane):
    flights = []
    gate = held_at(monkeypatch, HostLane, "_move", lambda _, f: f.lane.role == lane and not flights.append(f))
    with opened(small("paged", route="bulk", decode_blocks=8, host_blocks=8)) as engine:
        handles = [engine.submit(request) for request in LONG]
        gate.wait()
        victim = handles[flights[0].request]
        victim.cancel()
        assert victim.result(LIMIT_S).finish_reason == "cancelled"
        engine.watch.until(lambda state: state.host.counts()["quarantined"] > 0)
        gate.open()
        check_others(LONG, [handle.result(LIMIT_S) for handle in handles])
        engine.watch.until_idle()


def test_a_cancel_while_it_waits_for_its_turn(monkeypatch):
    gate = held_at(monkeypatch, Model, "prefill")
    with opened(small("baseline")) as engine:
        first, second, third = (engine.submit(request) for request in lengths((20, 5), (20, 5), (20, 5)))
        gate.wait()
        second.cancel()
        result = second.result(LIMIT_S)
        assert result.finish_reason == "cancelled" and result.token_ids == [] and result.text == ""
        assert list(second) == []
        gate.open()
        for seed, handle in ((0, first), (2, third)):
            check_greedy(prompt_of(20, seed), handle.result(LIMIT_S), 5)


def test_a_cancel_after_the_end_changes_nothing():
    with opened(small()) as engine:
        handle = engine.submit(lengths((20, 3))[0])
        result = handle.result(LIMIT_S)
        handle.cancel()
        engine.serve(lengths((20, 3)))
        assert handle.result() is result and result.finish_reason in ("length", "eos")


# ---- a link that stalls, notices that get lost -----------------------------------------------------------------------


def test_a_stalled_link_fills_the_ring_and_prefill_waits_while_decode_goes_on(monkeypatch):
    gate = held_at(monkeypatch, HostLane, "_move", lambda lane, copy: copy.request > 0 and copy.lane.role == "up")
    requests = [Request(prompt_of(40, n), 60 if n == 0 else 5, ignore_eos=True) for n in range(5)]
    with opened(small("staged", ring_slots=2, prefill_blocks=7)) as engine:
        first = engine.submit(requests[0])
        pieces = iter(first)
        next(pieces)
        engine.watch.until_stage(0, Stage.RUNNING)
        rest = [engine.submit(request) for request in requests[1:]]
        gate.wait()
        check_greedy(requests[0].prompt, first.result(LIMIT_S), 60, ignore_eos=True)  # decode went on to its end
        engine.watch.until(lambda state: any(r.gate == "prefill 0 blocks" for r in state.records.values()))
        assert not any(handle.done for handle in rest)
        engine.executor.transfers.lock.acquire()
        try:
            assert engine.executor.transfers.scheduler.ring.available == 0
            assert engine.executor.transfers.scheduler.waiting(LaneName("down", 0)) > 0
        finally:
            engine.executor.transfers.lock.release()
        gate.open()
        for request, handle in zip(requests[1:], rest, strict=True):
            check_greedy(request.prompt, handle.result(LIMIT_S), 5, ignore_eos=True)


LOOK_S = 0.3  # of moved time; a few are less than what counts as lost


def move_clock(monkeypatch, engine, seconds: float):
    """Time passes for the engine's thread as if it had waited: in steps, for a jump counts as no delay."""
    before, looks = getattr(engine, "moved_s", 0.0), itertools.count(1)
    engine.moved_s = seconds

    def now() -> int:
        return time.perf_counter_ns() + round(1e9 * min(seconds, before + next(looks) * LOOK_S))

    for file in ("loop", "inbox"):
        monkeypatch.setattr(f"disagg.run.{file}.now_ns", now)
    for _ in range(round(seconds / LOOK_S)):
        engine._loop._inbox.put(ev.Tick())


def lose(owner, kind, condition=lambda event: True) -> Gate:
    """The first notice of this kind never reaches the inbox; the gate says when it was lost."""
    lost, post = Gate(), owner._post

    def losing(event):
        if isinstance(event, kind) and not lost.entered.is_set() and condition(event):
            lost.entered.set()
        else:
            post(event)

    owner._post = losing
    return lost


@pytest.mark.parametrize("route, layer", [("bulk", 0), ("direct", 0), ("direct", 3), ("staged", 1), ("staged", 3)])
def test_a_lost_landing_ends_by_its_deadline_in_words(monkeypatch, route, layer):
    with opened(small(route=route)) as engine:
        lost = lose(engine.executor.transfers, ev.Landed, lambda event: event.parts[0].layer == layer)
        handle = engine.submit(lengths((40, 9))[0])
        lost.wait()
        engine.watch.until_stage(0, Stage.HANDING_OFF)
        assert not handle.done
        move_clock(monkeypatch, engine, 121)
        result = handle.result(LIMIT_S)
        assert result.finish_reason == "failed"
        assert result.error == f"watchdog: request 0: its {route} transfer of 3 blocks has not landed within 120 s"
        engine.watch.until_idle()
        check_others(lengths((40, 9)), engine.serve(lengths((40, 9))).results, ())


@pytest.mark.parametrize("worker, kind", [("prefill", ev.Prefilled), ("decode", ev.Stepped)])
def test_a_worker_that_never_answers_breaks_the_engine(monkeypatch, worker, kind):
    with opened(small(), broken=True) as engine:
        lost = lose(engine.executor.workers[cmd.Worker(worker, 0)], kind)
        handle = engine.submit(lengths((40, 9))[0])
        lost.wait()
        move_clock(monkeypatch, engine, 121)
        result = handle.result(LIMIT_S)
        what = {"prefill": "pass", "decode": "step"}[worker]
        assert result.error == f"{worker} 0 has not answered a {what} within 120 s"
        with pytest.raises(EngineError, match="must be rebuilt"):
            engine.serve(lengths((5, 5)))


def test_a_copy_that_never_ends_fails_its_request_and_then_breaks_the_engine(monkeypatch):
    gate = held_at(monkeypatch, HostLane, "_move")
    with opened(small(), broken=True) as engine:
        handle = engine.submit(lengths((40, 9))[0])
        gate.wait()
        engine.watch.until_stage(0, Stage.HANDING_OFF)
        move_clock(monkeypatch, engine, 121)
        assert "has not landed within 120 s" in handle.result(LIMIT_S).error
        assert engine.controller.state.decodes[0].pool.counts()["quarantined"] == 3
        other = engine.submit(lengths((20, 9))[0])
        move_clock(monkeypatch, engine, 242)
        assert "copy of request 0 has not ended within 120 s" in other.result(LIMIT_S).error
        assert engine.controller.state.decodes[0].pool.counts()["quarantined"] >= 3
        gate.open()


def test_a_notice_that_comes_twice_is_counted_and_changes_nothing():
    requests = lengths((40, 9), (20, 9))
    with opened(small("staged"), anomalies=3) as engine:
        post, seen = engine.executor.transfers._post, []

        def twice(event):
            post(event)
            if isinstance(event, ev.Landed) and len(seen) < 3:
                seen.append(event)
                post(event)

        engine.executor.transfers._post = twice
        run = engine.serve(requests)
    check_others(requests, run.results, ())


@pytest.mark.parametrize("watchdog_s", [1e-9, 1e9])
def test_extreme_watchdogs_are_deadlines_too(watchdog_s):
    with opened(small(watchdog_s=watchdog_s), broken=watchdog_s < 1) as engine:
        if watchdog_s < 1:
            with pytest.raises(EngineError, match="has not answered a"):
                engine.serve(lengths((40, 9)))
        else:
            check_others(lengths((40, 9)), engine.serve(lengths((40, 9))).results, ())


# ---- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["baseline", "staged"])
def test_an_interrupt_returns_what_there_is_and_the_next_run_works(monkeypatch, preset):
    """The signal comes from inside a decode step, while the main thread waits for results."""
    steps, gate = itertools.count(1), Gate()

    def interrupting(self, command):
        if next(steps) == 4:
            interrupt_main()
            gate.hold()

    requests = [Request(prompt_of(20, n), 40, ignore_eos=True) for n in range(3)]
    cancels = []

    def opening(self, *args):
        """The step goes on once everything was cancelled."""
        if len(cancels) == 3:
            gate.open()

    before(monkeypatch, Handle, "cancel", lambda self: cancels.append(self))
    before(monkeypatch, Handle, "result", opening)
    with opened(small(preset)) as engine:
        with monkeypatch.context() as patch:
            before(patch, DecodeStage, "step", interrupting)
            run = engine.serve(requests)
        assert run.interrupted and {r.finish_reason for r in run.results} == {"cancelled"}
        assert len(run.results[0].token_ids) == 4 and run.anomalies == 0
        check_others(requests, run.results)
        engine.watch.until_idle()
        again = engine.serve(requests)
    assert not again.interrupted
    check_others(requests, again.results, ())


def test_an_interrupt_before_the_last_arrival(monkeypatch):
    steps = itertools.count(1)
    before(monkeypatch, DecodeStage, "step", lambda self, command: next(steps) == 3 and interrupt_main())
    requests = [Request(prompt_of(20), 500, ignore_eos=True), Request(prompt_of(9), 5, arrival_s=1e6)]
    with opened(small()) as engine:
        run = engine.serve(requests)
        assert run.interrupted
        assert [result.finish_reason for result in run.results] == ["cancelled", "cancelled"]
        assert run.results[0].token_ids and run.results[1].request == -1 and run.results[1].token_ids == []
        run.metrics()
        check_others(lengths((5, 5)), engine.serve(lengths((5, 5))).results, ())


# ---- close -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", STAGES)
def test_closing_in_the_middle_of_a_pass_or_a_step(monkeypatch, preset, method):
    """`opened` then asks that every block is free and no thread is left."""
    gate = held_at(monkeypatch, Model, method)
    with opened(small(preset)) as engine:
        handles = [engine.submit(request) for request in lengths((40, 9), (20, 9), (30, 9))]
        gate.wait()
        closing = started(engine.close)
        assert [handle.result(LIMIT_S).finish_reason for handle in handles] == ["cancelled"] * 3
        with pytest.raises(EngineError, match="closed"):
            engine.submit(lengths((5, 5))[0])
        gate.open()
        joined(closing)


@pytest.mark.parametrize("route", ["bulk", "direct", "staged"])
def test_closing_gives_up_copies_in_the_air(route):
    config = small(route=route, link=Link(bandwidth=1e8, latency_s=3600), ring_slots=2, watchdog_s=1e6)
    with opened(config) as engine:
        handles = [engine.submit(request) for request in lengths((40, 9), (20, 9))]
        for number in range(2):
            engine.watch.until_stage(number, Stage.HANDING_OFF)
        engine.close()
        assert [handle.result(LIMIT_S).finish_reason for handle in handles] == ["cancelled"] * 2
        assert held(engine) == {}


def test_closing_in_the_middle_of_paging(monkeypatch):
    gate = held_at(monkeypatch, HostLane, "_move", on_lane("spill"))
    with opened(small("paged", decode_blocks=8, host_blocks=8)) as engine:
        handles = [engine.submit(request) for request in LONG]
        gate.wait()
        closing = started(engine.close)
        check_others(LONG, [handle.result(LIMIT_S) for handle in handles])
        gate.open()
        joined(closing)


@pytest.mark.parametrize("arrival_s", [0.0, 1e6])
def test_closing_while_another_thread_serves(arrival_s):
    requests = [Request(prompt_of(20), 1500, ignore_eos=True), Request(prompt_of(9), 5, arrival_s=arrival_s)]
    runs = []
    with opened(small(prefill_blocks=128, decode_blocks=128)) as engine:
        serving = started(lambda: runs.append(engine.serve(requests)))
        engine.watch.until_stage(0, Stage.RUNNING)
        engine.close()
        joined(serving)
    assert runs[0].results[0].finish_reason == "cancelled" and runs[0].interrupted


def test_breaking_while_serve_waits_for_an_arrival(monkeypatch):
    fail_nth(monkeypatch, Model, "decode", 2, Dies("gone"))
    requests = [Request(prompt_of(20), 50), Request(prompt_of(9), 5, arrival_s=1e6)]
    with opened(small(), broken=True) as engine, pytest.raises(EngineError, match="decode 0 died: Dies: gone"):
        engine.serve(requests)


def test_serve_keeps_what_has_ended_where_the_engine_breaks_between_two_requests(monkeypatch):

    def breaking(self, *what):
        if first := self._loop.core.served.get(0):
            first.result(LIMIT_S)
            self._loop.ask(lambda: self._loop.core.break_off("gone"))

    before(monkeypatch, ServedRun, "_submit", breaking)
    with opened(small(), broken=True) as engine, pytest.raises(EngineError, match="rebuilt: gone") as caught:
        engine.serve(lengths((5, 3), (5, 3)))
    assert [result.finish_reason for result in caught.value.run.results] == ["length", "cancelled"]


def test_an_error_inside_the_with_closes_the_engine():
    with pytest.raises(KeyError), opened(small()) as engine:
        handle = engine.submit(Request(prompt_of(20), 1000, ignore_eos=True))
        raise KeyError
    assert handle.result(LIMIT_S).finish_reason == "cancelled"


# ---- a start that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2])
def test_a_worker_that_cannot_be_built_leaves_nothing(monkeypatch, nth):
    fail_nth(monkeypatch, Model, "replica", nth, MemoryError("no room for a replica"))
    with pytest.raises(MemoryError):
        Engine(small("staged"), tiny())
    assert threads() == []


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_thread_that_cannot_start_leaves_nothing(monkeypatch, nth):
    """Two lanes, two workers, the engine's own."""
    refusal, ours = RuntimeError("can't start new thread"), lambda thread: thread.name.startswith("disagg")
    with monkeypatch.context() as patch:
        fail_nth(patch, threading.Thread, "start", nth, refusal, ours)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Engine(small("staged"), tiny())
    assert threads() == []


def test_the_end_of_sequence_is_no_fault():
    with opened(small()) as engine:
        result = engine.serve([Request(prompt_of(9), force_ids=[1, EOS, 2])]).results[0]
    assert result.token_ids == [1, EOS, 2] and result.finish_reason == "length"
