"""A panel with buttons for a running engine. Callbacks only put a wish into an inbox; one thread
takes wishes, moves the playhead, draws, and sleeps until the next wish if nothing moves.
"""

import queue
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ipywidgets

from disagg.plan.request import Request, listed
from disagg.run.engine import Engine
from disagg.run.threads import Joinable
from disagg.show.dials import Dials
from disagg.show.live import LINES, WINDOW_MS, Look, Serving, end_of
from disagg.show.plots.live_arrays import Tape
from disagg.show.plots.summaries import plural
from disagg.show.widgets import InCell, no_math, row, tight_labels
from disagg.trace.results import Run

UPDATES_PER_S = 8
SPEEDS = {"live": None, "1": 1.0, "1/2": 0.5, "1/5": 0.2, "1/20": 0.05}
PARTS = 1000  # of the time slider: if its range grew, front ends would send rounded old values back
_OPEN: dict[int, "Player"] = {}  # by engine: a new panel closes the old one


def panel(engine: Engine, requests: Iterable[Request]) -> "Player":
    """Start serves the requests; pause, step, scrub and slow motion move the view, and the engine goes on."""
    return Player(LiveSource(engine, listed(requests)), engine)


class Playhead:
    """A position in a recording, in ms: it follows the end (speed None), plays at a speed, or stands still."""

    def __init__(self, speed: float | None = None) -> None:
        self.at_ms, self.speed, self.playing = 0.0, speed, True

    def advance(self, elapsed_ms: float, end_ms: float) -> None:
        """Moves by the time passed, at most to the recording's end."""
        if self.playing:
            self.at_ms = end_ms if self.speed is None else min(end_ms, self.at_ms + elapsed_ms * self.speed)

    def play(self, end_ms: float) -> None:
        """Plays on, or from the start after the end; a second call pauses."""
        self.playing = not self.playing
        if self.playing and self.speed is not None and self.at_ms >= end_ms:
            self.at_ms = 0.0

    def step(self, tape: Tape, forward: bool) -> None:
        """Pauses at the next or the previous start or end of a span."""
        self.scrub(tape.next_edge(self.at_ms, forward))

    def scrub(self, at_ms: float) -> None:
        self.at_ms, self.playing = at_ms, False


class LiveSource:
    """An engine, and the requests that Start serves."""

    title = "Live panel"

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._serving: Serving | None = None
        self._look, self.what = Look(engine), plural(len(requests), "request")
        self.frame, self.dials = self._look.frame, Dials(engine)
        self.last: Run | None = None  # of Start

    def start(self) -> None:
        """Serves the requests; `follow` raises the engine's errors."""
        if self._serving is None:
            self._serving = Serving(self._engine, self._requests)

    @property
    def tape(self) -> Tape:
        return self._look.tape

    @property
    def over(self) -> bool:
        return self._serving is None

    def follow(self) -> None:
        """Takes new entries, and the run at its end."""
        self._look.follow()
        if self._serving is not None and self._serving.wait(0):
            serving, self._serving = self._serving, None
            self.last = serving.run()
            self._look.follow()

    @property
    def end_ms(self) -> float:
        return end_of(self.tape, self._look.results.values()) if self.over else self._look.now_ms

    def lines(self, at_ms: float) -> tuple[str, ...]:
        return self._look.lines(at_ms)

    def close(self) -> None:
        if self._serving is not None:
            self._serving.stop()
        self.dials.close()


class Player(InCell):
    """The controls, the picture, and lines of text. `last` of a panel is the last Run; `close()` ends everything."""

    def __init__(self, source: LiveSource, key: object) -> None:
        self.source, self._key = source, key
        self.playhead = Playhead()
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._closed, self._error = False, ""
        self._written = 0  # the ticker's last value of the time slider
        self._make_widgets()
        if (before := _OPEN.pop(id(key), None)) is not None:
            before.close()
        _OPEN[id(key)] = self
        self._thread = Joinable(target=self._tick, name="disagg panel")
        self._thread.start()

    # ---- what users do -----------------------------------------------------------------------------------------------

    @property
    def last(self) -> Run | None:
        return self.source.last

    def close(self) -> None:
        """Ends the run that it serves, its thread, and every widget. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(None)
        self._thread.join()
        self.source.close()
        super().close()
        if _OPEN.get(id(self._key)) is self:
            del _OPEN[id(self._key)]

    def wish(self, action: Callable[[], object]) -> None:
        """Puts a wish into the inbox of the thread that moves and draws."""
        self._inbox.put(action)

    def __repr__(self) -> str:
        controls = ", ".join("Pause" if button is self._pause else button.description for button in self.buttons)
        return (
            f"{self.source.title} of {self.source.what}: {controls}; speed {self.speed.label}; "
            f"rows {', '.join(self.source.frame.rows.values()) or 'none: nothing was recorded'}."
        )

    # ---- widgets -----------------------------------------------------------------------------------------------------

    def _make_widgets(self) -> None:
        actions = {
            "Start": ("Serve the requests", self._start),
            "Pause": ("Stop or move the playhead", lambda: self.playhead.play(self.source.end_ms)),
            "Back": ("To where the span before begins or ends", partial(self._step, False)),
            "Step": ("To where the next span begins or ends", partial(self._step, True)),
        }
        self.buttons = [ipywidgets.Button(description=name, tooltip=tip) for name, (tip, _) in actions.items()]
        self._pause = self.buttons[list(actions).index("Pause")]
        for button, (_, action) in zip(self.buttons, actions.values(), strict=True):
            button.on_click(lambda _, action=action: self._by_hand(action))
        options = [(name, index) for index, name in enumerate(SPEEDS)]  # None can't be an option's value
        self._speeds = list(SPEEDS.values())
        now, narrow = self._speeds.index(self.playhead.speed), ipywidgets.Layout(width="180px")
        look = dict(description="speed", tooltip="Slow motion of the recording", layout=narrow)
        self.speed = ipywidgets.Dropdown(options=options, value=now, **look)
        self.speed.observe(lambda change: self.wish(partial(self._set_speed, change.new)), "value")
        look = dict(description="time", tooltip="Move the playhead", layout=ipywidgets.Layout(width="600px"))
        self.time = ipywidgets.IntSlider(min=0, max=PARTS, readout=False, **look)
        self.clock = ipywidgets.Label()
        self.time.observe(self._on_time, "value")
        self.image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="900px"))
        self.words, *self.texts = tight_labels(1 + LINES)
        title = ipywidgets.Label(f"{self.source.title} of {self.source.what}")
        controls = [title, row(*self.buttons, self.speed), row(self.time, self.clock), self.source.dials.box]
        self.source.dials.connect(self._by_hand)
        self.panel = ipywidgets.VBox([*controls, self.image, self.words, *self.texts])

    def _by_hand(self, action: Callable[[], object]) -> None:
        """A button or a dial: clears the last error."""
        self.wish(lambda: setattr(self, "_error", ""))
        self.wish(action)

    def _on_time(self, change: Any) -> None:
        if change.new != self._written:  # by the user, not by the ticker
            self.wish(partial(self.playhead.scrub, change.new / PARTS * self.source.end_ms))

    # ---- one thread --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        before = time.perf_counter()
        while True:
            try:
                wish = self._inbox.get(timeout=None if self._at_rest() else 1 / UPDATES_PER_S)
            except queue.Empty:
                wish = self._idle
            if wish is None:
                return
            now = time.perf_counter()
            self._turn(wish, 1e3 * (now - before))
            before = now

    def _idle(self) -> None:
        """The wish of an update."""

    def _at_rest(self) -> bool:
        """Whether the next update would show the same as this one."""
        moves = self.playhead.playing and self.playhead.at_ms < self.source.end_ms
        return bool(self.image.value) and self.source.over and not moves

    def _turn(self, wish: Callable[[], object], elapsed_ms: float) -> None:
        self._try(self.source.follow)
        self.playhead.advance(elapsed_ms, self.source.end_ms)
        self._try(wish)  # even if the run has just failed
        self._try(self._draw)
        words = [self._error] if self._error else self.source.tape.gates(self.playhead.at_ms)
        self.words.value = no_math("; ".join(words))[:160]

    def _try(self, action: Callable[[], object]) -> None:
        """Calls a function and shows its error, which nothing else catches."""
        try:
            action()
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"

    def _draw(self) -> None:
        source, at_ms = self.source, self.playhead.at_ms
        self.image.value = source.frame.png(source.tape, at_ms, WINDOW_MS)
        self._written = round(PARTS * min(1.0, at_ms / max(1e-9, source.end_ms)))
        self.time.value = self._written
        self.clock.value = f"{at_ms / 1e3:.2f} s of {source.end_ms / 1e3:.2f} s"
        self._pause.description = "Pause" if self.playhead.playing else "Play"
        lines = source.lines(at_ms)
        for label, line in zip(self.texts, (*lines, *[""] * LINES), strict=False):
            label.value = no_math(line)

    # ---- wishes ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.source.start()
        self.playhead.playing, self.playhead.speed = True, self._speeds[self.speed.value]

    def _step(self, forward: bool) -> None:
        self.playhead.step(self.source.tape, forward)

    def _set_speed(self, index: int) -> None:
        self.playhead.speed = self._speeds[index]
