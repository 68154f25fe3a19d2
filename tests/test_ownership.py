"""The controller's state has one owner, the engine's thread; and an engine has one life, whatever its process does."""

import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from engine_tools import (
    LIMIT_S,
    before,
    check_greedy,
    held_at,
    joined,
    left_threads,
    lengths,
    opened,
    prompt_of,
    small,
    started,
    threads,
    tiny,
)
from hammer import hammer

from disagg import Config, Engine, Link, Request
from disagg.plan import events as ev
from disagg.plan.errors import ConfigError, EngineError, RequestError
from disagg.plan.gates import LISTED
from disagg.run import inbox as inbox_file
from disagg.run import loop as loop_file
from disagg.run.clock import now_ns
from disagg.run.decode_worker import DecodeStage
from disagg.run.machine import open_engines
from disagg.run.machine.sizes import Settings
from disagg.run.model.model import load_model
from disagg.run.prefill_worker import PrefillStage
from disagg.trace.recorder import Recorder
from disagg.trace.why import SEARCHED, _Look


def test_users_of_one_engine_find_nothing_wrong_whenever_threads_change():
    """A few worlds of `python tests/hammer.py`, which runs hundreds."""
    found, seen = hammer(4, first=1000, say=lambda line: None)
    assert not found
    assert all(seen[name] for name in ("serve", "submit", "cancel", "why", "retune", "batch", "interrupt"))


LOOKS = ("__getitem__", "__setitem__", "__contains__", "__iter__", "__len__", "get", "values", "items")


def noting(base, *names):
    """An empty table of this kind that notes which threads look into it."""
    threads = set()

    def noted(name):
        def method(self, *args):
            threads.add(threading.current_thread().name)
            return getattr(base, name)(self, *args)

        return method

    made = type("Noting", (base,), {name: noted(name) for name in names})()
    return made, threads


def test_only_the_engines_thread_reads_the_controllers_tables():
    with opened(small("paged")) as engine:
        state, look = engine.controller.state, engine.watch
        engine.controller.handle = look._handle  # the tests' own watch looks from other threads
        state.counts, by_counts = noting(Counter, "__getitem__", "__iter__")
        state.records, by_records = noting(dict, *LOOKS)
        engine.serve(lengths((20, 5), (30, 2)))
        handle = engine.submit(lengths((20, 50))[0])
        engine.why(handle), engine.retune(max_batch=3), engine.retune(decode_blocks=20), engine.recorded([])
        with pytest.raises(ConfigError):
            engine.retune(model="another")
        engine.serve([], record=False), engine.interrupt(), handle.cancel(), handle.result(LIMIT_S)
        assert by_records == by_counts == {"disagg engine"}


def test_changes_of_two_threads_are_both_kept(monkeypatch):
    with opened(small()) as engine:
        at = []
        before(monkeypatch, Settings, "changed", lambda *args: at.append(threading.current_thread().name))
        changes = [{"max_batch": 7}, {"layers_per_copy": 3}, {"chunk_tokens": 32}]
        joined(started(*(partial(engine.retune, **change) for change in changes)))
        config = engine.config
        assert (config.max_batch, config.layers_per_copy, config.chunk_tokens) == (7, 3, 32)
        assert config == engine.controller.state.config and at == ["disagg engine"] * 3


def test_a_pool_that_was_shrunk_and_set_back_takes_at_once_what_fits_again():
    with opened(small()) as engine:
        for _ in range(20):
            engine.retune(decode_blocks=4)
            engine.retune(decode_blocks=None)
            engine.submit(Request(prompt_of(90), 1)).cancel()


def test_a_link_by_ratio_is_measured_on_the_callers_thread(monkeypatch):
    """Passes of the model on the engine's thread would hold up everybody."""
    measured = []
    before(monkeypatch, Settings, "_compute", lambda self: measured.append(threading.current_thread()))
    with opened(small()) as engine:
        engine.retune(link=Link.ratio(2.0))
        assert measured[0] is threading.main_thread()


def test_a_bug_in_a_change_is_told_to_who_asked_and_breaks_the_engine(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with opened(small(), broken=True) as engine:
        engine.controller.handle = lambda event, now: 1 / 0
        with pytest.raises(EngineError, match="broken and must be rebuilt: the controller failed: ZeroDivisionError"):
            engine.retune(max_batch=3)
        with pytest.raises(EngineError, match="broken"):
            engine.submit(Request([1], 1))


def test_a_bug_in_a_question_is_the_askers_alone():
    with opened(small()) as engine:
        with pytest.raises(TypeError):
            engine.why([])
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)


def test_why_looks_at_a_bounded_number_of_requests(monkeypatch):
    gate, looked = held_at(monkeypatch, PrefillStage, "step"), []
    before(monkeypatch, _Look, "wait", lambda self, record, ahead=True: looked.append(record.id))
    with opened(small()) as engine:
        handles = [engine.submit(Request(prompt_of(20), 2)) for _ in range(600)]
        text = engine.why(handles[-1])
        assert len(looked) <= SEARCHED and len(text.splitlines()) <= LISTED + 2
        assert f"and {600 - 2 - 4} more" in text or "behind" in text
        for handle in handles:
            handle.cancel()
        gate.open()


@pytest.fixture
def ahead(monkeypatch) -> list[int]:
    """By how many ns the engine's clock is ahead."""
    ahead = [0]
    for file in (loop_file, inbox_file):
        monkeypatch.setattr(file, "now_ns", lambda: now_ns() + ahead[0])
    return ahead


@pytest.mark.parametrize("lost_s", [3.0, 500.0])
def test_a_process_that_was_suspended_goes_on(monkeypatch, ahead, lost_s):
    gate = held_at(monkeypatch, DecodeStage, "step")
    with opened(small(watchdog_s=2.0)) as engine:
        handle = engine.submit(lengths((20, 5), ignore_eos=True)[0])
        gate.wait()
        ahead[0] = round(lost_s * 1e9)
        engine.watch.until(lambda state: any(isinstance(e, ev.TimeLost) for e in engine.watch.events), "lost time")
        gate.open()
        assert handle.result(LIMIT_S).finish_reason == "length"


def test_time_that_is_lost_while_the_engines_thread_works_is_nobodys(ahead):
    with opened(small(watchdog_s=2.0)) as engine:
        obey = engine.executor.obey

        def slow(command):
            obey(command)
            ahead[0] += 10**10

        engine.executor.obey = slow
        handle = engine.submit(lengths((20, 5), ignore_eos=True)[0])
        for _ in range(3):
            engine._loop.ask(lambda: ahead.__setitem__(0, ahead[0] + 10**11))
        assert handle.result(LIMIT_S).finish_reason == "length"


def test_the_end_that_comes_with_lost_time_is_not_lost(monkeypatch, ahead):
    gate = held_at(monkeypatch, DecodeStage, "step")
    engine = Engine(small(watchdog_s=2.0), tiny())
    engine.submit(lengths((20, 5))[0])
    gate.wait()
    ahead[0] = 10**11
    engine._loop._inbox.put(inbox_file.EndSignal.END)  # while the step is still under way
    engine._loop._thread.join(LIMIT_S)
    assert not engine._loop._thread.is_alive()
    gate.open()
    engine.close()


def test_a_worker_that_hangs_is_still_found(monkeypatch):
    gate = held_at(monkeypatch, DecodeStage, "step")
    with opened(small(watchdog_s=0.3), broken=True) as engine:
        result = engine.submit(lengths((20, 5))[0]).result(LIMIT_S)
        gate.open()
        assert result.error == "decode 0 has not answered a step within 0.3 s"


def forking(test):
    quiet = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    return quiet(pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")(test))


def in_a_fork(work) -> int:
    """The exit status of a forked child that does this; killed where it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@forking
def test_a_forked_process_is_told_in_words_and_can_end():
    with opened(small()) as engine:
        handle = engine.submit(lengths((20, 400), ignore_eos=True)[0])

        def use():
            for call in (lambda: engine.serve(lengths((5, 2))), lambda: engine.submit(Request([1])),
                         lambda: engine.retune(max_batch=2)):  # fmt: skip
                with pytest.raises(EngineError, match="forked"):
                    call()
            assert handle.result().finish_reason == "failed" and "forked" in handle.result().error
            assert "".join(handle) is not None and engine.open_handles() == []
            engine.interrupt(), handle.cancel(), engine.close(), engine.close()

        assert in_a_fork(use) == 0
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(len, ([1, 2],)) == 2  # its exit runs what a process runs at its end
        handle.cancel()


@forking
def test_a_forked_process_builds_an_engine_of_its_own_on_one_thread():
    with opened(small()) as engine:
        expected = engine.serve(lengths((20, 5))).results[0].token_ids

        def build():
            with Engine(small(), tiny()) as own:
                assert own.serve(lengths((20, 5))).results[0].token_ids == expected
            with pytest.raises(EngineError, match="threads=2: this process was forked"):
                Engine(small(threads=2), tiny())

        assert in_a_fork(build) == 0


def test_a_cell_that_builds_an_engine_again_and_again_leaves_one():
    first = None
    for _ in range(6):
        engine = Engine(small("paged"), tiny())
        check_greedy(prompt_of(20), engine.serve(lengths((20, 3))).results[0], 3)
        first = first or len(threads())
        assert len(open_engines.OPEN) == 1 and len(threads()) == first
    engine.close()
    assert not threads() and not open_engines.OPEN


def test_memory_of_an_engine_that_is_gone_waits_for_no_collector():
    gc.collect()
    gc.disable()
    try:
        caches = []
        for end in (lambda engine: engine.close(), lambda engine: None):
            engine = Engine(small("paged"), tiny())
            engine.serve(lengths((20, 3)))
            caches += [weakref.ref(cache.data) for cache in engine.executor.caches.values()]
            left = left_threads()
            end(engine)
            del engine
            joined(left)
        assert len(caches) == 6 and not any(cache() is not None for cache in caches)
    finally:
        gc.enable()


LAST = {
    "why": lambda engine: engine.why(0),
    "retune": lambda engine: engine.retune(max_batch=3),
    "recorded": lambda engine: engine.recorded([]),
    "open_handles": lambda engine: engine.open_handles(),
    "submit": lambda engine: engine.submit(Request([1], 1)).result(LIMIT_S),
    "a refused submit": lambda engine: pytest.raises(RequestError, engine.submit, Request(prompt_of(20), 2000)),
    "serve": lambda engine: engine.serve(lengths((5, 2))),
    "interrupt": lambda engine: engine.interrupt(),
}


@pytest.mark.parametrize("last", LAST)
def test_an_engine_without_references_ends_after_any_last_call(last):
    engine = Engine(small(), tiny())
    left = left_threads()
    LAST[last](engine)
    del engine
    gc.collect()
    joined(left)
    assert not threads() and not open_engines.OPEN


def test_an_engine_in_a_cycle_is_ended_by_the_collector_on_whatever_thread():
    for collect in (gc.collect, lambda: joined(started(gc.collect))):
        engine = Engine(small("staged"), tiny())
        engine.itself = engine
        gone = weakref.ref(engine)
        del engine
        collect()
        assert gone() is None and not threads()


def test_the_handle_of_an_open_request_keeps_its_engine():
    handle = Engine(small(), tiny()).submit(lengths((20, 30), ignore_eos=True)[0])
    gc.collect()
    left = left_threads()
    assert left and handle.result(LIMIT_S).finish_reason == "length" and len(handle.so_far.token_ids) == 30
    joined(left)  # the engine's own thread let it go
    assert not threads()


def test_an_engine_that_broke_and_was_left_behind_ends(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    engine = Engine(small(), tiny())
    engine.controller.handle = lambda event, now: 1 / 0
    with pytest.raises(EngineError):
        engine.submit(Request([1], 1))
    left = left_threads()
    del engine
    gc.collect()
    joined([*left, *(t for t in left_threads() if t.name == "disagg end")])
    assert not threads() and not open_engines.OPEN


def test_engines_of_one_model_share_its_weights():
    with Engine(small()) as one, Engine(small("colocated")) as other, Engine(small(dtype="bfloat16")) as third:
        assert one.model is other.model and third.model is not one.model


def test_the_run_says_what_was_served():
    with pytest.raises(ConfigError, match="names the model 'smollm2', and the one handed over is 'tiny'"):
        Engine(Config.preset("streamed"), tiny())
    with pytest.raises(ConfigError, match="says dtype='bfloat16', and the model handed over is in float32"):
        Engine(small(dtype="bfloat16"), tiny())


@pytest.mark.parametrize("record", [True, False])
def test_a_request_that_is_open_while_others_are_served_has_its_whole_receipt(record):
    with opened(small()) as engine:
        handle = engine.submit(Request(prompt_of(30), 60, ignore_eos=True))
        runs = [engine.serve(lengths((20, 5)), record=record) for _ in range(3)]
        steps = sum(line.name == "decode" for line in handle.result(LIMIT_S).receipt.lines)
        assert steps == len(handle.so_far.token_ids) - 1 == 59
        if record:
            assert all(sum(line.name == "decode" for line in r.results[0].receipt.lines) == 4 for r in runs)
        late = engine.submit(Request(prompt_of(30), 6, ignore_eos=True)).result(LIMIT_S)
        assert sum(line.name == "decode" for line in late.receipt.lines) == 5


def test_a_request_submitted_during_a_run_has_its_whole_receipt_after_it(monkeypatch):
    with opened(small()) as engine:
        gate = held_at(monkeypatch, DecodeStage, "step", lambda self, command: command.joins)
        serving = started(partial(engine.serve, lengths((20, 2))))
        gate.wait()
        handle = engine.submit(Request(prompt_of(30), 40, ignore_eos=True))
        gate.open()
        joined(serving)
        assert sum(line.name == "decode" for line in handle.result(LIMIT_S).receipt.lines) == 39


def test_the_end_of_one_run_does_not_cut_into_the_next(monkeypatch):
    runs, order = [], []
    for name in ("begin", "between_runs"):
        before(monkeypatch, Recorder, name, lambda self, *what, name=name, **how: order.append(name))
    with opened(small()) as engine:
        order.clear()

        def serve():
            while len(runs) < 20:
                try:
                    runs.append(engine.serve(lengths((20, 3))))
                except EngineError:
                    """The other one serves."""

        joined(started(serve, serve))
        engine._loop.ask(lambda: None)  # behind whatever the last run left to be done
        assert order[: 2 * len(runs)] == ["begin", "between_runs"] * len(runs)
    assert all(run.timeline.start_ns and len(run.results[0].receipt.lines) > 3 for run in runs)


def test_an_interrupt_leaves_nothing_locked_that_the_engines_thread_needs():
    taken, armed = 0, set()

    def interrupt(number, frame):
        if armed:
            armed.clear()
            raise KeyboardInterrupt

    with opened(small()) as engine:
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            for turn in range(300):
                try:
                    armed.add(turn)
                    signal.setitimer(signal.ITIMER_REAL, 2e-5 * (1 + turn % 40))
                    for _ in range(40):
                        engine.why(0)
                    engine.submit(Request([1, 2], 1)).result(LIMIT_S)
                    armed.clear()
                except KeyboardInterrupt:
                    taken += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert taken > 50
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)


def test_a_receipt_that_was_forgotten_says_so(monkeypatch):
    monkeypatch.setattr(Recorder.__init__, "__defaults__", ("", 30))
    with opened(small()) as engine:
        result = engine.submit(Request(prompt_of(30), 60, ignore_eos=True)).result(LIMIT_S)
        with pytest.raises(EngineError, match="only the last 30 spans are kept"):
            _ = result.receipt


def test_a_run_that_close_cuts_short_says_so(monkeypatch):
    gate, runs = held_at(monkeypatch, DecodeStage, "step"), []
    with opened(small()) as engine:
        serving = started(lambda: runs.append(engine.serve(lengths((20, 9), (20, 9)))))
        gate.wait()
        closing = started(engine.close)
        engine._loop.core.over.wait(LIMIT_S)
        gate.open()
        joined([*serving, *closing])
        assert runs[0].interrupted and {r.finish_reason for r in runs[0].results} == {"cancelled"}
    with opened(small()) as engine:
        assert not engine.serve(lengths((20, 9))).interrupted


@pytest.mark.parametrize("preset", ["baseline", "colocated", "two_colocated", "split", "streamed", "staged", "dynamic"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"force_ids": [1, 2, 3]}])
def test_logits_that_are_not_finite_end_their_own_request(preset, sampling):
    model = load_model("tiny")
    with torch.no_grad():
        model.module.model.embed_tokens.weight[65] = float("inf")
    config = small(preset)
    with Engine(config, model) as engine:
        run = engine.serve([Request([65], 6, **sampling), Request(prompt_of(20), 6), Request([66, 65], 6, **sampling)])
    odd, sound, other = run.results
    assert {odd.finish_reason, other.finish_reason} == {"failed"} and odd.token_ids == []
    assert "logits of its new token 0 are not finite" in odd.error and "float32" in odd.error
    check_greedy(prompt_of(20), sound, 6)


def test_logits_that_overflow_in_decode_end_their_request_after_its_tokens():
    model = load_model("tiny")
    with torch.no_grad():
        model.module.model.embed_tokens.weight[65] = float("nan")
    with Engine(small(), model) as engine:
        forced = Request(prompt_of(20), force_ids=[1, 2, 65, 3, 4])
        odd, sound = engine.serve([forced, Request(prompt_of(20), 8)]).results
        assert odd.finish_reason == "failed" and odd.token_ids == [1, 2, 65]
        check_greedy(prompt_of(20), sound, 8)
