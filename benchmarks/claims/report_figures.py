"""The pictures in figures/: each is one function of a recording, of measured rows or of the twin, and none of a clock.

`make figures` draws all of them again; the same data give the same bytes. `record` makes a new recording.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.claims import claims_file, measured, simulated
from benchmarks.claims.report_plots import gain_picture, goodput_picture
from disagg.plan.config import PRESETS, Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.show import recordings
from disagg.show.example_prompts import QUESTIONS
from disagg.show.live import LINES
from disagg.show.player import RunSource
from disagg.show.plots.law_plot import law_picture
from disagg.show.plots.picture import Picture
from disagg.show.plots.preset_plot import Rung, ladder_picture
from disagg.show.plots.summaries import sentence
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.trace.files import folder as made
from disagg.trace.files import whole
from disagg.trace.results import Run

RECORDING = recordings.FOLDER / "seven_questions.jsonl.gz"
FRAMES, SPEED, LAST_S = 90, 0.5, 3.0  # of the film; half as fast as the run was; how long its last frame stays


def record(path: str | Path = RECORDING, model: str = "smollm2", new_tokens: int = 24) -> Run:
    """Serves seven questions, 0.2 s apart, over a link about as fast as this machine computes, and keeps the run."""
    from disagg.run.engine import Engine

    requests = [
        Request(question, max_new_tokens=new_tokens, arrival_s=0.2 * index) for index, question in enumerate(QUESTIONS)
    ]
    with Engine(Config.preset("streamed", model=model, link=Link.ratio(0.8))) as engine:
        engine.serve(requests[:1])  # the first pass of a process also pays for start-up
        run = engine.serve(requests)
    run.save(path, overwrite=True)
    return run


class Film(NamedTuple):
    """A run as it goes on: frames as PNGs, and the sentence of the run that they show."""

    frames: list[bytes]
    frame_s: float
    finding: str

    def save(self, path: str | Path) -> None:
        """Writes a GIF, whole or not at all; a frame holds only what differs from the one before."""
        images = [Image.open(io.BytesIO(frame)) for frame in self.frames]
        each = [round(1e3 * self.frame_s)] * (len(images) - 1) + [round(1e3 * LAST_S)]
        with whole(path) as file:
            images[0].save(file, format="gif", save_all=True, append_images=images[1:], duration=each, loop=0)


def film(run: Run, decode: Callable[[list[int]], str] | None = None) -> Film:
    """The whole run in one window of time."""
    source = RunSource(run, decode)
    end_ms = max(1.0, source.end_ms)
    frames = []
    for number in range(1, FRAMES + 1):
        at_ms = end_ms * number / FRAMES
        lines = source.lines(at_ms)
        padded = (*lines, *[""] * (min(LINES, len(run.results)) - len(lines)))  # every frame as tall as the last
        frames.append(source.frame.png(source.tape, at_ms, 1.02 * end_ms, padded))
    return Film(frames, end_ms / FRAMES / SPEED / 1e3, sentence(run))


# ---- of a recording, and of measured rows ----------------------------------------------------------------------------


def first_run(recording: Path = RECORDING) -> Picture:
    """Seven questions through preset `streamed`."""
    return timeline_picture(Run.load(recording))


def demo_gif(recording: Path = RECORDING) -> Film:
    """The same questions as a film: spans, queues and answers as they come, at half speed."""
    run = Run.load(recording)
    return film(run, _decoder(run.config.model))


def _decoder(model: str) -> Callable[[list[int]], str]:
    from disagg.run.model.text import ByteText
    from disagg.run.model.tokenizer_text import TokenizerText
    from disagg.run.model.weights import convert_smollm2

    return ByteText().decode if model == "tiny" else TokenizerText(convert_smollm2(), chat=False).decode


def demo() -> Picture:
    """The ladder that `python -m disagg demo` climbs, from its measured rows."""
    rows = measured.rows(claims_file.ROOT, "demo")
    return ladder_picture([_rung(name, rows) for name in PRESETS if f"tokens_per_s[{name}]" in rows])


def _rung(name: str, rows: Mapping[str, float]) -> Rung:
    ttft, gap, rate = (rows[f"{row}[{name}]"] for row in ("ttft_p50_s", "second_token_gap_p50_s", "tokens_per_s"))
    return Rung(name, ttft, gap, rate, rows.get(f"hidden_fraction[{name}]"))


# ---- of the twin -----------------------------------------------------------------------------------------------------


def law_report() -> Picture:
    """The report's 60 and 96 % on the law, as the twin finds them on two L4."""
    values = simulated.overlap().values
    points = [(values[f"ratio[{percent}]"], percent / 100) for percent in (60, 96)]
    return law_picture({"60 % and 96 % on two L4, by the twin": points}, layers=32)


def gain() -> Picture:
    """The report's 20x and 4x as a number of rows."""
    rows = (2, 4, 8, 16, 32)
    curves = {
        preset: [(count, simulated.over(preset, count, "baseline", 1)[0]) for count in rows]
        for preset in simulated.PRESETS_COMPARED
    }
    return gain_picture(curves, (4, 20), simulated.HARDWARE)


def goodput() -> Picture:
    """Goodput of a split pair, of its rival, and of one L4, under a narrow and a wider limit."""
    return goodput_picture(simulated.goodput_curves(), simulated.HARDWARE)


#: How each is made, and its file's name.
FIGURES: dict[str, tuple[Callable[..., Picture | Film], str]] = {
    "first_run": (first_run, "first_run.png"),
    "demo_gif": (demo_gif, "demo.gif"),
    "demo": (demo, "demo.png"),
    "law_report": (law_report, "law_report.png"),
    "gain_2xL4": (gain, "gain_2xL4.png"),
    "goodput_2xL4": (goodput, "goodput_2xL4.png"),
}


def make(name: str, folder: str | Path = "figures", **options: Any) -> Path:
    """Draws figure `name` and writes its file into the folder."""
    if name not in FIGURES:
        raise ValueError(f"figure {name!r} is unknown; known: {', '.join(FIGURES)}")
    draw, file = FIGURES[name]
    path = Path(folder) / file
    made(path.parent)
    draw(**options).save(path)
    return path
