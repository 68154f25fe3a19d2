"""The canvas from Python's side, and canvas.js's own functions where node can run them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from test_html_page import unpack
from test_plots import hand_made, simulated

import disagg.show
from disagg.show import flow
from disagg.show.columns import SpanColumns, look, pack
from disagg.trace.spans import Span

SCRIPT = Path(disagg.show.__file__).with_name("canvas.js")


@pytest.fixture
def canvas():
    shown = flow(hand_made())
    yield shown.panel
    shown.close()


def test_it_starts_with_all_spans(canvas):
    assert canvas.said["header"]["first"] == 0 and len(unpack(canvas.columns[0])[2]) == 5
    assert unpack(canvas.columns[0])[1] == [0], "the engine's id is 7, but it is result 0 of this run"


def test_play_pause_and_seek_are_traits(canvas):
    canvas.play()
    assert canvas.get_state()["playing"]
    canvas.pause()
    canvas.seek(12)
    assert (canvas.playing, canvas.at_ms) == (False, 12.0)


def test_what_is_no_question_is_not_answered(canvas):
    heard = []
    canvas.asked = lambda *question: heard.append(question)
    for content in ("nonsense", {}, {"id": "x"}, None, {"id": 3, "settings": {"link": "2"}}):
        canvas._heard(canvas, content, [])
    assert heard == [(3, {"link": "2"}, None)]


def test_closing_may_be_repeated():
    shown = flow(simulated("staged"))
    shown.close()
    shown.close()
    assert shown.panel.comm is None


# ---- canvas.js's own functions ---------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path):
    """node(expression, value) evaluates with canvas.js's names and `value` in reach."""
    if not (found := shutil.which("node")):
        pytest.skip("needs node, which runs canvas.js's own functions")
    (tmp_path / "canvas.mjs").write_text(SCRIPT.read_text("utf-8"), "utf-8")

    def evaluate(expression: str, value=None):
        code = (
            "import { Spans, duration, ticks, unpack } from './canvas.mjs';"
            "const fill = ([header, hex]) => { const spans = new Spans(); "
            "spans.take(header, Buffer.from(hex, 'hex')); return spans; };"
            f"const value = {json.dumps(value)}; console.log(JSON.stringify({expression}));"
        )
        (tmp_path / "main.mjs").write_text(code, "utf-8")
        done = subprocess.run([found, "main.mjs"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def chunk(spans: list[Span], first: int = 0) -> list:
    columns = SpanColumns()
    columns.add(spans)
    header, data = columns.chunk(first)
    return [header, data.hex()]


def test_node_unpacks_what_python_packs(node):
    columns = [[], [0, -1, 1, 127, -128, 2**51, -(2**51)], [5] * 4]
    unpacked = "unpack(Buffer.from(value, 'hex')).map((column) => [...column])"
    assert node(unpacked, pack(columns).hex()) == columns


def test_node_steps_over_the_starts_and_ends_of_a_request(node):
    spans = [Span("decode", "decode 0", 10, 20, (0,)), Span("decode", "decode 0", 20, 30, (0, 1))]
    steps = "[[0, 1, null], [10, 1, null], [30, 1, null], [20, -1, null], [0, -1, null], [0, 1, 1]]"
    found = node(f"{steps}.map(([at, by, who]) => fill(value).step(at, by, who))", chunk(spans))
    assert found == [10, 20, 30, 10, 10, 20]


def test_node_knows_the_rows_that_decode_in_a_pass(node):
    spans = [
        Span("decode", "decode 0", 10, 20, (0,)),  # it came first, and still follows its pass
        Span("prefill", "decode 0", 10, 20, (1,)),
        Span("decode", "decode 0", 20, 30, (0,)),
    ]
    shown = "((spans) => { const [row] = spans.rows; return [row.spans, row.spans.map((span, i) => "
    shown += "spans.rides(span, row.spans[i - 1], value[1]))]; })(fill(value[0]))"
    assert node(shown, [chunk(spans), look()]) == [[1, 0, 2], [False, True, False]]


def test_node_finds_a_long_span_that_began_long_before(node):
    short = [Span("decode", "decode 0", t, t + 1, (1,)) for t in range(1, 900)]
    spans = [Span("decode", "decode 0", 0, 1000, (0,)), *short]
    assert node("[...fill(value).within(fill(value).rows[0], 950, 960)]", chunk(spans)) == [0]
    backwards = node("[...fill(value).within(fill(value).rows[0], 5, 6)]", chunk(spans[::-1]))
    assert backwards == [899, 894, 893], "any order"


def test_node_takes_chunks_once_and_in_order(node):
    spans = [Span("copy", "up 0", t, t + 1, (0,)) for t in range(4)]
    both = [chunk(spans[:2]), chunk(spans, 2), chunk(spans)]
    made = "(() => { const s = fill(value[0]), of = (c) => s.take(c[0], Buffer.from(c[1], 'hex'));"
    taken = node(f"{made} return [of(value[1]), s.length, of(value[2]), s.length, s.rows.length]; }})()", both)
    assert taken == [True, 4, True, 4, 1]
    late = "const s = new Spans(); return [s.take(value[1][0], Buffer.from(value[1][1], 'hex')), s.length];"
    assert node(f"(() => {{ {late} }})()", both) == [False, 0]


def test_node_says_what_the_playhead_stands_on(node):
    run = hand_made()
    data = {"look": look(), "chunk": chunk(run.timeline.spans)}
    say = "[0, 9e6, 40e6].map((at) => fill(value.chunk).sentence(at, null, value.look))"
    assert node(say, data) == [
        "At 0.00 ms: prefill: prefill pass 0, 20 tokens, request 7.",
        "At 9.00 ms: prefill: prefill pass 0, 20 tokens, request 7; link: copy of layer 1, 0.00100 MB, request 7.",
        "At 40.00 ms: nothing runs.",
    ]


def test_node_writes_times_and_places_ticks(node):
    assert node("[0, 1.5e6, 123.4e6, 12.3e9].map(duration)") == ["0.00 ms", "1.50 ms", "123.4 ms", "12.30 s"]
    assert node("ticks(0, 100, 5)") == [0, 20, 40, 60, 80, 100]
