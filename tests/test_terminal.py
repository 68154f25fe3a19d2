"""Timelines that grow, drawn as letters: all that was recorded is there, where and when it was."""

import io

import pytest
from engine_tools import opened, small
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_plots import LATEX, hand_made, simulated

from disagg import Config, Request, Timeline, simulate
from disagg.cli.tape import Tape, gauges_of, kinds_of, rows_of
from disagg.cli.terminal import GLYPHS, blocks, picture, short_names, watch, whole, window_for
from disagg.show.plots.palette import COLOUR_OF, COLOURS
from disagg.show.plots.summaries import row_names
from disagg.trace.spans import Mark


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


PRESETS = ["colocated", "split", "streamed", "staged", "paged", "two_colocated"]


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_are_known_before_anything_ran(preset):
    run = simulated(preset)
    before = rows_of(run.config)
    assert list(row_names(run.timeline).items()) == [item for item in before.items() if item[0] in run.timeline.places]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_tape_holds_each_span_once(preset):
    run = simulated(preset)
    tape = Tape(run.timeline, row_names(run.timeline))
    for kind in COLOURS:
        spans = sorted((s.start_ns / 1e6, s.end_ns / 1e6) for s in run.timeline.spans if COLOUR_OF[s.kind] == kind)
        assert sorted(box[:2] for box in tape.boxes(kind, 0, 1e9)) == spans


def test_values_hold_from_their_mark_on_and_gates_are_no_gauges():
    timeline = Timeline([], 0, [Mark(10_000_000, "batch 0", 3), Mark(20_000_000, "batch 0", 5)])
    tape = Tape(timeline, {})
    assert [tape.value("batch 0", ms) for ms in (9, 10, 19.9, 20, 99)] == [0, 3, 3, 5, 5]
    assert tape.most("batch 0") == 8 and tape.most("unknown") == 1
    assert gauges_of(Timeline([], 0, [Mark(5, "gate wanting", "no-block")])) == [], "a gate is named, not counted"


@given(st.floats(0, 1e7), st.floats(10, 1e5))
def test_the_window_holds_the_playhead_and_stands_still(at_ms, length):
    low, high = window_for(at_ms, length)
    assert 0 <= low <= at_ms <= high
    assert window_for((at_ms + high) / 2, length) == (low, high), "until the playhead reaches its end"


def test_names_lose_a_number_that_tells_nothing():
    assert short_names(["prefill 0 queue", "batch 0", "batch 1"]) == ["prefill queue", "batch 0", "batch 1"]
    assert short_names(["decode 0 landed", "wanting"]) == ["landed, waits", "needs blocks"]
    assert short_names(["decode 0 landed", "decode 1 landed"]) == ["landed, waits 0", "landed, waits 1"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_legend_names_the_kinds_that_a_preset_has(preset):
    config = Config.preset(preset, decode_blocks=8, host_blocks=24 * bool(Config.preset(preset).host_blocks))
    run = simulate(config, [Request([1] * 40, 60) for _ in range(6)])
    named, drawn = set(kinds_of(rows_of(config))), {COLOUR_OF[span.kind] for span in run.timeline.spans}
    assert drawn - {"paging"} == named - {"paging"} and drawn <= named
    assert ("paging" in named) == bool(config.host_blocks)
