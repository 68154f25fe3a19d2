"""Pictures: everything is drawn, sentences come from the data, and text in them stays text."""

import ast
import io
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from PIL import Image

import disagg
from benchmarks.claims.report_figures import FIGURES, RECORDING, make, record, stage
from benchmarks.claims.report_plots import gain_picture, goodput_picture
from disagg import Config, Link, Request, simulate
from disagg.run.model.model import load_model
from disagg.show.plots.block_plot import pages_over_time_picture
from disagg.show.plots.gap_plot import gaps_picture
from disagg.show.plots.palette import COLOUR_OF, COLOURS, HATCHES
from disagg.show.plots.preset_plot import ADDS, Rung, ladder_picture
from disagg.show.plots.roofline import (
    Ceilings,
    Point,
    Sizes,
    Work,
    measure_ceilings,
    prefill_work,
    roofline_picture,
    seconds_of,
    step_work,
)
from disagg.show.plots.summaries import first_landed_early, milliseconds, plural, row_names, sentence, short_list
from disagg.show.plots.timeline_plot import compare_picture, timeline_picture
from disagg.trace.results import Result, Run
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline

MS = 1_000_000
LATEX = r"$\frac$ <img src=x onerror=alert(1)> </script>"


def hand_made(exposed_ms: int = 5) -> Run:
    """One request: a pass of 10 ms with 2 layers, 2 copies, 2 steps. Its id is 7, as in an engine's later run."""
    last = (10 + exposed_ms) * MS
    spans = [
        Span("prefill", "prefill 0", 0, 10 * MS, (7,), 0, 20, firsts=(7,), hand_offs_ns=(4 * MS, 8 * MS)),
        Span("copy", "direct 0", 4 * MS, 7 * MS, (7,), 0, 1, 1000, occupied_ns=3 * MS),
        Span("copy", "direct 0", 8 * MS, last, (7,), 1, 1, 1000, occupied_ns=last - 8 * MS),
        Span("decode", "decode 0", last, last + 5 * MS, (7,), 0, 1),
        Span("decode", "decode 0", last + 5 * MS, last + 10 * MS, (7,), 1, 1),
    ]
    times = [10 * MS, last + 5 * MS, last + 10 * MS]
    result = Result(7, 20, 0, [1, 2, 3], times, finish_reason="length", ended_ns=times[-1])
    return Run(Config.preset("streamed", model="tiny"), [result], Timeline(spans))


def simulated(preset: str, requests: int = 3, **changes) -> Run:
    config = Config.preset(preset, model="tiny", **changes)
    return simulate(config, [Request(list(range(1, 40)), 5, 0.002 * i) for i in range(requests)])


def boxes(axes) -> dict[str, PolyCollection]:
    """The drawn boxes by kind; hatches lie over them without a label of their own."""
    found = [c for c in axes.collections if isinstance(c, PolyCollection)]
    return {c.get_label(): c for c in found if c.get_label() in COLOURS}


@pytest.mark.parametrize("preset", list(ADDS))
def test_every_span_is_drawn_once_in_the_colour_of_its_kind(preset):
    run = simulated(preset)
    drawn = boxes(timeline_picture(run).figure.axes[0])
    for kind in COLOURS:
        spans = [span for span in run.timeline.spans if COLOUR_OF[span.kind] == kind]
        if not spans:
            assert kind not in drawn
            continue
        assert len(drawn[kind].get_paths()) == len(spans)
        assert {to_hex(colour) for colour in drawn[kind].get_facecolors()} == {COLOURS[kind].lower()}


def test_boxes_stand_where_and_when_their_spans_do():
    run = hand_made()
    drawn = boxes(timeline_picture(run).figure.axes[0])["link"]
    extents = [path.get_extents() for path in drawn.get_paths()]
    assert [(round(e.x0, 6), round(e.x1, 6)) for e in extents] == [(4, 7), (8, 15)]
    assert all(e.y0 < -1 < e.y1 for e in extents)


def test_rows_that_decode_in_a_pass_leave_most_of_it_in_sight():
    run = simulate(Config.preset("colocated", chunk_tokens=64), [Request([1] * 40, 9), Request([1] * 128, 3, 0.3)])
    spans = run.timeline.spans
    drawn = boxes(timeline_picture(run).figure.axes[0])
    passes = {span.start_ns for span in spans if span.kind == "prefill"}
    steps = zip((span for span in spans if span.kind == "decode"), drawn["decode"].get_paths(), strict=True)
    heights = {(span.start_ns in passes, round(path.get_extents().height, 3)) for span, path in steps}
    assert heights == {(True, 0.24), (False, 0.72)}


def test_rows_follow_the_way_of_a_request():
    labels = [t.get_text() for t in timeline_picture(simulated("staged")).figure.axes[0].get_yticklabels()]
    assert labels == ["prefill", "link to host", "link to decode", "decode"]
    assert list(row_names(simulated("colocated").timeline).values()) == ["device"]
    assert list(row_names(simulated("two_colocated").timeline).values()) == ["device 0", "device 1"]


def test_spills_and_fetches_show_as_paging():
    run = hand_made()
    run.timeline.spans += [
        Span("spill", "spill 0", 20 * MS, 22 * MS, (7,), 0, 2, 2000),
        Span("fetch", "up 0", 23 * MS, 25 * MS, (7,), 0, 2, 2000),
    ]
    axes = timeline_picture(run).figure.axes[0]
    assert len(boxes(axes)["paging"].get_paths()) == 2
    assert [t.get_text() for t in axes.get_yticklabels()] == ["prefill", "link", "link to decode", "decode", "paging"]


def test_parking_has_a_row_of_its_own():
    sizes = {"prefill_blocks": 24, "host_blocks": 64, "decode_blocks": 20}
    run = simulate(Config.preset("paged", link=0.05e9, **sizes), [Request([1] * 96, 40)] * 8)
    assert run.counts["parked"]
    labels = [t.get_text() for t in timeline_picture(run).figure.axes[0].get_yticklabels()]
    assert labels == ["prefill", "link to host", "parking", "link to decode", "decode"]
    over_time = pages_over_time_picture(run)
    assert f"{run.counts['parked']} times K/V were parked" in over_time.finding
    glyphs = {line.get_label(): len(line.get_xdata()) for line in over_time.figure.axes[-1].lines}
    assert glyphs["parked"] == run.counts["parked"] and glyphs["fetch"] == run.counts["fetches"]
    run.timeline.spans.append(Span("spill", "spill 0", 0, MS, (0,)))  # the fourth kind, beside ticks
    figure = timeline_picture(run, window_ms=(0, 300)).figure
    assert figure.draw_without_rendering() is None and figure.legends[0].get_window_extent().x0 > 0


def test_what_was_rejected_is_said():
    limits = [Request([1] * 40, 3, deadline_s=0.001), Request([1] * 40, 3)]
    run = simulate(Config.preset("streamed", policy="deadline"), limits)
    assert sentence(run).startswith("2 requests (1 rejected) in ")
    assert sentence(run, times=False).startswith("2 requests (1 rejected), 80 prompt tokens, 3 new tokens; ")
    assert sentence(run, 0).startswith("Request 0 is rejected by policy: its first token would come ")
    assert sentence(run, 0, times=False) == "40 prompt tokens: the policy rejected it on arrival."
    only = simulate(Config.preset("streamed", policy="deadline"), limits[:1] * 2)
    assert sentence(only) == "2 requests (2 rejected); nothing was recorded."


def test_what_failed_is_said_with_its_cause():
    slow = simulate(Config.preset("streamed", link=2e3, watchdog_s=0.5), [Request([1] * 40, 3)] * 3)
    assert {result.finish_reason for result in slow.results} == {"failed"}
    cause = " Failure of request 0: watchdog: request 0: its direct transfer of 3 blocks has not landed within 0.5 s."
    assert sentence(slow).startswith("3 requests (3 failed) in ") and sentence(slow).endswith(f".{cause}")
    assert sentence(slow, 0).endswith(cause) and "Failure of request 2: " in sentence(slow, 2)
    assert sentence(slow, times=False).startswith("3 requests (3 failed), 120 prompt tokens, 3 new tokens; ")
    slow.results[1].finish_reason = "cancelled"
    assert sentence(slow).startswith("3 requests (2 failed, 1 cancelled) in ")
    assert "Failure" not in sentence(slow, 1)


def test_hand_off_ticks_are_drawn_where_there_is_room():
    def ticks(picture):
        lines = [c for c in picture.figure.axes[0].collections if c.get_label() == "hand-off"]
        return sum(len(c.get_segments()) for c in lines if isinstance(c, LineCollection))

    assert ticks(timeline_picture(hand_made())) == 2
    assert ticks(timeline_picture(hand_made(), window_ms=(0, 5000))) == 0


def facts(picture) -> list[str]:
    """Words in the drawing."""
    return [text.get_text().replace("\n", " ") for axes in picture.figure.axes for text in axes.texts]


def numbers(run, **how) -> set[str]:
    texts = timeline_picture(run, **how).figure.axes[0].texts
    return {text.get_text() for text in texts if re.fullmatch(r"[\d–, ]+", text.get_text())}


def test_numbers_are_those_of_the_results():
    run = simulated("staged")
    assert "0" in numbers(run, window_ms=(0, 10))
    run = hand_made()
    assert not numbers(run), "one request needs no number"
    run.results.insert(0, Result(6, 5, 0, finish_reason="cancelled"))
    assert numbers(run) == {"1"}, "the engine's id is 7, but it is result 1 of this run"


def test_h_e_and_gaps_stand_beside_what_they_measure():
    """By hand: 10 ms of copying, 5 of them after token 1 at 10 ms; token 2 at 20. A crowd's gaps are the longest."""
    for picture in (timeline_picture(hand_made(), 0), timeline_picture(hand_made())):
        rows = {text.xy[1]: text.get_text() for text in picture.figure.axes[0].texts if text.xy[0] == 1}
        assert rows == {0: "TTFT\n10 ms", -1: "H = 50%", -2: "second-token\ngap 10 ms"}
        bracket = picture.figure.axes[0].lines[1]
        assert "token 1, then E = 5 ms" in facts(picture) and list(bracket.get_xdata()) == [10, 10, 15, 15]
    assert "token 1, then E = 0 ms" in facts(timeline_picture(hand_made(exposed_ms=0)))
    run = simulated("two_colocated", 4)
    longest = [milliseconds(max(max(result.itl_s) for result in run.results[i::2])) for i in (0, 1)]
    gaps = [words for words in facts(timeline_picture(run)) if words.startswith("longest gap")]
    assert gaps == [f"longest gap {words}" for words in longest]


def test_the_finding_states_what_the_data_say():
    assert sentence(hand_made()) == (
        "Token 1 came after 10 ms; 10 ms of copying, of which H = 50% was hidden and E = 5 ms was left after token 1; "
        "token 2 came 10 ms after token 1."
    )
    assert "E = 9 ms" in sentence(hand_made(exposed_ms=9))
    assert sentence(hand_made(), times=False) == (
        "20 prompt tokens, 3 new tokens: 1 prefill pass, 2 decode steps, 2 copies of 2 layers over 1 link (0.0 MB); "
        "the first layer landed before the last was computed."
    )
    assert "nothing was copied" in sentence(simulated("colocated"))
    assert sentence(simulated("streamed"), times=False).startswith("3 requests, 117 prompt tokens, 15 new tokens; ")


def test_a_finding_without_times_is_the_same_at_every_speed():
    slow, fast = (simulated("staged", link=link) for link in (1e6, 100e6))
    assert sentence(slow) != sentence(fast)
    assert sentence(slow, times=False) == sentence(fast, times=False)


def test_first_landed_early_is_false_for_a_bulk_hand_off():
    assert first_landed_early(hand_made(), 0)
    assert not first_landed_early(simulated("split"), 0)
    assert not first_landed_early(simulated("colocated"), 0)


def test_a_request_that_never_began_has_a_picture_too():
    result = Result(0, 5, 0, finish_reason="cancelled", ended_ns=MS)
    run = Run(Config(model="tiny"), [result], Timeline([]))
    for picture in (timeline_picture(run), timeline_picture(run, 0), timeline_picture(run, times=False)):
        assert picture.finding and picture.png()


def test_compared_runs_share_one_scale_and_name_the_more_exposed():
    runs = {"near": hand_made(exposed_ms=1), "far": hand_made(exposed_ms=30)}
    picture = compare_picture(runs, 0, times=False)
    first, second = picture.figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert picture.finding == "More copying is left after token 1 with far than with near."
    assert "near: Token 1" in picture.alt and "far: Token 1" in picture.alt


def test_the_bundle_holds_png_alt_text_and_the_finding_and_same_data_give_same_bytes(tmp_path):
    picture = timeline_picture(hand_made())
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == picture.finding == repr(picture) == str(picture)
    assert metadata["image/png"]["alt"] == picture.alt
    assert picture.alt.startswith("Timeline") and picture.finding in picture.alt
    image = Image.open(io.BytesIO(picture.png()))
    assert image.format == "PNG" and image.width == 2 * metadata["image/png"]["width"] == 1800
    timeline_picture(hand_made()).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == timeline_picture(hand_made()).png()


def test_a_cell_shows_the_png_and_below_it_the_sentence(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata=None: shown.append((data, metadata)))
    picture = replace(timeline_picture(hand_made()), finding="Who waits <here>?")
    picture._ipython_display_()
    (drawn, metadata), (below, none) = shown
    assert drawn.keys() == {"image/png", "text/plain"} and metadata["image/png"]["alt"] == picture.alt and none is None
    assert below.keys() == {"text/html"}, "a terminal has the sentence once"
    assert below["text/html"].endswith('<div class="picture-says">Who waits &lt;here&gt;?</div>')


def test_names_from_outside_are_drawn_as_text():
    compare_picture({LATEX: hand_made(), "b": hand_made()}, 0).png()  # mathtext would raise
    ladder_picture({LATEX: hand_made()}).png()


def test_ladder_draws_a_bar_and_a_value_for_each_number():
    runs = {name: simulated(name, link=Link(20e6)) for name in ADDS}
    picture = ladder_picture(runs)
    assert len(picture.figure.axes) == 4
    for axes in picture.figure.axes:
        assert len(axes.patches) == len(axes.texts) == len(runs)
    rung = Rung.of("staged", runs["staged"])
    assert f"staged: TTFT {1e3 * rung.ttft_s:.0f} ms" in picture.alt
    best = max(runs, key=lambda name: runs[name].metrics().tokens_per_s)
    assert picture.finding.startswith(f"Most tokens a second: {best} (")
    assert "none" in ladder_picture([Rung("baseline", None, None, 0.0, None)]).alt


def test_colours_are_okabe_and_itos_and_differ_without_colour():
    assert COLOURS == {"prefill": "#0072B2", "link": "#E69F00", "decode": "#009E73", "paging": "#CC79A7"}
    assert len(set(HATCHES.values())) == len(HATCHES)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "run.jsonl.gz"
    record(path, model="tiny", new_tokens=3)
    return path


def test_figures_are_named_and_made_in_a_folder(tmp_path, recording):
    assert "first_run" in FIGURES
    assert make("first_run", tmp_path, recording=recording).stat().st_size > 10_000
    with pytest.raises(ValueError, match="first_run"):
        make("../first_run", tmp_path)


def test_every_file_of_figures_has_its_maker():
    stored = {path.name for path in (Path(disagg.__file__).parents[1] / "figures").iterdir() if path.is_file()}
    assert stored == {file for _, file in FIGURES.values()} | {"claims.json"}


@pytest.mark.parametrize("name", ["first_run", "demo_gif"])
def test_the_same_recording_gives_the_same_bytes(tmp_path, recording, name):
    first, second = (make(name, tmp_path / folder, recording=recording).read_bytes() for folder in ("a", "b"))
    assert first == second


def test_the_stored_ladder_is_that_of_the_measured_rows(tmp_path):
    stored = Path(disagg.__file__).parents[1] / "figures" / "demo.png"
    with Image.open(stored) as kept, Image.open(make("demo", tmp_path)) as made:
        assert kept.convert("RGB").tobytes() == made.convert("RGB").tobytes()


def test_headline_pictures_say_every_number():
    picture = gain_picture({"colocated": [(2, 1.9), (4, 3.8)], "dynamic": [(2, 2.0), (4, 4.1)]}, (4,), "Two L4")
    assert "colocated 1.9 with 2, 3.8 with 4; dynamic 2.0 with 2, 4.1 with 4" in picture.finding
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["the report's 4x"]
    share = {"streamed": [(1, 1.0), (2, 0.95), (3, 0.5)], "two_colocated": [(1, 0.8), (2, 0.91)]}
    picture = goodput_picture({"TPOT within 88 ms": share}, "Two L4")
    assert "TPOT within 88 ms: streamed 2/s, two_colocated below 1/s" in picture.finding
    assert picture.png() == picture.png()


def test_the_film_opens_on_a_busy_system_and_closes_on_what_was_hidden(tmp_path, recording):
    path = make("demo_gif", tmp_path, recording=recording)
    assert path.name == "demo.gif" and path.stat().st_size < 2_000_000
    with Image.open(path) as shown:
        assert shown.n_frames > 30 and shown.info["loop"] == 0 and shown.info["duration"] == 1500
        first, sizes = shown.convert("RGB").tobytes(), set()
        for number in range(shown.n_frames):
            shown.seek(number)
            sizes.add(shown.size)
        assert shown.convert("RGB").tobytes() != first and shown.info["duration"] == 3000 and len(sizes) == 1


def test_the_film_tells_a_request_s_way_stage_by_stage():
    run = Run.load(RECORDING)
    way = run.results[0]
    told, landed = run.timeline.prefill_end_ns(way.request), max(s.end_ns for s in run.timeline.hand_off(way.request))
    instants = [way.arrival_ns, told, landed]
    assert told < landed
    words = [stage(run, 0, (at - way.arrival_ns) / 1e6) for at in instants]
    assert [said.split()[0] for said in words] == ["Prefill", "Token", "All"]


def test_words():
    assert [plural(n, "copy") for n in (0, 1, 2)] == ["0 copies", "1 copy", "2 copies"]
    assert [plural(2, "pass"), plural(2, "step")] == ["2 passes", "2 steps"]
    assert [short_list(n) for n in ([], [3], [0, 1], [0, 1, 2, 5])] == ["", "3", "0, 1", "0–2, 5"]


def test_no_pyplot_anywhere_in_the_package():
    for path in Path(disagg.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = getattr(node, "module", None) or ""
            assert not any("pyplot" in name or "pylab" in name for name in [*names, module]), path.name


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(matplotlib.rcParams)
    timeline_picture(hand_made()).png()
    assert dict(matplotlib.rcParams) == before


def test_a_cause_is_named_where_receipts_name_it():
    """H is below 0 with a crowd on one wire, and with one request on a wire of long latency, where nobody queued."""
    asked = [Request([1] * 200, 4) for _ in range(6)]
    crowd = simulate(Config.preset("streamed", link=2e6), asked)
    far = Config.preset("split", link=Link(bandwidth=4e8, latency_s=0.2))
    alone = simulate(far, [asked[0], Request([1] * 9, 4, 60.0)])
    assert crowd.overlap().hidden < 0 and alone.overlap().hidden < 0
    assert crowd.receipts()["link-busy"] > 0 and "copies queued for their wire: " in sentence(crowd)
    assert "queued" not in sentence(alone) and " of copying left E = " in sentence(alone)


SIZES = Sizes(layers=2, layer_weights=100, head_weights=30, width=4, token_bytes=10)
PAPER = Ceilings(100.0, 10.0)


def test_works_by_hand():
    """Prefill of three tokens attends over 1 + 2 + 3; a step reads the weights once for both rows, K/V for each."""
    assert prefill_work(SIZES, 3) == Work(2 * (600 + 30) + 4 * 2 * 4 * 6, 4 * 230 + 30)
    assert step_work(SIZES, [5, 7]) == Work(2 * 2 * 230 + 4 * 2 * 4 * 12, 4 * 230 + 120)
    assert prefill_work(SIZES, 1) == step_work(SIZES, [1])


def test_sizes_count_every_matrix_of_the_module():
    model = load_model("tiny")
    matrices = [p for name, p in model.reference().named_parameters() if p.dim() == 2 and "embed" not in name]
    sizes = Sizes.of(model)
    head = sizes.head_weights if model.config.tie_word_embeddings else 0  # a tied head is no parameter of its own
    assert sizes.weights + sizes.head_weights == sum(p.numel() for p in matrices) + head
    assert sizes.token_bytes == model.shape.token_bytes


def test_the_slower_of_computing_and_reading():
    assert PAPER.ridge == 10
    assert Work(1000, 10).seconds(PAPER) == 10  # compute
    assert Work(10, 1000).seconds(PAPER) == 100  # memory


def test_ceilings_are_measured_and_threads_put_back():
    before = torch.get_num_threads()
    found = measure_ceilings(threads=1, side=32, rows=64, repeats=2)
    assert found.flops_per_s > 0 and found.bytes_per_s > 0
    assert torch.get_num_threads() == before


def test_roofline_says_the_limit_of_each_point():
    points = [Point("prefill", "prefill", Work(1000, 10)), Point("one row", "decode", Work(10, 1000), 200.0)]
    picture = roofline_picture(PAPER, points)
    assert picture.finding == (
        "The ridge is at 10.0 FLOPs a byte. Prefill: 100.0 FLOPs a byte, the limit is compute, 10000 ms at least. "
        "One row: 0.0 FLOPs a byte, the limit is memory; 200000 ms measured, 50% of the ceiling."
    )
    lines = {line.get_label(): line.get_xydata().tolist() for line in picture.figure.axes[0].lines}
    assert lines["one row"] == [[0.01, 10 / 200.0 / 1e9]]
    assert lines["prefill"] == [[100.0, 100.0 / 1e9]]  # on the roof
    assert {"≥ 10000 ms", "200000 ms, 50% of the roof"} <= set(facts(picture))
    assert picture.png()


def _run(chunk: int):
    requests = [Request([5] * 32, 12), Request([7] * 160, 2, arrival_s=0.4)]
    return simulate(Config.preset("colocated", model="tiny", chunk_tokens=chunk), requests)


def test_seconds_of_takes_spans_of_that_kind_and_count():
    run = _run(256)
    assert seconds_of(run, "prefill", 32) == pytest.approx(0.133, abs=1e-4)  # 2 + 32 × 4 ms, the head 3
    assert seconds_of(run, "decode", 2) > seconds_of(run, "decode", 1)


def test_gaps_show_who_waited_for_the_long_prompt():
    runs = {"whole": _run(256), "in chunks": _run(32)}
    picture = gaps_picture(runs, [0])
    assert facts(picture) == [f"longest gap {milliseconds(max(run.results[0].itl_s))}" for run in runs.values()]
    longest = {name: max(run.results[0].itl_s) for name, run in runs.items()}
    assert longest["whole"] > 2 * longest["in chunks"]
    for name, gap in longest.items():
        assert f"{name} {1e3 * gap:.0f} ms" in picture.finding
    points = [sum(len(line.get_xdata()) for line in axes.lines) for axes in picture.figure.axes]
    assert points == [11, 11]
    assert picture.png()
