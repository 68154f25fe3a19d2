"""The timeline as letters: `python -m disagg watch`. Each kind has a glyph of its own, so that colour is not needed."""

from math import floor

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from disagg.cli.tape import Tape, gauges_of, kinds_of, rows_of, said
from disagg.plan.request import Request
from disagg.run.clock import now_ns
from disagg.run.engine import Engine
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.summaries import row_names, sentence
from disagg.show.serving import Serving, follow, text_lines
from disagg.trace.results import Result, Run

GLYPHS = {"prefill": "█", "link": "▒", "decode": "▄", "paging": "x"}
LEVELS = " ▁▂▃▄▅▆▇█"
WINDOW_MS = 6000.0
NAMES, VALUES = 15, 13  # columns of a row's name, and of a gauge's value


def watch(engine: Engine, requests: list[Request], console: Console, updates_per_s: float = 8) -> Run:
    """Serves requests and draws meanwhile; an interrupt ends them. Without a terminal, one picture is printed."""
    serving = Serving(engine, requests)
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                follow(
                    serving,
                    engine,
                    lambda run: live.update(frame(engine, run, console.width), refresh=True),
                    1 / updates_per_s,
                )
        while not serving.wait(1.0):
            pass
    except KeyboardInterrupt:
        serving.stop()
    run = serving.run()
    console.print(whole(run, console.width))
    return run


def frame(engine: Engine, run: Run, width: int) -> Group:
    """The last seconds of a run that is under way."""
    tape = Tape(engine.recorder.timeline, rows_of(engine.config))
    lines = text_lines(run.results, now_ns(), engine.model.decode_text)
    return picture(tape, gauges_of(tape.timeline), tape.ms(now_ns()), WINDOW_MS, lines, width)


def whole(run: Run, width: int) -> Group:
    tape = Tape(run.timeline, row_names(run.timeline))
    end_ms = max(1.0, end_of(tape, run.results))
    lines = text_lines(run.results, tape.origin_ns + round(1e6 * end_ms) + 1, None)
    drawn = picture(tape, gauges_of(run.timeline), end_ms, end_ms, lines, width, still=True)
    return Group(drawn, Text(sentence(run)))


def end_of(tape: Tape, results: list[Result]) -> float:
    return max([tape.end_ms, *(tape.ms(result.ended_ns) for result in results if result.finish_reason)])


def picture(
    tape: Tape,
    gauges: list[str],
    at_ms: float,
    window_ms: float,
    lines: tuple[str, ...],
    width: int,
    still: bool = False,
) -> Group:
    """Rows of blocks, gauges, the scale of time, and lines of text as they are; no longer than the terminal is wide."""
    window = (0.0, window_ms) if still else window_for(at_ms, window_ms)
    columns = max(10, width - NAMES - VALUES - 2)
    table = Table(box=None, padding=0, show_header=False, width=NAMES + columns + VALUES + 2)
    for size in (NAMES + 1, columns, VALUES + 1):
        table.add_column(width=size, no_wrap=True, overflow="ellipsis")
    for row, name in enumerate(tape.rows.values()):
        table.add_row(Text(name), blocks(tape, row, window, at_ms, columns))
    for name, short in zip(gauges, short_names(gauges), strict=True):
        table.add_row(
            Text(short), sparks(tape, name, window, at_ms, columns), Text(" " + gauge_words(tape, name, at_ms))
        )
    table.add_row(Text("s"), scale(window, columns))
    kinds = kinds_of(tape.rows).items()
    legend = Text("  ").join(Text(f"{GLYPHS[kind]} {words}", style=COLOURS[kind]) for kind, words in kinds)
    texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
    return Group(legend, table, *texts)


def blocks(tape: Tape, row: int, window: tuple[float, float], at_ms: float, columns: int) -> Text:
    """A glyph a slice of time: the kind that took most of it."""
    edges = np.linspace(*window, columns + 1)
    taken = np.zeros((len(COLOURS), columns))
    for index, kind in enumerate(COLOURS):
        for start, end, place in tape.boxes(kind, window[0], at_ms):
            if place == row:
                shared = np.minimum(edges[1:], min(end, at_ms)) - np.maximum(edges[:-1], start)
                taken[index] += shared.clip(min=0)
    kinds, text = list(COLOURS), Text()
    for column in range(columns):
        most = int(taken[:, column].argmax())
        busy = taken[most, column] > 0
        text.append(GLYPHS[kinds[most]] if busy else " ", style=COLOURS[kinds[most]] if busy else "")
    return text


def sparks(tape: Tape, name: str, window: tuple[float, float], at_ms: float, columns: int) -> Text:
    """A gauge's value at the end of each slice of time, up to the playhead."""
    ends = window[0] + (window[1] - window[0]) / columns * np.arange(1, columns + 1)
    shown = int(np.searchsorted(ends, at_ms, "right"))
    most = tape.most(name)
    heights = (min(1.0, int(tape.value(name, end)) / most) for end in ends[:shown])
    return Text("".join(LEVELS[int(np.ceil(height * (len(LEVELS) - 1)))] for height in heights))


def scale(window: tuple[float, float], columns: int) -> Text:
    """The seconds at the left, the middle and the right."""
    left, middle, right = (f"{ms / 1e3:.3g}" for ms in (window[0], sum(window) / 2, window[1]))
    half = columns // 2
    return Text(f"{left:<{half}}{middle:<{columns - half - len(right)}}{right}")


def window_for(at_ms: float, window_ms: float) -> tuple[float, float]:
    """The window that shows an instant: a page that moves on by halves."""
    start = max(0, floor(at_ms / (window_ms / 2)) - 1) * window_ms / 2
    return start, start + window_ms


def short_names(names: list[str]) -> list[str]:
    """Without the number where there is only one of a kind."""
    plain = [" ".join(word for word in name.split() if not word.isdecimal()) for name in names]
    return [said(plain[i] if plain.count(plain[i]) == 1 else name) for i, name in enumerate(names)]


def gauge_words(tape: Tape, name: str, at_ms: float) -> str:
    """3, or 12 of 64 where there is a size."""
    size = tape.timeline.sizes.get(name.removeprefix("free "))
    return f"{tape.value(name, at_ms)}" + (f" of {size}" if size else "")
