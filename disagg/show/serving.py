"""A run while it happens: served in another thread, looked at now and then, its answers as lines of text."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.threads import Joinable
from disagg.show.plots.summaries import plural
from disagg.trace.results import Result, Run
from disagg.trace.timeline import Timeline

LINES = 8  # requests whose text is shown
COLUMNS = 110  # letters of a line
TAIL = 64  # tokens of a line
LOOK_S = 0.25  # between two looks
REST = 20  # times as long as a look takes: looking costs at most a twentieth of the time
TURN_S, _SHOWING = 0.0002, threading.Lock()  # one view at a time: the turn is the whole process's

Decode = Callable[[list[int]], str] | None


class Followed(Protocol):
    """What can be waited for, stopped, and gives a run at its end."""

    def wait(self, timeout_s: float) -> bool: ...
    def stop(self) -> None: ...
    def run(self) -> Run: ...


class Serving:
    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self.engine, self._requests = engine, requests
        self._over = threading.Event()
        self._run: Run | None = None
        self._error: BaseException | None = None
        self._thread = Joinable(target=self._serve, name="disagg serving")
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._run = self.engine.serve(self._requests)
        except BaseException as error:  # `run` raises it again
            self._error = error
        finally:
            self._over.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether the run is over."""
        return self._over.wait(timeout_s)

    def stop(self) -> None:
        """Interrupts the run, repeatedly: the thread may not have begun."""
        while not self._over.wait(0.02):
            self.engine.interrupt()

    def run(self) -> Run:
        """The run after its end; raises the error that ended it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._run is not None, "a thread that ends without an error has served"
        return self._run


class Open:
    """Open requests of `submit`, which it neither serves nor ends."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: dict[int, Result] = {}

    def wait(self, timeout_s: float) -> bool:
        """Whether no request is open."""
        handles = self._engine.open_handles()
        self._seen |= {handle.so_far.request: handle.so_far for handle in handles}
        if handles:
            try:
                handles[0].result(timeout_s)
            except TimeoutError:
                return False
        return not self._engine.open_handles()

    def stop(self) -> None:
        """The requests go on."""

    def run(self) -> Run:
        """A run of the requests that were seen."""
        timeline, seen = self._engine.recorder.timeline, self._seen
        run = self._engine.recorded(list(seen.values()))
        start = min((result.arrival_ns for result in seen.values()), default=timeline.start_ns)
        spans = [span for span in timeline.spans.copy() if seen.keys() & set(span.requests)]
        marks = [mark for mark in timeline.marks.copy() if mark.at_ns >= start]
        moves = [move for move in timeline.moves.copy() if move.at_ns >= start]
        run.timeline = Timeline(spans, start, marks, moves, timeline.devices, timeline.sizes)
        return run


@contextmanager
def short_turns() -> Iterator[None]:
    """While a view is made, other threads wait for the interpreter 0.2 ms at most, not a millisecond each time."""
    with _SHOWING:
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, TURN_S))
        try:
            yield
        finally:
            sys.setswitchinterval(before)


def follow(serving: Followed, engine: Engine, show: Callable[[Run], object], every_s: float = LOOK_S) -> None:
    """Shows the run so far until it is over. It waits longer where showing takes long, so that serving goes on."""
    seen: dict[int, Result] = {}
    pause_s = every_s
    while not serving.wait(pause_s):
        began = time.perf_counter()
        timeline = engine.recorder.timeline
        open_now = [handle.so_far for handle in engine.open_handles()]
        seen |= {result.request: result for result in open_now if result.timeline is timeline}
        if seen:
            with short_turns():
                show(so_far(engine, seen))
        pause_s = max(every_s, REST * (time.perf_counter() - began))


def so_far(engine: Engine, seen: dict[int, Result]) -> Run:
    timeline = engine.recorder.timeline
    lists = {name: list(entries) for name, entries in timeline.records().items()}
    now = Timeline(lists["span"], timeline.start_ns, lists["mark"], lists["move"], timeline.devices, timeline.sizes)
    return Run(engine.config, [seen[number] for number in sorted(seen)], now)


def text_lines(results: list[Result], at_ns: int, decode: Decode) -> tuple[str, ...]:
    """A line for each arrived request with its text so far; only the last ones of many."""
    lines = []
    for number, result in enumerate(results):
        if result.arrival_ns <= at_ns:
            count = sum(at <= at_ns for at in result.token_times_ns)
            ended = bool(result.finish_reason) and result.ended_ns <= at_ns
            if not (count or ended):
                lines.append(f"{number}  no token yet")
                continue
            start = f"{number}  {plural(count, 'token')}{f', {result.finish_reason}' if ended else ''}: "
            text = (result.error or "") if ended else ""
            text = text or tail(text_of(result, count, ended, decode), COLUMNS - len(start))
            lines.append(f"{start}{text}"[:COLUMNS])
    return tuple(lines[-LINES:])


def text_of(result: Result, count: int, ended: bool, decode: Decode) -> str:
    """The text of the first `count` tokens; without `decode`, ids before the end and the whole text at it."""
    ids = result.token_ids[max(0, count - TAIL) : count]
    if decode is not None:
        return decode(ids)
    return result.text if ended and result.text else " ".join(map(str, ids))


def tail(text: str, columns: int) -> str:
    """The end of a text, on one line and without control characters."""
    plain = "".join(letter if letter.isprintable() else "↵" if letter == "\n" else " " for letter in text)
    return plain if len(plain) <= columns else "…" + plain[1 - columns :]
