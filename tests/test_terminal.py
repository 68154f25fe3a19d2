"""Timelines that grow, drawn as frames and as letters: all that was recorded is there, where and when it was."""

import io
import itertools
import sys
from collections import deque

import numpy as np
import pytest
from engine_tools import opened, small
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from test_plots import LATEX, hand_made, simulated

from disagg import Config, Request, Timeline, simulate
from disagg.cli.terminal import GLYPHS, blocks, picture, watch, whole
from disagg.show.player import Playhead
from disagg.show.plots.live_arrays import Tape, gauges_of, kinds_of, rows_of
from disagg.show.plots.live_frame import Frame, merged, short_names, short_turns, staircase, window_for
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


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((abs(picture - wanted).max(axis=-1) < 12).sum())


def framed(run) -> tuple[Tape, Frame]:
    rows = row_names(run.timeline)
    return Tape(run.timeline, rows), Frame(rows, gauges_of(run.timeline))


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_are_known_before_anything_ran(preset):
    run = simulated(preset)
    before = rows_of(run.config)
    assert list(row_names(run.timeline).items()) == [item for item in before.items() if item[0] in run.timeline.places]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_tape_holds_each_span_once(preset):
    run = simulated(preset)
    tape, _ = framed(run)
    for kind in COLOURS:
        spans = sorted((s.start_ns / 1e6, s.end_ns / 1e6) for s in run.timeline.spans if COLOUR_OF[s.kind] == kind)
        assert sorted(map(tuple, tape.boxes(kind, 0, 1e9)[:, :2].tolist())) == spans


@pytest.mark.parametrize("make", [list, lambda: deque(maxlen=7)])
def test_the_tape_follows_a_timeline_that_grows(make):
    run = simulated("staged")
    timeline = Timeline(make(), 0, make(), make(), sizes=run.timeline.sizes)
    tape, whole = Tape(timeline, row_names(run.timeline)), Tape(run.timeline, row_names(run.timeline))
    for first in range(0, len(run.timeline.spans), 5):
        timeline.spans.extend(run.timeline.spans[first : first + 5])
        tape.follow()
    for kind in COLOURS:
        assert np.array_equal(tape.boxes(kind, 0, 1e9), whole.boxes(kind, 0, 1e9))


def test_values_hold_from_their_mark_on_and_gates_are_words():
    timeline = Timeline([], 0, [Mark(10_000_000, "batch 0", 3), Mark(20_000_000, "batch 0", 5)])
    tape = Tape(timeline, {})
    assert [tape.value("batch 0", ms) for ms in (9, 10, 19.9, 20, 99)] == [0, 3, 3, 5, 5]
    times, values = tape.steps("batch 0", 15, 30)
    assert list(times) == [15, 20] and list(values) == [3, 5]
    assert tape.most("batch 0") == 8 and tape.most("unknown") == 1
    timeline = Timeline([], 0, [Mark(5, "gate wanting", "no-block"), Mark(9_000_000, "gate wanting", "")])
    tape = Tape(timeline, {})
    assert tape.gates(1) == ["needs blocks: no-block"] and tape.gates(10) == [] == gauges_of(timeline)


def test_a_frame_shows_every_colour_up_to_the_playhead_and_none_after():
    tape, frame = framed(hand_made())
    everything = pixels(frame.png(tape, 30, 100))
    nothing = pixels(frame.png(tape, 0, 100))
    for kind in ("prefill", "link", "decode"):
        assert near(everything, COLOURS[kind]) > near(nothing, COLOURS[kind]) + 100
    assert near(pixels(frame.png(tape, 30, 100)), COLOURS["prefill"]) == near(everything, COLOURS["prefill"])


def test_a_frame_is_the_same_whatever_was_drawn_before():
    run = simulated("paged")
    (tape, frame), (_, fresh) = framed(run), framed(run)
    for at, window in ((10, 50), (400, 300), (90, None), (10, 50)):
        frame.png(tape, at, window)
    assert frame.png(tape, 200, 300) == fresh.png(tape, 200, 300)


def test_rows_that_decode_in_a_pass_leave_most_of_it_in_sight():
    run = simulate(Config.preset("colocated", chunk_tokens=64), [Request([1] * 40, 9), Request([1] * 128, 3, 0.3)])
    tape, frame = framed(run)
    passes = {span.start_ns for span in run.timeline.spans if span.kind == "prefill"}
    rides = [span.start_ns in passes for span in run.timeline.spans if span.kind == "decode"]
    assert tape.boxes("decode", 0, tape.end_ms)[:, 3].tolist() == rides and {True, False} == {*rides}
    frame.draw(tape, tape.end_ms, (0, 1.01 * tape.end_ms))
    heights = {round(path.get_extents().height, 2) for path in frame._boxes["decode"].get_paths()}
    assert heights == {0.24, 0.72}
    assert {round(path.get_extents().height, 2) for path in frame._boxes["prefill"].get_paths()} == {0.72}


def test_lines_of_text_make_it_taller_and_are_no_markup():
    tape, frame = framed(hand_made())
    plain = pixels(frame.png(tape, 10, 100))
    assert pixels(frame.png(tape, 10, 100, (LATEX, "\N{SNOWMAN} 你好"))).shape[0] == plain.shape[0] + 48
    assert plain.shape[1] == 900


def test_a_frame_of_nothing():
    config = Config.preset("streamed", model="tiny")
    frame = Frame(rows_of(config), [])
    assert frame.png(Tape(Timeline(), rows_of(config)), 0, 1000)[:4] == b"\x89PNG"


@given(st.floats(0, 1e7), st.one_of(st.none(), st.floats(10, 1e5)))
def test_the_window_holds_the_playhead_and_stands_still(at_ms, length):
    low, high = window_for(at_ms, length)
    assert 0 <= low <= at_ms <= high
    assert window_for((at_ms + high) / 2, length) == (low, high), "until the playhead reaches its end"


def test_staircases_stand_on_their_base():
    outline = staircase(np.array([1.0, 3.0]), np.array([0.5, 1.0]), 4.0, -0.4, 0.8)
    assert outline.tolist() == [[1, -0.4], [1, 0], [3, 0], [3, 0.4], [4, 0.4], [4, -0.4]]


BOXES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=40)


@given(BOXES, st.integers(0, 9))
def test_merging_boxes_leaves_what_is_covered_and_wide_ones_as_they_are(boxes, narrow):
    start, width, row = np.array(boxes, float).T
    left, right, rows = merged(start, start + width, row, narrow)

    def covered(parts):
        return {(at, row) for first, last, row in parts for at in range(int(first), int(last))}

    after = list(zip(left, right, rows, strict=True))
    assert covered(after) == covered((s, s + w, r) for s, w, r in boxes)
    wide = sorted((s, s + w, r) for s, w, r in boxes if w > narrow)
    slim = list(after)
    for box in wide:
        slim.remove(box)  # each is still there by itself
    for (left, right, row), (low, high, other) in itertools.permutations(set(slim), 2):
        assert row != other or left > high or low > right


def test_short_turns_end_with_the_picture():
    before = sys.getswitchinterval()
    with pytest.raises(RuntimeError), short_turns():
        assert sys.getswitchinterval() < before
        raise RuntimeError
    assert sys.getswitchinterval() == before


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


def test_the_playhead_follows_plays_and_stands():
    head = Playhead()
    head.advance(100, 40)
    assert head.at_ms == 40, "live: the end"
    head.speed = 0.5
    head.advance(20, 100)
    assert head.at_ms == 50
    head.play(100)
    head.advance(1000, 100)
    assert head.at_ms == 50 and not head.playing
    head.play(100)
    head.advance(1000, 100)
    assert head.at_ms == 100
    head.play(100), head.play(100)
    assert head.at_ms == 0 and head.playing, "from the start again"


def test_steps_visit_every_edge_forth_and_back():
    tape = Tape(hand_made().timeline, row_names(hand_made().timeline))
    head, forth, back = Playhead(), [], []
    for _ in range(8):
        head.step(tape, True)
        forth.append(head.at_ms)
    for _ in range(8):
        head.step(tape, False)
        back.append(head.at_ms)
    assert forth == [4, 7, 8, 10, 15, 20, 25, 25] and back == [20, 15, 10, 8, 7, 4, 0, 0] and not head.playing
