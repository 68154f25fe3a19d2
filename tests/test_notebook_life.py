"""Cells that are run again, interrupted, run out of order or killed: the next cell finds everything as it was."""

import contextlib
import ctypes
import gc
import linecache
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections import Counter
from pathlib import Path

import psutil
import pytest
from engine_tools import (
    LIMIT_S,
    Gate,
    after,
    before,
    check_greedy,
    check_run,
    held,
    held_at,
    lengths,
    opened,
    prompt_of,
    small,
    started,
    threads,
    tiny,
)
from interrupts import interrupt_main

import disagg
from disagg import Config, Engine, Request, simulate
from disagg.plan.errors import EngineError
from disagg.run import engine as engine_file
from disagg.run import executor as executor_file
from disagg.run import inbox as inbox_file
from disagg.run import loop as loop_file
from disagg.run import serving as serving_file
from disagg.run.decode_worker import DecodeStage
from disagg.run.handle import Handle
from disagg.run.kv_cache import KVCache
from disagg.run.machine import open_engines
from disagg.run.model.model import Model
from disagg.run.threads import Joinable
from disagg.trace.results import Run

ROOT = Path(disagg.__file__).parents[1]
RERUNS, BATCHES = 50, 3
WARM = 10  # runs until pools of the allocator and caches of Python are filled
GROWN_MIB = 8  # over 50 more; one engine's memories of K/V are as much, so one that stayed behind shows
#: Where an engine is built, led and taken down.
FILES = tuple(file.__file__ for file in (engine_file, loop_file, serving_file, inbox_file, executor_file))
SPARED = ("__enter__", "__exit__", "close")
ASKED = ((20, 6), (40, 3), (5, 9))


@pytest.fixture(autouse=True)
def nothing_left():
    before = threads()
    yield
    assert threads() == before == []
    assert not list(open_engines.OPEN)


def cell(preset: str = "dynamic", blocks: int = 2000) -> Run:
    """What a student runs again and again. Its memories of K/V are 3 × 2000 blocks."""
    with Engine(small(preset, prefill_blocks=blocks, decode_blocks=blocks), tiny()) as engine:
        return engine.serve(lengths(*ASKED))


def resident_mib() -> float:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 2**20


def grows_no_more(rerun) -> bool:
    """Is a batch of reruns soon met that takes no more memory? The allocator's pools fill at some time, and once; what
    stays behind of a rerun is there after each batch."""
    for _ in range(BATCHES):
        first = resident_mib()
        for _ in range(RERUNS):
            rerun()
        if resident_mib() - first < GROWN_MIB:
            return True
    return False


def test_fifty_reruns_of_a_cell_leave_no_thread_no_engine_and_no_memory():
    tokens = [[result.token_ids for result in cell().results] for _ in range(WARM)]

    def rerun():
        tokens.append([result.token_ids for result in cell().results])
        assert not open_engines.OPEN and not threads()

    assert grows_no_more(rerun)
    assert all(ids == tokens[0] for ids in tokens)


def test_one_engine_that_stays_behind_would_show():
    """The control of the test above: its memory is more than the growth that is let pass."""
    with opened(small("dynamic", prefill_blocks=2000, decode_blocks=2000)) as engine:
        assert sum(cache.bytes for cache in engine.executor.caches.values()) > 2 * GROWN_MIB * 2**20


def test_a_cell_without_a_with_is_run_again_and_every_engine_works():
    engines = [Engine(small("staged"), tiny()) for _ in range(2)]
    for engine in engines:
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)
    engines[0].close()
    with pytest.raises(EngineError, match="this engine is closed; build a new one"):
        engines[0].serve(lengths((20, 5)))
    check_greedy(prompt_of(20), engines[1].serve(lengths((20, 5))).results[0], 5)
    engines[1].close()


class Interrupting:
    """Raises KeyboardInterrupt in this thread before the nth line of the package.

    Left out: a line that begins a `with`, where the tracer would raise between its body and the lock's release, and no
    signal is looked at; the moment after building and before `with` has it, and the one before closing has begun. An
    engine that is interrupted in those is open, and nobody's; Python leaves no way to be sooner.
    """

    def __init__(self, nth: int | None, within: str | tuple[str, ...] = str(ROOT / "disagg")):
        self.nth, self.within, self.lines, self.where = nth, within, 0, ""

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error):
        sys.settrace(self._before)

    def _enter(self, frame, event, arg):
        code = frame.f_code
        ours = code.co_filename.startswith(self.within) and code.co_name not in SPARED
        return self._line if ours else None

    def _line(self, frame, event, arg):
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event != "line" or text.startswith("with "):
            return self._line
        self.lines += 1
        if self.lines == self.nth:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {text}"
            raise KeyboardInterrupt
        return self._line


class Noting(Interrupting):
    """Interrupts nothing; notes at which line of the run each line of FILES, and each of their functions, came."""

    def __init__(self, *within: str):
        super().__init__(None, *within)
        self.first: dict[tuple[str, int], int] = {}
        self.began: dict[str, int] = {}
        self.ended: dict[str, int] = {}

    def _line(self, frame, event, arg):
        known = self.lines
        super()._line(frame, event, arg)
        if self.lines > known and frame.f_code.co_filename in FILES:
            self.first.setdefault((frame.f_code.co_filename, frame.f_lineno), self.lines)
            self.began.setdefault(frame.f_code.co_name, self.lines)
            self.ended[frame.f_code.co_name] = self.lines
        return self._line


@pytest.fixture(scope="module")
def noted():
    cell("staged")
    with Noting() as noted:
        cell("staged")
    assert noted.lines > 1000
    return noted


def test_fifty_reruns_interrupted_anywhere_leave_nothing(monkeypatch, noted):
    """Building, preparing, submitting, waiting, closing: the cell ends, and the next one finds nothing of it."""
    draw, seen, waits = random.Random(0), Counter(), []
    began, ended = noted.began, noted.ended
    edges = [1, began["serve"], began["_submit"], ended["_submit"], began["_close"], noted.lines]

    def waiting(self, *timeout):
        waits.append(self)
        if len(waits) == limit:
            raise KeyboardInterrupt

    before(monkeypatch, Handle, "result", waiting)

    def interrupted_cell():
        nonlocal limit
        phase = draw.randrange(6)
        limit = draw.randrange(1, 6) if phase == 5 else None
        waits.clear()
        with Interrupting(draw.randrange(*edges[phase : phase + 2]) if phase < 5 else None) as moment:
            try:
                run = cell("staged")
            except KeyboardInterrupt:
                seen[phase, "raised"] += 1
            else:
                assert {result.finish_reason for result in run.results} <= {"cancelled", "length", "eos"}
                seen[phase, "returned" if run.interrupted else "missed"] += 1
        assert threads() == [] and not list(open_engines.OPEN), moment.where

    limit = None
    for _ in range(WARM):
        interrupted_cell()
    assert grows_no_more(interrupted_cell), seen
    assert {phase for phase, what in seen if what == "raised"} >= {0, 1, 3, 4}, seen
    assert seen[2, "returned"] and seen[5, "returned"] and seen.total() >= RERUNS + WARM, seen
    assert sum(count for (_, what), count in seen.items() if what == "missed") < seen.total() / 10, seen
    run = cell("staged", 64)
    check_run(run, lengths(*ASKED))


def test_every_line_of_the_engine_that_a_cell_meets_can_be_interrupted():
    cell("staged", 64)
    with Noting(FILES) as noted:
        cell("staged", 64)
    assert len(noted.first) > 80
    for line, number in sorted(noted.first.items()):
        with Interrupting(number, FILES) as moment, contextlib.suppress(KeyboardInterrupt):
            assert cell("staged", 64).interrupted or not moment.where, moment.where
        assert threads() == [] and not list(open_engines.OPEN), (line, moment.where)


@pytest.mark.parametrize("part", range(6))
def test_an_engine_that_goes_on_serves_after_an_interrupt_anywhere(part):
    """The engine of an earlier cell: whatever line of `serve` was cut short, the next `serve` answers."""
    draw = random.Random(part)
    with opened(small("staged")) as engine:
        with Noting() as noted:
            engine.serve(lengths(*ASKED))
        for start in (1, noted.began["_submit"]) * 6:
            with Interrupting(draw.randrange(start, noted.lines)), contextlib.suppress(KeyboardInterrupt):
                engine.serve(lengths(*ASKED))
        engine.watch.until_idle()
        assert engine.open_handles() == []
        run = engine.serve(lengths(*ASKED))
        assert not run.interrupted and [result.finish_reason for result in run.results] == ["length"] * 3


def test_an_interrupt_while_closing_waits_for_a_step_ends_all_the_same(monkeypatch):
    gate, closings = held_at(monkeypatch, DecodeStage, "step"), []

    def closing(self):
        closings.append(self)
        if len(closings) == 2:
            gate.open()

    def join(self, timeout=None):
        if len(closings) == 1 and self.name == "disagg decode 0":
            started(interrupt_main)

    before(monkeypatch, Engine, "_close", closing)
    before(monkeypatch, Joinable, "join", join)
    engine = Engine(small(), tiny())
    handle = engine.submit(lengths((20, 9))[0])
    gate.wait()
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert len(closings) == 2 and handle.result(LIMIT_S).finish_reason == "cancelled"
    assert threads() == [] and held(engine) == {} and not engine.executor.caches
    engine.close()


def test_after_a_second_interrupt_closing_again_goes_on(monkeypatch):
    gate, parts = held_at(monkeypatch, DecodeStage, "step"), []

    def cut_short(self):
        parts.append(self)
        if len(parts) < 3:
            raise KeyboardInterrupt
        gate.open()

    before(monkeypatch, Engine, "_end", cut_short)
    engine = Engine(small(), tiny())
    engine.submit(lengths((20, 9))[0])
    gate.wait()
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert threads(), "not closed yet"
    with pytest.raises(EngineError, match="closed"):
        engine.submit(lengths((5, 5))[0])
    engine.close()
    assert threads() == [] and len(parts) == 3


def test_an_interrupt_while_a_worker_is_built_stops_what_was_started(monkeypatch):
    go_on = threading.Event()

    def prepare(self, progress):
        interrupt_main()
        assert go_on.wait(LIMIT_S)

    before(monkeypatch, DecodeStage, "prepare", prepare)
    before(monkeypatch, Engine, "_end", lambda self: go_on.set())
    with pytest.raises(KeyboardInterrupt):
        Engine(small("staged"), tiny())
    assert threads() == []
    monkeypatch.undo()
    assert not cell("staged", 64).interrupted


@pytest.mark.parametrize("name", ["disagg engine", "disagg decode 0", "disagg direct 0"])
def test_an_interrupt_while_a_thread_starts_stops_it(monkeypatch, name):

    def running(self, _):
        if self.name == name:
            raise KeyboardInterrupt

    after(monkeypatch, threading.Thread, "start", running)
    with pytest.raises(KeyboardInterrupt):
        Engine(small(), tiny())
    assert threads() == []


def test_an_interrupted_wait_for_a_thread_can_be_repeated():
    """What `threading.Thread.join` of Python 3.11 can't. The signal comes while the main thread waits."""
    gate, joining, main = Gate(), threading.Event(), threading.main_thread().ident

    def work():
        assert joining.wait(LIMIT_S)
        while sys._current_frames()[main].f_code.co_name not in ("wait", "_wait_for_tstate_lock"):
            pass
        interrupt_main()
        gate.hold()

    thread = Joinable(target=work, name="disagg joined")
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        joining.set()
        thread.join()
    thread.join(0.01)
    assert thread.is_alive()
    gate.open()
    thread.join()
    assert not thread.is_alive()
    Joinable(target=work).join()  # never started


def test_cells_out_of_order_are_told_in_words():
    engine = Engine(small(), tiny())
    handle = engine.submit(lengths((20, 400), ignore_eos=True)[0])
    engine.close()
    assert handle.result(LIMIT_S).finish_reason == "cancelled" and handle.done
    handle.cancel()
    assert "request 0 is not open" in engine.why(handle) and engine.open_handles() == []
    engine.interrupt()
    for call in (lambda: engine.serve(lengths((5, 2))), lambda: engine.submit(Request("a")),
                 lambda: engine.retune(max_batch=2), engine.__enter__):  # fmt: skip
        with pytest.raises(EngineError, match="this engine is closed; build a new one"):
            call()
    engine.close()


def test_a_second_engine_without_room_names_what_the_first_one_holds():
    too_much = small(decode_blocks=10**7)
    with pytest.raises(EngineError, match="bytes asked") as alone:
        Engine(too_much, tiny())
    with opened(small("paged")) as engine:
        nbytes = sum(cache.bytes for cache in engine.executor.caches.values())
        words = rf"Lower prefill_blocks, .* Engines still open: 1; they hold {nbytes:,} bytes on cpu; close\(\) those"
        with pytest.raises(EngineError, match=words):
            Engine(too_much, tiny())
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)
    assert "still open" not in str(alone.value)


def test_two_engines_share_a_model_and_one_may_break(monkeypatch):
    with opened(small("staged")) as one, opened(small("colocated"), broken=True) as other:
        with monkeypatch.context() as patch:
            patch.setattr(other.controller, "handle", lambda event, now: 1 / 0)
            patch.setattr(threading, "excepthook", lambda args: None)
            with pytest.raises(EngineError, match="the controller failed: ZeroDivisionError"):
                other.serve(lengths(*ASKED))
        run = one.serve(lengths(*ASKED))
        check_run(run, lengths(*ASKED))
        with pytest.raises(EngineError, match="broken and must be rebuilt"):
            other.submit(Request("a"))


class Big:
    """Something that is seen to go."""


def failing_with_something_big(monkeypatch, method: str, error: type) -> list[weakref.ref]:
    """Each call of the model's method raises with one; the list fills with references to them."""
    alive = []

    def failing(self, *args):
        big = Big()
        alive.append(weakref.ref(big))
        raise error("the device is gone", big)

    before(monkeypatch, Model, method, failing)
    return alive


@pytest.mark.parametrize("method", ["prefill", "decode"])
def test_a_workers_error_reaches_the_cell_with_its_cause_and_without_its_frames(monkeypatch, method):
    alive = failing_with_something_big(monkeypatch, method, SystemError)
    with opened(small()) as engine:
        result = engine.serve(lengths((20, 5))).results[0]
        assert result.finish_reason == "failed" and "SystemError: ('the device is gone'" in result.error
        monkeypatch.undo()
        check_greedy(prompt_of(20), engine.serve(lengths((20, 5))).results[0], 5)
    gc.collect()
    assert alive and all(big() is None for big in alive)


def test_what_breaks_the_engine_is_raised_with_its_cause_and_keeps_no_tensor(monkeypatch):
    """The exception is held, as a notebook holds the last one; the memories of K/V and what the worker had are gone."""
    alive = failing_with_something_big(monkeypatch, "decode", SystemExit)
    words = r"decode 0 died: SystemExit: \('the device is gone'"
    with pytest.raises(EngineError, match=words) as caught, Engine(small(), tiny()) as engine:
        caches = [weakref.ref(cache) for cache in engine.executor.caches.values()]
        engine.serve(lengths((20, 5)))
    gc.collect()
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert [big() for big in alive] == [None] and [cache() for cache in caches] == [None, None]
    assert caught.value.run.results[0].finish_reason == "failed"


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_memory_refused_at_the_start_is_reported_and_what_was_taken_is_freed(monkeypatch, nth):
    allocated, allocate = [], KVCache._allocate

    def refusing(self, pinned):
        if len(allocated) == nth - 1:
            raise MemoryError("5 bytes asked")
        allocated.append(weakref.ref(self))
        return allocate(self, pinned)

    monkeypatch.setattr(KVCache, "_allocate", refusing)
    with pytest.raises(MemoryError, match="bytes asked") as caught:
        Engine(small("paged"), tiny())
    gc.collect()
    assert len(traceback.extract_tb(caught.tb)) > 2, "the frames are still there"
    assert [cache() for cache in allocated] == [None] * (nth - 1)


SERVE = """
import sys, threading
from pathlib import Path
from disagg import Config, Engine, Request
from disagg.run.decode_worker import DecodeStage
step, steps = DecodeStage.step, []
def told(self, command):
    steps.append(1)
    if len(steps) == 3 and sys.argv[1] == "killed":
        print("serving", flush=True)
        threading.Event().wait()
    return step(self, command)
DecodeStage.step = told
with Engine(Config.preset("dynamic", model="tiny", prefill_blocks=64, decode_blocks=64, host_blocks=64)) as engine:
    run = engine.serve([Request("Why?", 8, ignore_eos=True)])
run.save("run.jsonl", overwrite=True)
print("saved", len(run.results[0].token_ids), flush=True)
"""
SAVE = """
import sys, threading
from disagg import Config, Request, simulate
from disagg.trace import files
run = simulate(Config(model="tiny"), [Request([1, 2], 2)])
replace = files.Path.replace
def held(self, target):
    print("saving", flush=True)
    threading.Event().wait()
files.Path.replace = held
run.save("run.jsonl", overwrite=True)
"""


def start(code: str, folder: Path, *words: str) -> subprocess.Popen:
    places = {name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "DISAGG_CACHE", "MPLCONFIGDIR")}
    env = {**os.environ, **places, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, env=env, text=True, stdout=subprocess.PIPE
    )


def kill(process: subprocess.Popen, word: str):
    """With -9, once it has said the word. It must not have children: nobody would end them."""
    try:
        assert process.stdout.readline() == word + "\n"
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert children == [] and process.returncode == -signal.SIGKILL


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_kernel_killed_while_it_serves_leaves_nothing_and_the_next_start_works(tmp_path):
    kill(start(SERVE, tmp_path, "killed"), "serving")
    assert files_in(tmp_path) == []
    process = start(SERVE, tmp_path, "whole")
    out = process.communicate(timeout=110)[0]
    assert out == "saved 8\n" and files_in(tmp_path) == ["run.jsonl"]
    assert len(Run.load(tmp_path / "run.jsonl").results) == 1


def test_a_kernel_killed_while_it_saves_leaves_the_old_file_and_a_draft_that_the_next_save_removes(tmp_path):
    """A draft that nobody has written to for a minute is nobody's; a younger one may be another kernel's."""
    run = simulate(Config(model="tiny"), [Request([1, 2, 3], 5)])
    run.save(tmp_path / "run.jsonl")
    content = (tmp_path / "run.jsonl").read_bytes()
    process = start(SAVE, tmp_path)
    kill(process, "saving")
    draft = tmp_path / f"run.{process.pid}.draft.jsonl"
    assert (tmp_path / "run.jsonl").read_bytes() == content and draft.exists()
    run.save(tmp_path / "run.jsonl", overwrite=True)
    assert draft.exists(), "it is young"
    mine = ["run.12a.draft.jsonl", "run.draft.jsonl", "other.12.draft.jsonl", "run.12.draft.json"]
    for path in (draft, *(tmp_path / name for name in mine)):
        path.touch()
        old = path.stat().st_mtime - 61
        os.utime(path, (old, old))
    run.save(tmp_path / "run.jsonl", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted(["run.jsonl", *mine])
