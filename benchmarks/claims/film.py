"""A recorded run as a film: the timeline grows and the answers are written, in a GIF that any page can show."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from disagg.show.live import LINES
from disagg.show.player import RunSource
from disagg.show.plots.summaries import sentence
from disagg.trace.files import whole
from disagg.trace.results import Run

FRAMES, LAST_S = 90, 3.0  # of the film; how long its last frame stays


@dataclass
class Film:
    """Frames as PNGs, and the sentence of the run that they show."""

    frames: list[bytes]
    frame_s: float
    finding: str

    def save(self, path: str | Path) -> None:
        """Writes the GIF, whole or not at all; a frame holds only what differs from the one before."""
        images = [Image.open(io.BytesIO(frame)) for frame in self.frames]
        each = [round(1e3 * self.frame_s)] * (len(images) - 1) + [round(1e3 * LAST_S)]
        with whole(path) as file:
            images[0].save(file, format="gif", save_all=True, append_images=images[1:], duration=each, loop=0)


def film(run: Run, decode: Callable[[list[int]], str] | None = None, *, speed: float = 0.5) -> Film:
    """The whole run at a speed (0.5 is half as fast as it was), in one window of time."""
    source = RunSource(run, decode)
    end_ms = max(1.0, source.end_ms)
    frames = []
    for number in range(1, FRAMES + 1):
        at_ms = end_ms * number / FRAMES
        lines = source.lines(at_ms)
        padded = (*lines, *[""] * (min(LINES, len(run.results)) - len(lines)))  # every frame as tall as the last
        frames.append(source.frame.png(source.tape, at_ms, 1.02 * end_ms, padded))
    return Film(frames, end_ms / FRAMES / speed / 1e3, sentence(run))
