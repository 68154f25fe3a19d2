"""Recordings: what is saved comes back equal, and whatever is wrong with a file is one sentence with file and line."""

import dataclasses
import gzip
import itertools
import json
import os
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from disagg import Config, Engine, Link, Request, Timeline, simulate
from disagg.cli import main as cli
from disagg.cli import output
from disagg.plan.blocks import STATES
from disagg.plan.commands import Placed
from disagg.plan.config import PRESETS
from disagg.plan.errors import DisaggError, EngineError, FileError
from disagg.plan.policy import Option
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.trace import archive, files, parts
from disagg.trace.recorder import devices
from disagg.trace.results import Result, Run
from disagg.trace.schema import KINDS, MOST
from disagg.trace.spans import BlockMove, Mark, Span
from disagg.twin.simulate import Speeds


def simulated(preset: str = "staged", count: int = 6, **changes) -> Run:
    draw = random.Random(count)
    requests = [Request([1] * draw.randint(1, 300), draw.randint(1, 9), arrival_s=0.3 * i) for i in range(count)]
    return simulate(Config.preset(preset, **{"link": 0.05e9, **changes}), requests)


def without_log(run: Run) -> Run:
    return dataclasses.replace(run, log=[])


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_comes_back_equal(preset, name, tmp_path):
    run = simulated(preset, 12, decode_blocks=40, prefill_blocks=40)
    run.save(tmp_path / name)
    back = Run.load(tmp_path / name)
    assert back == without_log(run) and type(back.results[0].stages) is tuple
    assert back.receipts() == run.receipts() and back.metrics() == run.metrics()
    assert timeline_picture(back, 0).png() == timeline_picture(run, 0).png()
    assert [back.law(i) for i in range(12)] == [run.law(i) for i in range(12)]
    assert Timeline.load(tmp_path / name) == run.timeline
    assert os.listdir(tmp_path) == [name], "no draft is left"


# ---- longer than a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.jsonl", "my.run.jsonl.gz", "run"])
@pytest.mark.parametrize(("bound", "most"), [("MOST_LINES", 60), ("MOST_BYTES", 9000)])
def test_a_run_of_any_length_comes_back_equal_and_no_file_is_longer_than_its_bounds(
    name, bound, most, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, bound, most)
    for count in (1, 2, 4, 7, 3):  # over each other
        run = simulated(count=count)
        run.save(tmp_path / name, overwrite=True)
        assert Run.load(tmp_path / name) == without_log(run) and Timeline.load(tmp_path / name) == run.timeline
        beside = set(tmp_path.iterdir()) - {tmp_path / name}
        assert beside == set(parts.named_in(tmp_path / name)), "no draft and no part of the run before is left"
        for file in beside or [tmp_path / name]:
            lines = list(files.lines(file))
            assert len(lines) <= files.MOST_LINES and sum(map(len, lines)) <= files.MOST_BYTES
    assert beside, "some were longer"


@pytest.fixture
def in_parts(tmp_path, monkeypatch) -> tuple:
    monkeypatch.setattr(files, "MOST_LINES", 60)
    path, run = tmp_path / "run.jsonl", simulated(count=4)
    run.save(path)
    return path, run, parts.named_in(path)


def test_a_part_that_is_missing_changed_cut_or_another_runs_is_noticed(in_parts, tmp_path):
    path, _, beside = in_parts
    whole = [part.read_bytes() for part in beside]
    lines = whole[1].splitlines(keepends=True)
    for content in (b"".join(lines[:-1]), b"".join([lines[1], lines[0], *lines[2:]]), whole[1] + lines[-1], whole[0]):
        beside[1].write_bytes(content)
        with pytest.raises(FileError):
            Run.load(path)
    beside[1].unlink()
    with pytest.raises(FileError, match="is not beside it; parts are copied and renamed with it"):
        Run.load(path)
    (tmp_path / "else").write_bytes(whole[1])
    beside[1].symlink_to(tmp_path / "else")
    with pytest.raises(FileError, match="is not beside it"):
        Run.load(path)


WRONG_SUMS = [[[1, "0" * 63]], [[1, "../" + "0" * 61]], [["1", "0" * 64]], [[1, "0" * 64]] * 17, [[1, "0" * 64]]]


@pytest.mark.parametrize("listed", [None, [], 5, [[1]], *WRONG_SUMS])
def test_a_head_that_lists_no_parts_is_refused(listed, tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"disagg": "parts", "version": 1, "parts": listed}) + "\n")
    with pytest.raises(FileError, match="run.jsonl"):
        Run.load(path)


def test_a_save_that_fails_leaves_the_recording_before_it_and_no_part_of_its_own(in_parts, tmp_path, monkeypatch):
    path, run, _ = in_parts
    there = sorted(tmp_path.iterdir())
    with pytest.raises(FileError, match="exists already"):
        run.save(path)
    rows = archive._rows
    with monkeypatch.context() as patch:  # the first parts are those that are there
        patch.setattr(archive, "_rows", lambda *run: [*itertools.islice(rows(*run), 100), {"span": object}])
        with pytest.raises(FileError, match="a span is not plain data"):
            run.save(path, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(files, "MOST_LINES", 5)
        with pytest.raises(FileError, match="longer than 16 parts of .* serve fewer requests at once"):
            simulated(count=7).save(path, overwrite=True)
    assert sorted(tmp_path.iterdir()) == there and Run.load(path) == without_log(run)


def test_preemptions_are_kept(tmp_path):
    run = simulated("paged", 12, decode_blocks=22, prefill_blocks=20, host_blocks=100)
    assert {span.kind for span in run.timeline.spans} >= {"spill", "fetch"} and run.choices
    run.save(tmp_path / "run.jsonl")
    assert Run.load(tmp_path / "run.jsonl") == without_log(run)


LINKS = [None, "wifi", 5e7, Link(), Link(1e7, 0.001, 0.002), (Link(1e7), Link(2e7, latency_s=0.1)), (None, 1e6)]


@pytest.mark.parametrize("link", LINKS, ids=repr)
def test_every_kind_of_link(link, tmp_path):
    run = simulated(count=1, link=link, itl_target_s=0.25)
    run.save(tmp_path / "run.jsonl")
    assert Run.load(tmp_path / "run.jsonl").config == run.config


def test_a_real_run(tmp_path):
    config = Config.preset("staged", model="tiny", link=Link.ratio(0.5), prefill_blocks=64, decode_blocks=64)
    with Engine(config) as engine:
        run = engine.serve([Request("<b>Ωhy?</b> \u2028 😀", 6), Request([1, 2, 3], 3, keep_logits=True)])
        silent = engine.serve([Request([1, 2, 3], 3)], record=False)
    run.save(tmp_path / "run.jsonl.gz")
    run.results[1].logits = []
    assert Run.load(tmp_path / "run.jsonl.gz") == without_log(run)
    silent.save(tmp_path / "silent.jsonl")
    back = Run.load(tmp_path / "silent.jsonl")
    assert (back.results, back.counts) == (silent.results, silent.counts)
    with pytest.raises(EngineError, match="no receipt"):
        _ = back.results[0].receipt


def test_texts_and_requests_that_never_started(tmp_path):
    never = Result(-1, 3, 7, finish_reason="cancelled")
    text = "a\nb\u2028\0<script>" + '[{"\\' * 50  # brackets in text are text
    failed = Result(4, 1, 0, [5], [9], text, "failed", "\N{SNOWMAN} died", ended_ns=9)
    run = Run(Config(), [never, failed], Timeline(), interrupted=True, machine="2 cores")
    run.save(tmp_path / "run.jsonl")
    assert Run.load(tmp_path / "run.jsonl") == run


times = st.integers(0, MOST)
ids = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)
PLACES = ("prefill 0", "decode 0", "decode 11", "up 0", "down 0", "direct 0", "spill 0")


@st.composite
def spans(draw):
    start, end = sorted((draw(times), draw(times)))
    marks = sorted(draw(st.lists(st.integers(start, end), max_size=4)))
    requests = draw(ids.filter(bool))
    firsts = requests[: draw(st.integers(0, len(requests)))]
    numbers = [draw(times) for _ in range(3)]
    last = [draw(times) for _ in range(5)]
    kind, place = draw(st.sampled_from(KINDS)), draw(st.sampled_from(PLACES))
    return Span(kind, place, start, end, requests, *numbers, firsts, tuple(marks), *last, draw(ids))


@st.composite
def timelines(draw):
    names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=20)
    counters = ("prefill 0 queue", "decode 11 queue", "decode 1 landed", "wanting", "free host", "batch 3", "ring")
    counted = st.builds(Mark, times, st.sampled_from(counters), times)
    gates = st.builds(Mark, times, st.sampled_from(counters[:4]).map("gate ".__add__), names)
    slots = st.lists(st.integers(0, 7)).map(tuple)
    freed = st.builds(BlockMove, times, st.just("ring"), st.just("free"), st.none(), slots)
    taken = st.builds(BlockMove, times, st.just("host"), st.sampled_from(STATES[1:]), times, st.just((0, 99)))
    return Timeline(
        draw(st.lists(spans(), max_size=6)),
        draw(times),
        draw(st.lists(counted | gates, max_size=6)),
        draw(st.lists(freed | taken, max_size=6)),
        {place: draw(names) for place in (*PLACES, "host")},
        {"host": 100, "ring": 8},
    )


@given(timelines())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_timeline_comes_back_equal(tmp_path, timeline):
    for name in ("t.jsonl", "t.jsonl.gz"):
        timeline.save(tmp_path / name, overwrite=True)
        assert Timeline.load(tmp_path / name) == timeline
    with pytest.raises(FileError, match="timeline without its run"):
        Run.load(tmp_path / "t.jsonl")


def test_a_long_run_is_small(tmp_path):
    """A staged hand-off of one chunk takes two copies a layer; times have odd digits."""
    speeds = Speeds(prefill_token=397_001, step=6_100_003, step_row=610_007)
    asked = [Request([1] * (32 + 37 * index % 224), 2 + index % 3, arrival_s=0.15001 * index) for index in range(50)]
    run = simulate(Config.preset("staged", link=0.25e9), asked, speeds)
    run.save(path := tmp_path / "run.jsonl.gz")
    assert len(run.timeline.spans) > 3000 and path.stat().st_size < 60 * len(run.timeline.spans)
    assert Run.load(path).timeline.spans == run.timeline.spans


# ---- bad lines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good() -> list[bytes]:
    """The lines of a recording with every kind of line."""
    run = simulated("paged", 12, decode_blocks=22, prefill_blocks=20, host_blocks=100)
    run.placements.append(Placed(0, "split", (Option("split", 0, (("queue", 5), ("prefill", 7))), Option("stay")), 9))
    return [json.dumps(row).encode() + b"\n" for row in archive._rows(run.header(), run.records())]


def line_of(good: list[bytes], kind: str, nth: int = 0) -> int:
    return [index for index, line in enumerate(good) if line.startswith(f'{{"{kind}"'.encode())][nth]


def refused(path, lines, match: str, line: int | None = None, load=Run.load):
    """FileError, in one sentence that names the file and the line (from 1)."""
    path.write_bytes(lines if isinstance(lines, bytes) else b"".join(lines))
    with pytest.raises(FileError, match=match) as caught:
        load(path)
    text = str(caught.value)
    assert path.name in text and "\n" not in text and len(text) < 500
    assert isinstance(caught.value, (DisaggError, ValueError))
    if line is not None:
        assert f"line {line}" in text, text


CHANGES = {
    "negative start": ("span", {"start_ns": -1}, "start_ns must be a whole number, 0 or more; got -1"),
    "negative duration": ("span", {"start_ns": 10**15}, "ends before it starts"),
    "negative bytes": ("span", {"nbytes": -5}, "nbytes must be"),
    "a float for ns": ("span", {"end_ns": 1.5}, "end_ns must be"),
    "true for ns": ("span", {"end_ns": True}, "end_ns must be"),
    "text for ns": ("span", {"end_ns": "1"}, "end_ns must be"),
    "null for ns": ("span", {"end_ns": None}, "end_ns must be"),
    "too many ns": ("span", {"end_ns": 2**63}, "end_ns must be"),
    "unknown kind": ("span", {"span": "lunch"}, "kind must be one of prefill, decode"),
    "kind of another type": ("span", {"span": ["copy"]}, "kind must be one of"),
    "unknown field": ("span", {"colour": "red"}, "field 'colour' is unknown"),
    "no place": ("span", {"place": None}, "place must be a worker"),
    "requests no list": ("span", {"requests": {"0": 1}}, "requests must be a list"),
    "requests of text": ("span", {"requests": ["0"]}, "requests must be a list"),
    "first of a stranger": ("span", {"firsts": [999]}, "firsts names a request"),
    "hand-offs fall": ("span", {"hand_offs_ns": [5, 4]}, "hand_offs_ns must be"),
    "hand-offs outside": ("span", {"hand_offs_ns": [0, 10**18]}, "outside of its pass"),
    "mark of a list": ("mark", {"value": [1]}, "value must be"),
    "mark with an escape": ("mark", {"value": "\x1b[31m"}, "value must be"),
    "mark of a long name": ("mark", {"mark": "x" * 2000}, "name must be the name of a queue"),
    "mark of a fraction": ("mark", {"value": 0.5}, "value must be"),
    "unknown pool": ("move", {"move": "attic"}, "'attic' is not among"),
    "unknown state": ("move", {"state": "lost"}, "state must be one of free"),
    "a block too high": ("move", {"blocks": [40]}, "has 20 blocks; got block 40"),
    "free but owned": ("move", {"state": "free", "owner": 3}, "free blocks have no owner"),
    "used but not owned": ("move", {"state": "used", "owner": None}, "free blocks have no owner"),
    "unknown arm": ("choice", {"arm": "leg"}, "arm must be one of spill"),
    "unknown stage": ("result", {"stages": [[0, "asleep"]]}, "stages must be pairs"),
    "illegal stages": ("result", {"stages": [[0, "queued"], [1, "running"]]}, "stages must be pairs"),
    "stages go back": ("result", {"stages": [[5, "queued"], [4, "ended"]]}, "stages must be pairs"),
    "stages of threes": ("result", {"stages": [[5, "queued", 1]]}, "stages must be pairs"),
    "unknown reason": ("result", {"finish_reason": "bored"}, "finish_reason must be one of eos"),
    "times without tokens": ("result", {"token_ids": []}, "0 tokens have"),
    "times fall": ("result", {"token_ids": [1, 2], "token_times_ns": [9 * 10**12, 10**12]}, "token_times_ns must be"),
    "token before arrival": ("result", {"arrival_ns": 10**15}, "before the request's arrival"),
    "error of a list": ("result", {"error": ["x"]}, "error must be text, or null"),
    "a seat nobody has": ("result", {"seat": 9}, "seat 'decode 9' is not among"),
    "request of a float": ("result", {"result": -1.0}, "request must be"),
    "unknown line": ("mark", {"mork": 1, "mark": None}, "a line must start with span"),
    "version": ("disagg", {"version": 2}, "version 2 is unknown here; this package reads version 1"),
    "another format": ("disagg", {"disagg": "song"}, "does not begin as a recording"),
    "holds something else": ("disagg", {"holds": "water"}, "holds must be one of run, timeline"),
    "unknown in the header": ("disagg", {"notes": ""}, "field 'notes' is unknown"),
    "devices of numbers": ("disagg", {"devices": {"up 0": 1}}, "devices must be"),
    "a device of no place": ("disagg", {"devices": {"kitchen": "cpu"}}, "devices must be"),
    "huge memory": ("disagg", {"sizes": {"host": 10**12}}, "sizes must be"),
    "machine of two lines": ("disagg", {"machine": "a\nb"}, "machine must be a short text"),
    "config no object": ("disagg", {"config": []}, "config must be"),
    "wrong in the config": ("disagg", {"config": {"threads": 0}}, "config: threads must be"),
    "link of text": ("disagg", {"config": {"link": {"bandwidth": "fast"}}}, "config: link bandwidth must be"),
    "unknown in the link": ("disagg", {"config": {"link": {"colour": 1}}}, "config: .*unexpected keyword"),
    "padding of one": ("disagg", {"padding": [1]}, "padding must be"),
    "counts of text": ("disagg", {"counts": {"spills": "many"}}, "counts must be"),
    "another count at the end": ("end", {"end": {"span": 1}}, "the closing line counts"),
    "more at the end": ("end", {"more": 1}, "field 'more' is unknown"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_field(name, good, tmp_path):
    kind, change, match = CHANGES[name]
    index = line_of(good, kind)
    row = json.loads(good[index]) | change
    row = row if name != "unknown line" else {"mork": 1, **row}
    lines = [*good[:index], json.dumps(row).encode() + b"\n", *good[index + 1 :]]
    refused(tmp_path / "run.jsonl", lines, match, index + 1)


@pytest.mark.parametrize("kind", ["span", "mark", "move", "choice", "result", "disagg"])
def test_a_missing_field(kind, good, tmp_path):
    index = line_of(good, kind)
    for name in list(json.loads(good[index]))[1:]:
        row = json.loads(good[index])
        del row[name]
        shape = archive.SHAPES.get(kind)
        if shape is None or name not in shape.defaults:
            lines = [*good[:index], json.dumps(row).encode() + b"\n", *good[index + 1 :]]
            match = "version None" if name == "version" else f"field '{name}' is missing"
            refused(tmp_path / "run.jsonl", lines, match, index + 1)


BAD_LINES = {
    "no JSON": (b"{'mark': 1}\n", "it is not JSON"),
    "half a line of JSON": (b'{"mark": "x", \n', "it is not JSON"),
    "an empty line": (b"\n", "it is not JSON"),
    "an empty object": (b"{}\n", "a line must start with"),
    "nine deep": (b'{"mark":' + b"[" * 8 + b"]" * 8 + b"}\n", "brackets stand more than 8 deep"),
    "a million deep": (b"[" * (files.LINE_BYTES - 9) + b"\n", "brackets stand more than 8 deep"),
    "quotes that hide brackets": (b'{"mark": "\\"", "x": ' + b'[{"":' * 5 + b"\n", "more than 8 deep"),
    "no line's end": (b'{"mark": "' + b"x" * 3 * files.LINE_BYTES, "is longer than 1048576 bytes"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_a_wrong_line(name, ending, good, tmp_path):
    line, match = BAD_LINES[name]
    content = b"".join([*good[:7], line, *good[7:]])
    refused(tmp_path / f"run{ending}", gzip.compress(content) if ending.endswith("gz") else content, match, 8)


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400))
nested = lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner)  # noqa: E731
anything = st.recursive(scalars, nested, max_leaves=4)


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_value_anywhere_loads_or_is_refused_in_words(good, tmp_path, data):
    """No other exception, whatever a field holds."""
    index = data.draw(st.sampled_from([0, *(line_of(good, kind) for kind in archive.SHAPES), len(good) - 1]))
    row = json.loads(good[index])
    inner = row["config"] if index == 0 and data.draw(st.booleans()) else row
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(anything)
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join([*good[:index], json.dumps(row).encode() + b"\n", *good[index + 1 :]]))
    try:
        Run.load(path)
    except FileError as error:
        line = re.search(r"run\.jsonl, line (\d+): ", str(error))  # a header without its devices fails at a later one
        assert line and int(line[1]) >= index + 1 and "\n" not in str(error)


# ---- bad files -------------------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_off(good, tmp_path):
    """At a line's end, in a line, and in the middle of gzip."""
    whole = b"".join(good)
    for lines in (1, 2, len(good) - 1):
        refused(tmp_path / "run.jsonl", good[:lines], f"after line {lines}: it is cut off")
    refused(tmp_path / "run.jsonl", whole[:-1], "cut off in this line", len(good))
    refused(tmp_path / "run.jsonl", whole[: len(whole) // 2], "cut off in this line")
    packed = gzip.compress(whole)
    for length in (5, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        refused(tmp_path / "run.jsonl.gz", packed[:length], "it is cut off")
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 255
    refused(tmp_path / "run.jsonl.gz", bytes(broken), "run.jsonl.gz")


def test_lines_after_the_end_and_two_recordings_in_one(good, tmp_path):
    refused(tmp_path / "run.jsonl", [*good, good[1]], "the closing line is not the last", len(good) + 1)
    refused(tmp_path / "run.jsonl", good + good, "the closing line is not the last", len(good) + 1)
    refused(tmp_path / "run.jsonl", good[1:], "does not begin as a recording", 1)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, match in ((tmp_path, "not a file"), (tmp_path / "pipe", "not a file"), ("/dev/zero", "not a file"),
                        (tmp_path / "nothing", "can't be read: No such file")):  # fmt: skip
        for load in (Run.load, Timeline.load):
            with pytest.raises(FileError, match=match):
                load(path)


def test_bombs_stop_at_their_bounds(tmp_path, good, monkeypatch):
    """A packed file of a few kB that would unpack to gigabytes is left after the first bytes too many."""
    mark = b'{"mark":"ring","at_ns":1,"value":1}\n'
    refused(tmp_path / "bomb.jsonl.gz", gzip.compress(b"".join(good[:1]) + b"\0" * 50_000_000), "longer than", 2)
    monkeypatch.setattr(files, "MOST_BYTES", len(good[0]) + 10 * len(mark))
    refused(tmp_path / "bomb.jsonl.gz", gzip.compress(good[0] + mark * 100_000), "are not taken in", 12)
    monkeypatch.setattr(files, "MOST_LINES", 5)
    refused(tmp_path / "bomb.jsonl", [good[0], mark * 100], "are not taken in", 6)


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    for folder in (tmp_path, inner):
        simulated(count=1).save(folder / "run.jsonl")
    (inner / "link.jsonl").symlink_to(tmp_path / "run.jsonl")
    (inner / "up").symlink_to(tmp_path)
    (inner / "loop").symlink_to(inner / "loop")
    assert Run.load("run.jsonl", within=inner) == Run.load(inner / "run.jsonl", within=tmp_path)
    for name in ("../run.jsonl", tmp_path / "run.jsonl", "link.jsonl", "up/run.jsonl", "../inner2/x", "/etc/passwd"):
        for load in (Run.load, Timeline.load):
            with pytest.raises(FileError, match="leads out of the folder 'inner'"):
                load(name, within=inner)
    for name in ("loop", "a\0b", "loop/run.jsonl"):
        with pytest.raises(FileError):
            Run.load(name, within=inner)


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_it_overwrites_only_when_asked(tmp_path):
    path, first, second = tmp_path / "run.jsonl.gz", simulated(count=1), simulated(count=2)
    first.save(path)
    whole = path.read_bytes()
    with pytest.raises(FileError, match="exists already; take another name, or overwrite=True"):
        second.save(path)
    assert path.read_bytes() == whole
    second.save(path, overwrite=True)
    assert len(Run.load(path).results) == 2
    simulated(count=1).save(path, overwrite=True)
    assert path.read_bytes() == whole, "the same run gives the same bytes"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path, run = tmp_path / "run.jsonl.gz", simulated(count=1)
    run.save(path)
    before = path.read_bytes()
    run.timeline.spans.append(Span("copy", "kitchen 0", 0, 1, (0,)))
    with pytest.raises(FileError, match="run.jsonl.gz can't be written: the file, line .*place must be a worker"):
        run.save(path, overwrite=True)
    run.timeline.spans[-1] = Span("copy", "up 0", 0, object(), (0,))
    with pytest.raises(FileError, match="a span is not plain data"):
        run.save(path, overwrite=True)
    run.timeline.spans.pop()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", full)
    with pytest.raises(FileError, match="can't be written: No space left on device"):
        run.save(path, overwrite=True)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_places_that_cannot_be_written(tmp_path):
    run = simulated(count=1)
    (tmp_path / "file").write_text("")
    for path, match in ((tmp_path, "is a folder"), ("", "is a folder"), (tmp_path / "no" / "x.jsonl", "No such file"),
                        (tmp_path / "file" / "x", "Not a directory")):  # fmt: skip
        with pytest.raises(FileError, match=match):
            run.save(path)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_a_recording_holds(tmp_path):
    simulated().save(tmp_path / "run.jsonl.gz")
    out = [str(tmp_path / name) for name in ("run.jsonl.gz", "trace.json", "run.png")]
    done = CliRunner().invoke(cli.app, ["timeline", out[0], "--perfetto", out[1], "--png", out[2], "--receipts"])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "6 requests in" in words and "Recorded on virtual clock." in words and "step-boundary" in words
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_errors_of_the_command_are_one_sentence(tmp_path, monkeypatch, capsys):
    path = tmp_path / "[bold]run[" / "x].jsonl"  # the console must not take it for markup
    path.parent.mkdir()
    path.write_text("{}\n")
    monkeypatch.setattr(output, "console", output.Console(width=1000))
    monkeypatch.setattr("sys.argv", ["disagg", "timeline", str(path)])
    for words in ("line 1: it does not begin as a recording of disagg\n", "0 requests, but no time was recorded\n"):
        with pytest.raises(SystemExit, match="1"):
            cli.main()
        out = capsys.readouterr().out
        assert out.startswith(("FileError: ", "EngineError: ")) and out.endswith(words) and out.count("\n") == 1
        assert str(path) in out or words.startswith("0")
        Run(Config(), [], Timeline()).save(path, overwrite=True)


def test_a_file_that_could_not_be_finished_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileError, match="is wrong"), files.whole(tmp_path / "a.jsonl") as out:
        out.write(b"half")
        raise FileError("it is wrong")
    assert os.listdir(tmp_path) == []


def test_a_result_is_the_same_whatever_was_recorded_beside_it():
    assert Result(1, 2, 3, timeline=Timeline()) == Result(1, 2, 3) and "timeline" not in repr(Result(1, 2, 3))


@pytest.mark.parametrize(
    ("preset", "places"),
    [("staged", {"down 0": "link to host", "up 0": "link to decode"}), ("streamed", {"direct 0": "link"})],
)
def test_a_hop_stands_on_its_link(preset, places):
    found = devices(Config.preset(preset))
    assert {place: found[place] for place in places} == places
