"""Where in a recording one looks. Times in ms since its start."""

from disagg.show.plots.live_arrays import Tape

SPEEDS = {"live": None, "1": 1.0, "1/2": 0.5, "1/5": 0.2, "1/20": 0.05}


class Playhead:
    """It follows the end (speed None), or plays at a speed, or stands where it was put."""

    def __init__(self, speed: float | None = None) -> None:
        self.at_ms, self.speed, self.playing = 0.0, speed, True

    def advance(self, elapsed_ms: float, end_ms: float) -> None:
        """Time has passed; nothing beyond the recording's end can be shown."""
        if self.playing:
            self.at_ms = end_ms if self.speed is None else min(end_ms, self.at_ms + elapsed_ms * self.speed)

    def play(self, end_ms: float) -> None:
        """On, or from the start again where the end was reached; a second call pauses."""
        self.playing = not self.playing
        if self.playing and self.speed is not None and self.at_ms >= end_ms:
            self.at_ms = 0.0

    def step(self, tape: Tape, forward: bool) -> None:
        """To the next or the last place where a span begins or ends, and stand there."""
        self.scrub(tape.next_edge(self.at_ms, forward))

    def scrub(self, at_ms: float) -> None:
        self.at_ms, self.playing = at_ms, False
