"""The exported page: nothing from outside becomes markup, nothing can be asked for, and the columns are the spans."""

import base64
import hashlib
import json
import re

from hypothesis import given
from hypothesis import strategies as st
from test_plots import LATEX, MS, hand_made, simulated

from disagg import Config, Timeline
from disagg.show.columns import KINDS, STATES, SpanColumns, move_columns, pack
from disagg.show.html_page import page
from disagg.trace.results import Result, Run
from disagg.trace.spans import BlockMove, Span


def unpack(data: bytes) -> list[list[int]]:
    """What canvas.js does."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    columns, rest = [], iter(numbers)
    for length in rest:
        last, column = 0, []
        for _ in range(length):
            step = next(rest)
            last += -(step + 1) // 2 if step % 2 else step // 2
            column.append(last)
        columns.append(column)
    return columns


def embedded(text: str, name: str) -> bytes:
    return base64.b64decode(re.search(f'id="{name}">([^<]*)<', text)[1])


@given(st.lists(st.lists(st.integers(-(2**51), 2**51))))
def test_columns_come_back(columns):
    assert unpack(pack(columns)) == columns


def test_packed_bytes_are_few():
    assert len(pack([range(0, 1_000_000, 50)])) < 20_010, "a byte a step"


def test_the_page_holds_every_span():
    run = simulated("paged")
    lengths, members, group, kind, row, start, duration, index, count, nbytes, waited, handed, marks = unpack(
        embedded(page(run), "columns")
    )
    members = iter(members)
    groups = [tuple(next(members) for _ in range(length)) for length in lengths]
    rows = sorted({span.place for span in run.timeline.spans}, key=run.timeline.places.index)
    found = [
        Span(
            KINDS[kind[i]],
            rows[row[i]],
            start[i],
            start[i] + duration[i],
            groups[group[i]],
            index[i],
            count[i],
            nbytes[i],
        )
        for i in range(len(start))
    ]
    assert [span[:8] for span in found] == [span[:8] for span in run.timeline.spans]


def test_the_page_holds_every_move_of_blocks():
    moves = [
        BlockMove(5 * MS, "decode 0", "in_flight", 7, (3, 4, 5, 9)),
        BlockMove(6 * MS, "decode 0", "free", None, (5, 4)),
    ]
    at, pool, state, owner, runs, first, count = unpack(move_columns(moves, ["host", "decode 0"], MS, {7: 0}))
    assert at == [4 * MS, 5 * MS] and pool == [1, 1] and [STATES[s] for s in state] == ["in_flight", "free"]
    assert owner == [0, -1] and runs == [2, 2] and first == [3, 9, 5, 4] and count == [3, 1, 1, 1]


def test_nothing_from_outside_becomes_markup():
    run = hand_made()
    run.results[0].text, run.results[0].error, run.machine = LATEX, LATEX, LATEX
    run.results[0].prompt = LATEX
    text = page(run)
    assert "<img" not in text and "&lt;img src=x onerror=alert(1)&gt; &lt;/script&gt;" in text
    assert text.count("</script>") == text.count("<script") == 5


def test_names_in_the_data_cannot_end_their_script():
    run = hand_made()
    run.timeline.moves.append(BlockMove(0, "</script>", "used", 7, (0,)))
    run.timeline.sizes["</script>"] = 1
    text = page(run)
    assert text.count("</script>") == 5
    assert json.loads(re.search('id="data">(.*?)</script>', text)[1])["flow"]["pools"][-1] == ["</script>", 1]


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else():
    text = page(hand_made())
    policy = dict(part.split(" ", 1) for part in re.search('Policy" content="([^"]*)"', text)[1].split("; "))
    script, style = (
        re.search('<script type="module">(.*)</script>', text, re.S)[1],
        re.search("<style>(.*)</style>", text, re.S)[1],
    )
    for name, body in (("script-src", script), ("style-src", style)):
        assert policy.pop(name) == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
    assert policy == dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
    assert not re.search("https?:|url\\(|@import|\\ssrc=|\\shref=|style=", text.replace(script, "")), (
        "it asks for something"
    )
    assert not re.search("https?:|fetch\\(|import\\(|innerHTML|XMLHttpRequest|WebSocket", script)


def test_receipts_are_a_table_and_a_bar():
    run = simulated("staged")
    text = page(run)
    total = 1e3 * run.results[1].receipt.total_s
    assert f"<td>{total:.1f}</td></tr>" in text and '<svg class="bar"' in text
    assert "Mean of a request" in text and text.index("<svg") < text.index("<script"), "read without a script"


def test_a_run_without_receipts_says_so():
    text = page(hand_made())
    assert "not recorded" in text and "<svg" not in text
    assert "<svg" not in page(Run(Config(model="tiny"), [], Timeline([]))), "a run of nothing has a page too"


def test_prompts_are_text_or_named_as_token_ids(tmp_path):
    run = simulated("staged", requests=2)
    assert "the prompt was given as token ids" in page(run)
    run.results[0].prompt = "Why is the sky blue?"
    assert "Why is the sky blue?" in run.to_html(tmp_path / "a.html").read_text("utf-8")


def test_a_models_folder_is_not_shown():
    result = Result(0, 5, 0, finish_reason="cancelled", ended_ns=MS)
    text = page(Run(Config(model="/home/someone/models/mine"), [result], Timeline([])))
    assert "someone" not in text and "<td>mine</td>" in text


def test_size_of_a_long_run():
    run = simulated("staged", requests=120)
    text = page(run)
    assert len(run.timeline.spans) > 6_000
    assert len(text) / len(run.timeline.spans) < 75, "1.5 MB for 20,000 spans"


def test_new_rows_keep_the_order_of_a_requests_way():
    spans = SpanColumns()
    assert spans.add([Span("decode", "decode 0", 0, 1, (0,))]) == 0
    assert spans.add([Span("prefill", "prefill 0", 0, 1, (0,)), Span("copy", "direct 0", 0, 1, (0,))]) == 1
    header, data = spans.chunk(1)
    assert header == {"first": 1, "rows": [("prefill 0", "prefill"), ("direct 0", "link"), ("decode 0", "decode")]}
    assert unpack(data)[4] == [0, 1]
