"""A run while it happens: one display that the main thread draws a few times a second. Without a notebook it prints its
sentence and serves all the same. The display with controls is in `disagg.show.player`.
"""

import base64
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from disagg.plan.request import Request, listed
from disagg.run.clock import now_ns
from disagg.run.engine import Engine
from disagg.run.machine.notebook import tell_interrupt
from disagg.run.threads import Joinable
from disagg.show.plots.live_arrays import Tape, in_order, rows_of
from disagg.show.plots.live_frame import COLUMNS, Frame
from disagg.show.plots.summaries import plural
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.trace.recorder import gauges
from disagg.trace.results import Result, Run
from disagg.trace.timeline import Timeline

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

WINDOW_MS = 6000.0
LINES = 8  # requests whose text is shown
TAIL = 64  # tokens of a line


def watch(engine: Engine, requests: Iterable[Request] | None = None, updates_per_s: float = 8) -> Run:
    """Serves requests and shows the timeline meanwhile; without requests, watches until none is open.

    An interrupt ends the requests it serves, as in `engine.serve`, and returns; those of `submit` go on.
    """
    requests = None if requests is None else listed(requests)
    look, subject = Look(engine), "open requests" if requests is None else plural(len(requests), "request")
    words = f"Live timeline of {subject}; rows from the top: {', '.join(look.tape.rows.values())}."
    screen, interrupted = Screen(words), False
    serving = Open(engine) if requests is None else Serving(engine, requests)
    try:
        while not serving.wait(1 / updates_per_s):
            look.follow()
            screen.show(look.png(), f"{words} {look.alt()}")
    except KeyboardInterrupt:
        serving.stop()
        interrupted = True
    run = serving.run(look)
    picture = timeline_picture(run)
    screen.show(picture.png(), picture.alt)
    if interrupted:
        tell_interrupt(run)
    return run


class Look:
    """The view of an engine: a tape that follows its timeline, a frame, and the text of its requests."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        rows = rows_of(engine.config)
        names = {name for name, _ in gauges(engine.controller.state) if not name.startswith("gate ")}
        names |= {"ring"} & set(engine.recorder.timeline.sizes)
        self.frame = Frame(rows, in_order(names))
        self._begin(engine.recorder.timeline, now_ns())

    def _begin(self, timeline: Timeline, origin_ns: int) -> None:
        self.tape = Tape(timeline, self.frame.rows, origin_ns)
        self.results: dict[int, Result] = {}

    def follow(self) -> None:
        """Takes new entries; a new run starts its own tape, which stays after its end."""
        timeline = self.engine.recorder.timeline
        if timeline is not self.tape.timeline and timeline.start_ns:
            self._begin(timeline, timeline.start_ns)
        self.tape.follow()
        for handle in self.engine.open_handles():
            if timeline is self.tape.timeline and handle.so_far.timeline is timeline:
                self.results[handle.so_far.request] = handle.so_far

    @property
    def now_ms(self) -> float:
        return self.tape.ms(now_ns())

    def lines(self, at_ms: float) -> tuple[str, ...]:
        results = [self.results[number] for number in sorted(self.results)]
        return text_lines(results, self.tape.origin_ns + round(1e6 * at_ms), self.engine.model.decode_text)

    def png(self) -> bytes:
        lines = self.lines(at_ms := self.now_ms)
        return self.frame.png(self.tape, at_ms, WINDOW_MS, (*lines, *[""] * (LINES - len(lines))))

    def alt(self) -> str:
        tokens = sum(len(result.token_ids) for result in self.results.values())
        ended = sum(bool(result.finish_reason) for result in self.results.values())
        return f"At {self.now_ms / 1e3:.1f} s: {plural(tokens, 'token')}, {plural(ended, 'request')} ended."


class Serving:
    """`engine.serve` in another thread."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._over = threading.Event()
        self._run: Run | None = None
        self._error: BaseException | None = None
        self._thread = Joinable(target=self._serve, name="disagg serving")
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._run = self._engine.serve(self._requests)
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
            self._engine.interrupt()

    def run(self, look: "Look | None" = None) -> Run:
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

    def wait(self, timeout_s: float) -> bool:
        """Whether no request is open."""
        if handles := self._engine.open_handles():
            try:
                handles[0].result(timeout_s)
            except TimeoutError:
                return False
        return not self._engine.open_handles()

    def stop(self) -> None:
        """The requests go on."""

    def run(self, look: Look) -> Run:
        """A run of the requests that were seen."""
        look.follow()
        timeline, seen = look.tape.timeline, set(look.results)
        spans = [span for span in timeline.spans.copy() if seen & set(span.requests)]
        start = min((result.arrival_ns for result in look.results.values()), default=look.tape.origin_ns)
        marks = [mark for mark in timeline.marks.copy() if mark.at_ns >= start]
        moves = [move for move in timeline.moves.copy() if move.at_ns >= start]
        run = self._engine.recorded(list(look.results.values()))
        run.timeline = Timeline(spans, start, marks, moves, timeline.devices, timeline.sizes)
        return run


class Screen:
    """One display that is redrawn with the same plain text; outside a notebook, that text once."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._handle: DisplayHandle | None = None
        self._shown = in_notebook()
        if not self._shown:
            print(words)

    def show(self, png: bytes, alt: str) -> None:
        if not self._shown:
            return
        from IPython.display import DisplayHandle

        data = {"image/png": base64.b64encode(png).decode(), "text/plain": self._words}
        metadata = {"image/png": {"alt": alt, "width": 900}}
        if self._handle is None:
            self._handle = DisplayHandle()
            self._handle.display(data, raw=True, metadata=metadata)
        else:
            self._handle.update(data, raw=True, metadata=metadata)


def in_notebook() -> bool:
    """Whether a front end can replace a picture; a terminal's IPython has no kernel."""
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def text_lines(results: list[Result], at_ns: int, decode: Callable[[list[int]], str] | None) -> tuple[str, ...]:
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


def end_of(tape: Tape, results: Iterable[Result]) -> float:
    """The end of the last span and request, in ms."""
    return max([tape.end_ms, *(tape.ms(result.ended_ns) for result in results if result.finish_reason)])


def text_of(result: Result, count: int, ended: bool, decode: Callable[[list[int]], str] | None) -> str:
    """The text of the first `count` tokens; without `decode`, ids before the end and the whole text at it."""
    ids = result.token_ids[max(0, count - TAIL) : count]
    if decode is not None:
        return decode(ids)
    return result.text if ended and result.text else " ".join(map(str, ids))


def tail(text: str, columns: int) -> str:
    """The end of a text, on one line and without control characters."""
    plain = "".join(letter if letter.isprintable() else "↵" if letter == "\n" else " " for letter in text)
    return plain if len(plain) <= columns else "…" + plain[1 - columns :]
