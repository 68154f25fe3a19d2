"""The pictures in figures/: each is one function of a recording, of measured rows or of the twin, and none of a clock.

`make figures` draws all of them again; the same data give the same bytes. `record` makes a new recording.
"""

import io
import textwrap
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
from disagg.show.plots import draw
from disagg.show.plots.flow_plot import busiest, flow_picture
from disagg.show.plots.law_plot import law_picture
from disagg.show.plots.palette import INK
from disagg.show.plots.picture import Picture
from disagg.show.plots.preset_plot import Rung, ladder_picture
from disagg.show.plots.summaries import sentence
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.trace.files import folder as made
from disagg.trace.files import whole
from disagg.trace.flow import Flow
from disagg.trace.results import Run

RECORDING = recordings.FOLDER / "seven_questions.jsonl.gz"
FRAMES, FILM_S = 48, 8.0  # of the film, and how long it takes
OPENING_S, LAST_S = 1.5, 3.0  # the first and the last frame stay


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
    """A run as it goes on: frames as PNGs, and the sentence of the last one."""

    frames: list[bytes]
    frame_s: float
    finding: str

    def save(self, path: str | Path) -> None:
        """Writes a GIF, whole or not at all; a frame holds only what differs from the one before."""
        images = [Image.open(io.BytesIO(frame)) for frame in self.frames]
        each = [round(1e3 * one) for one in (OPENING_S, *[self.frame_s] * (len(images) - 2), LAST_S)]
        with whole(path) as file:
            images[0].save(file, format="gif", save_all=True, append_images=images[1:], duration=each, loop=0)


def film(run: Run, request: int = 0) -> Film:
    """The way of one result in slow motion: it opens where most is under way, and closes on what was hidden."""
    line, result = timeline_picture(run, request), run.results[request]
    axes, before_ms = line.figure.axes[0], (result.arrival_ns - run.timeline.start_ns) / 1e6
    end_ms = axes.get_xlim()[1]
    opening = min(end_ms, max(0.0, (busiest(Flow(run)) - result.arrival_ns) / 1e6))
    times = [opening, *(end_ms * number / FRAMES for number in range(1, FRAMES + 1))]
    slower = f"The way of request {request}, {max(1, round(FILM_S / end_ms * 1e3))} times as slow as it was."
    words = [slower, *(stage(run, request, at_ms) for at_ms in times[1:-1]), sentence(run, request)]
    frames = []
    for at_ms, said in zip(times, words, strict=True):
        head = axes.axvline(at_ms, color=INK, linewidth=2.5)
        frames.append(_stacked(flow_picture(run, before_ms + at_ms), line, _strip(said)))
        head.remove()
    return Film(frames, FILM_S / FRAMES, words[-1])


def stage(run: Run, request: int, at_ms: float) -> str:
    """What the request waits for, so long after it arrived."""
    result = run.results[request]
    at_ns = result.arrival_ns + round(1e6 * at_ms)
    landed_ns = max((copy.end_ns for copy in run.timeline.hand_off(result.request)), default=0)
    if at_ns < (run.timeline.prefill_end_ns(result.request) or 0):
        return f"Prefill reads prompt {request}, layer after layer. What is ready leaves over the link meanwhile."
    if at_ns < landed_ns:
        return f"Token 1 is out. Token 2 waits for the K/V of {request} that are still on their way: that is E."
    return f"All K/V of request {request} have landed. Decode writes on, while prefill reads the next prompts."


def _strip(words: str) -> Picture:
    figure = draw.blank(0.62)
    figure.text(0.012, 0.5, textwrap.fill(words, 92), fontsize=draw.FONT_PT, va="center", color=INK, parse_math=False)
    return Picture(figure, words, words)


def _stacked(*pictures: Picture) -> bytes:
    """Pictures of one width above each other, as one PNG."""
    images = [Image.open(io.BytesIO(picture.png(fast=True))).convert("RGB") for picture in pictures]
    whole_page, y = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white"), 0
    for image in images:
        whole_page.paste(image, (0, y))
        y += image.height
    out = io.BytesIO()
    whole_page.quantize(256, dither=Image.Dither.NONE).save(out, format="png")
    return out.getvalue()


# ---- of a recording, and of measured rows ----------------------------------------------------------------------------


def first_run(recording: Path = RECORDING) -> Picture:
    """Seven questions through preset `streamed`."""
    return timeline_picture(Run.load(recording))


def demo_gif(recording: Path = RECORDING) -> Film:
    """The first of these questions as a film: its layers are computed and leave, and the next prompts follow."""
    return film(Run.load(recording))


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
