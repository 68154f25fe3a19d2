"""The trace against the documented format of trace events, and against Perfetto's own trace processor where it is."""

import json
import math
import shutil
from collections import defaultdict

import pytest
from engine_tools import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_archive import simulated, timelines

from disagg import Engine, Link, Request
from disagg.plan.config import PRESETS
from disagg.trace.perfetto import QUEUES, microseconds
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline


def traced(timeline: Timeline, tmp_path) -> list[dict]:
    timeline.to_perfetto(tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert content.keys() == {"displayTimeUnit", "traceEvents"} and content["displayTimeUnit"] in ("ms", "ns")
    return content["traceEvents"]


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def check(events: list[dict]):
    """Types and fields of each phase, names, nesting of slices, and arrows that end inside slices."""
    for event in events:
        assert event["ph"] in "MXCstf" and isinstance(event["name"], str)
        assert type(event["pid"]) is int and event["pid"] > 0 and type(event["tid"]) is int
        assert event["tid"] == 0 or event["tid"] > 1000, "beyond what a process may be numbered"
        assert isinstance(event["ts"], (int, float)) and math.isfinite(event["ts"]) and event["ts"] >= 0
        if event["ph"] == "X":
            assert isinstance(event["dur"], float) and event["dur"] >= 0 and isinstance(event["args"], dict)
        if event["ph"] == "C":
            assert all(type(value) is int for value in event["args"].values())
    body = [event for event in events if event["ph"] != "M"]
    assert [e["ts"] for e in body] == sorted(e["ts"] for e in body), "later events come later"
    check_names(events, body)
    check_nesting(body)
    check_arrows(body)


def check_names(events: list[dict], body: list[dict]):
    named = defaultdict(set)
    for event in events:
        if event["ph"] == "M":
            key = (event["pid"], event["tid"]) if event["name"].startswith("thread") else event["pid"]
            assert key not in named[event["name"]], "named twice"
            named[event["name"]].add(key)
    for names, keys in (("process", {e["pid"] for e in body}), ("thread", {(e["pid"], e["tid"]) for e in body})):
        assert keys <= named[f"{names}_name"] == named[f"{names}_sort_index"]


def check_nesting(body: list[dict]):
    """On one thread a slice begins after the ones before it have ended, or ends with or before the one around it."""
    around = defaultdict(list)
    for event in body:
        if event["ph"] == "X":
            start, end, stack = ns(event["ts"]), ns(event["ts"]) + ns(event["dur"]), around[event["pid"], event["tid"]]
            while stack and stack[-1] <= start:
                stack.pop()
            assert not stack or end <= stack[-1], f"{event} juts out"
            stack.append(end)


def check_arrows(body: list[dict]):
    slices, arrows = defaultdict(list), defaultdict(list)
    for event in body:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])))
        elif event["ph"] in "stf":
            assert event["bp"] == "e" and type(event["id"]) is int
            arrows[event["id"]].append(event)
    for ends in arrows.values():
        assert "".join(e["ph"] for e in ends) in ("sf", "stf")
        assert [e["ts"] for e in ends] == sorted(e["ts"] for e in ends)
        for event in ends:
            assert any(a <= ns(event["ts"]) < b for a, b in slices[event["pid"], event["tid"]]), "hangs in the air"


def names_of(events: list[dict], what: str) -> list[str]:
    return [event["args"]["name"] for event in events if event["name"] == what]


def arrows_of(events: list[dict]) -> list[list[str]]:
    found = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            around = [s for s in events if s["ph"] == "X" and (s["pid"], s["tid"]) == (event["pid"], event["tid"])
                      and ns(s["ts"]) <= ns(event["ts"]) < ns(s["ts"]) + ns(s["dur"])]  # fmt: skip
            found[event["id"]].append(min(around, key=lambda s: s["dur"]))
    return list(found.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_follows_the_format(preset, tmp_path):
    run = simulated(preset, 10, decode_blocks=40, prefill_blocks=40)
    events = traced(run.timeline, tmp_path)
    check(events)
    own = [e for e in events if e["ph"] == "X" and e["cat"] not in ("layer", "gate")]
    assert len(own) == len(run.timeline.spans)
    layers = [e for e in events if e["ph"] == "X" and e["cat"] == "layer"]
    assert len(layers) == sum(len(span.hand_offs_ns) for span in run.timeline.spans)
    assert sum(e["ph"] == "C" for e in events) == sum(isinstance(m.value, int) for m in run.timeline.marks)


@pytest.mark.parametrize("preset, hops", [("split", 1), ("streamed", 1), ("staged", 2)])
def test_an_arrow_leads_from_each_layer_to_its_landing(preset, hops, tmp_path):
    run = simulated(preset, 5, chunk_tokens=64)
    events = traced(run.timeline, tmp_path)
    arrows = arrows_of(events)
    assert len(arrows) == sum(s.kind == "copy" for s in run.timeline.spans) // hops
    for first, *copies in arrows:
        assert first["cat"] == "layer" and len(copies) == hops and all(c["cat"] == "copy" for c in copies)
        last = copies[0]["name"].replace("–", " ").split()[-1]
        assert first["name"] == f"layer {last}" and len({c["name"] for c in copies}) == 1
        assert ns(first["ts"]) + ns(first["dur"]) <= ns(copies[0]["ts"])
    sent = {span.requests[0] for span in run.timeline.spans if span.kind == "copy"}  # not those of one token
    passes = {(s.start_ns, s.end_ns) for s in run.timeline.spans if s.kind == "prefill" and sent & set(s.requests)}
    if preset != "split":
        touched = [next(p for p in passes if p[0] <= ns(first["ts"]) < p[1]) for first, *_ in arrows]
        assert set(touched) == passes, "each chunk's pass sends its own layers"


def test_copies_that_waited_for_their_target_keep_their_own_pass(tmp_path):
    """Both became ready after the second pass, when the target's blocks were known."""
    passes = [Span("prefill", "prefill 0", at, at + 100, (0,), hand_offs_ns=(at + 50,)) for at in (0, 100)]
    copies = [Span("copy", "direct 0", at, at + 50, (0,), 0, 1, 8, transfer=2, ready_ns=300) for at in (300, 350)]
    arrows = arrows_of(traced(Timeline(passes + copies), tmp_path))
    assert [[ns(end["ts"]) for end in ends] for ends in arrows] == [[0, 300], [100, 350]]


def test_rows_stand_in_the_order_of_a_requests_way_and_slices_carry_what_a_click_should_show(tmp_path):
    events = traced(simulated("staged").timeline, tmp_path)
    processes = ["prefill on cpu", "link to host", "link to decode", "decode on cpu", QUEUES]
    assert names_of(events, "process_name") == processes
    assert names_of(events, "thread_name")[:4] == ["prefill 0", "down 0", "up 0", "decode 0"]
    order = [e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"]
    assert order == sorted(order)
    args = {e["cat"]: e["args"] for e in reversed(events) if e["ph"] == "X"}
    assert args["prefill"].keys() >= {"requests", "tokens", "blocks"} and args["prefill"]["requests"] == [0]
    assert args["copy"]["bytes"] > 0 and args["copy"]["blocks"] > 0 and args["decode"]["rows"] == 1


def test_a_wire_with_latency_keeps_one_row(tmp_path):
    events = traced(simulated("streamed", link=Link(0.05e9, latency_s=0.5)).timeline, tmp_path)
    check(events)
    assert [name for name in names_of(events, "thread_name") if name.startswith("direct")] == ["direct 0"]
    copy = next(e for e in events if e.get("cat") == "copy")
    assert copy["args"]["landed after (µs)"] == pytest.approx(copy["dur"] + 500_000)


def test_a_real_run(tmp_path):
    with Engine(small("staged", link=Link.ratio(0.5))) as engine:
        run = engine.serve([Request([1, 2, 3] * 20, 6), Request([1, 2, 3], 3)])
    events = traced(run.timeline, tmp_path)
    check(events)
    assert len(arrows_of(events)) == sum(s.kind == "copy" for s in run.timeline.spans) // 2
    assert not any("(2)" in name for name in names_of(events, "thread_name"))


@given(timelines())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_timeline_gives_a_trace_that_nests(tmp_path, timeline):
    short = [span._replace(start_ns=span.start_ns % 50, end_ns=span.start_ns % 50 + span.end_ns % 50, occupied_ns=0,
                           hand_offs_ns=()) for span in timeline.spans]  # fmt: skip
    marks = [mark._replace(at_ns=mark.at_ns % 100) for mark in timeline.marks]
    check(traced(Timeline(short, 0, marks, [], timeline.devices), tmp_path))


def test_an_empty_timeline_and_a_packed_file(tmp_path):
    assert traced(Timeline(), tmp_path) == []
    simulated().timeline.to_perfetto(tmp_path / "trace.json.gz")
    assert (tmp_path / "trace.json.gz").read_bytes().startswith(b"\x1f\x8b")


def test_text_in_a_name_stays_text(tmp_path):
    place = {"up 0": '</script>"\\\u2028'}
    events = traced(Timeline([Span("copy", "up 0", 0, 5, (0,))], devices=place), tmp_path)
    assert names_of(events, "process_name") == list(place.values())


@given(st.integers(0, 2**52))
def test_multiplying_and_cutting_off_gives_the_same_ns(ns):
    assert int(microseconds(ns) * 1000.0) == ns and abs(microseconds(ns) - ns / 1000) <= 2 * math.ulp(ns / 1000)


def test_perfettos_own_reader_finds_all_of_it(tmp_path):
    processor = pytest.importorskip("perfetto.trace_processor", reason="needs the package perfetto")
    shell = shutil.which("trace_processor_shell")
    if shell is None:
        pytest.skip("needs trace_processor_shell on the PATH: the package perfetto would download it")
    run = simulated("staged")
    run.timeline.to_perfetto(tmp_path / "trace.json")
    config = processor.TraceProcessorConfig(bin_path=shell)
    with processor.TraceProcessor(trace=str(tmp_path / "trace.json"), config=config) as trace:
        one = lambda query: next(iter(trace.query(f"select count(*) as n from {query}"))).n  # noqa: E731
        events = traced(run.timeline, tmp_path)
        assert one("slice") == sum(e["ph"] == "X" for e in events)
        assert one("flow") == sum(e["ph"] in "tf" for e in events)
        assert one("counter") == sum(e["ph"] == "C" for e in events)
        assert one("slice where depth = 1") == sum(e.get("cat") == "layer" for e in events)
        assert one("stats where severity = 'error' and value > 0") == 0


def test_work_that_began_when_it_could_has_not_waited(tmp_path):
    spans = [Span("decode", "decode 0", start, start + 50, (0,), ready_ns=ready) for start, ready in ((9, 9), (99, 60))]
    waited = [e["args"]["waited (µs)"] for e in traced(Timeline(spans), tmp_path) if e["ph"] == "X"]
    assert waited == [0, pytest.approx(0.039)]
