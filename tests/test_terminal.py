"""The timeline as letters: eighty columns, glyphs that differ, and text that stays text."""

import io

import pytest
from engine_tools import opened, small
from rich.console import Console
from test_plots import LATEX, hand_made, simulated

from disagg import Request
from disagg.cli.terminal import GLYPHS, blocks, picture, watch, whole
from disagg.show.plots.live_arrays import Tape
from disagg.show.plots.palette import COLOURS
from disagg.show.plots.summaries import row_names


def printed(thing, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("preset", ["colocated", "streamed", "staged", "paged"])
def test_a_run_fits_eighty_columns_and_shows_each_row(preset):
    run = simulated(preset)
    lines = printed(whole(run, 80))
    assert max(map(len, lines)) <= 80
    for name in row_names(run.timeline).values():
        assert any(line.startswith(name) and set(line) & set(GLYPHS.values()) for line in lines)


def test_blocks_stand_where_their_spans_do():
    tape = Tape(hand_made().timeline, row_names(hand_made().timeline))
    rows = [str(blocks(tape, row, (0, 25), 25, 25)) for row in range(3)]
    assert rows[0] == "█" * 10 + " " * 15
    assert rows[1] == "    " + "▒" * 3 + " " + "▒" * 7 + " " * 10
    assert rows[2] == " " * 15 + "▄" * 10


def test_every_kind_has_a_glyph_of_its_own():
    assert set(GLYPHS) == set(COLOURS) and len(set(GLYPHS.values())) == len(GLYPHS)


def test_markup_shows_as_text():
    text = f"[red]x[/red] [/] {LATEX}"
    tape = Tape(hand_made().timeline, {"prefill 0": "[bold]prefill"})
    lines = printed(picture(tape, [], 10, 100, (text,), 120), 120)
    assert text in lines and any(line.startswith("[bold]prefill") for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_serves_and_ends_with_the_whole(terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    with opened(small("staged", link=2e6)) as engine:
        run = watch(engine, [Request("[red]", 8, ignore_eos=True)], console, updates_per_s=50)
    assert run.results[0].finish_reason == "length"
    out = console.file.getvalue()
    assert "8 tokens, length" in out and "\x1b[" in out if terminal else out.count("prefill pass") == 1
