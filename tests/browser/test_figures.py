"""What `python -m benchmarks notebooks` says of the widgets in a real Chromium: measured here, with its bars there."""

import json
import statistics
import time

import pytest
from lab import Notebook
from playwright.sync_api import expect
from test_instrument import IMPORTS, crowd

from disagg.course.scenes import SCENES

SIX = (
    f"{IMPORTS}"
    "six = [Request([7] * (60 + 10 * i), 12, 0.2 * i) for i in range(6)]\n"
    "def link(link): return simulate(Config.preset('staged', link=1e6 * link), six)\n"
    "instrument(link, {'link': Numbers('link, MB/s', 20, range(5, 105))})"
)
MOVES = 40
CANVAS = """async (node) => {
  const input = node.querySelector("input"), times = [], { view } = node;
  const frame = () => new Promise((done) => requestAnimationFrame(done)); // drawing was asked for before
  for (let k = 0; k < MOVES; k++) {
    const since = performance.now();
    input.value = 20 + k, input.dispatchEvent(new Event("input", { bubbles: true }));
    while (view.pending) await new Promise((done) => setTimeout(done, 1));
    await frame(), times.push(performance.now() - since);
  }
  return times; }""".replace("MOVES", str(MOVES))
PICTURE = """async (node) => {
  const handle = node.querySelector(".noUi-handle"), image = [...node.querySelectorAll("img")].at(-1), times = [];
  for (let k = 0; k < MOVES; k++) {
    const since = performance.now(), old = image.src;
    handle.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    while (image.src === old || !image.complete) await new Promise((done) => setTimeout(done, 1));
    await new Promise((done) => requestAnimationFrame(done)), times.push(performance.now() - since);
  }
  return times; }""".replace("MOVES", str(MOVES))


def slider_figures(figure, kind: str, times: list[float]):
    times.sort()
    note = f"a moved slider to the new picture, six requests of 30 layers; longest {times[-1]:.0f} ms"
    figure(f"slider_ms[{kind}] p50", times[MOVES // 2], MOVES, note)
    figure(f"slider_ms[{kind}] p95", times[MOVES * 95 // 100], MOVES, note)


def test_a_slider_redraws_the_canvas_while_it_moves(lab, open_page, figure):
    book = Notebook(open_page(lab.notebook("drag", [SIX])))
    book.run_all(until="TTFT")
    view = book.page.locator(".instrument").first
    times = view.evaluate(CANVAS)
    assert len(times) == MOVES and view.evaluate("(node) => node.view.settings.link") == str(25 + MOVES - 1)
    slider_figures(figure, "canvas", times)


def test_a_slider_redraws_pictures_where_anywidget_is_missing(lab, open_page, figure, shot):
    book = Notebook(open_page(lab.notebook("pictures", ["import sys\nsys.modules['anywidget'] = None", SIX])))
    book.run_all(until="since anywidget is not installed")
    expect(book.output.locator("img")).to_have_count(2)
    first = book.output.text_content()
    times = book.output.evaluate(PICTURE)
    shot(book.page, "instrument-pictures")
    assert len(times) == MOVES and book.output.text_content() != first
    slider_figures(figure, "pictures", times)


def test_the_flow_of_twenty_requests_plays_smoothly(open_page, tmp_path, figure):
    page = open_page(crowd("paged").to_html(tmp_path / "run.html").as_uri())
    drawn, took, each = page.evaluate(
        """async () => {
          const { view } = document.querySelector(".flow"), { timeline } = view, times = [];
          const draw = view.draw.bind(view);
          view.draw = () => { const since = performance.now(); draw(), times.push(performance.now() - since); };
          const since = performance.now();
          timeline.play(true), await new Promise((done) => setTimeout(done, 3000)), timeline.play(false);
          return [times.length, performance.now() - since, times]; }"""
    )
    assert drawn > 10
    note = f"drawn while it plays; the flow takes {statistics.median(each):.1f} ms of a frame, {max(each):.1f} at most"
    figure("flow_fps", 1e3 * drawn / took, drawn, note)


ROUNDS = 5
LIVE = """
from disagg import Config, Engine
from disagg.course.scenes import SCENES
from disagg.show import instrument
view = instrument(SCENES["{name}"], engine=Engine(Config.preset("streamed")))
view
"""
PAIRS = """
import json
from disagg.run.engine import Engine
print("rounds begin")
def alone():
    world = view.scene.world(**view.settings)
    with Engine(world.config.replace(model=view.engine.config.model), model=view.engine.model) as engine:
        return engine.serve(list(world.requests))
def shown():
    view.serve(), view.wait()
    return view.real
def p99(runs): return [run.metrics().itl_s.p99 for run in runs]
alone() # the first one loads and warms
pairs = []
for number in range({rounds}):
    if number % 2: without, beside = p99([alone(), shown()])
    else: beside, without = p99([shown(), alone()])
    pairs.append([beside, without])
print("pairs:", json.dumps(pairs), "are all")
"""
COUNT = """(node) => { const { view } = node, take = view.take.bind(view); node.taken = 0;
  view.take = (...given) => (node.taken++, take(...given)); }"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["02", "03", "04", "05"])
def test_a_view_beside_real_work_leaves_the_gaps_as_they_are(lab, open_page, figure, name):
    """The widget is open in the browser, and is served as its button does; in pairs, whose order alternates."""
    if SCENES[name].world is None:
        pytest.skip(f"live_itl[{name}]: its scene has nothing that a real engine could serve")
    cells = [LIVE.format(name=name), PAIRS.format(rounds=ROUNDS)]
    book = Notebook(open_page(lab.notebook(f"live-{name}", cells)))
    book.run_all(until="rounds begin", within_s=120)
    view = book.page.locator(".instrument").first
    view.evaluate(COUNT)
    expect(book.output).to_contain_text("are all", timeout=1_500_000)
    pairs = json.loads(book.output.text_content().partition("pairs: ")[2].partition(" are all")[0])
    taken = view.evaluate("(node) => node.taken")
    assert taken > 2 * ROUNDS, "the view was hardly drawn"
    beside, without = map(statistics.median, zip(*pairs, strict=True))
    note = f"ITL p99 {1e3 * beside:.0f} ms with the view, {1e3 * without:.0f} without; drawn {taken} times in Chromium"
    figure(f"live_itl[{name}]", statistics.median(a / b for a, b in pairs), len(pairs), note)


SPANS = "(least) => (document.querySelector('.instrument')?.view.timeline.spans?.start.length ?? 0) > least"


def test_the_first_answer_streams_with_its_bars(lab, open_page, figure, shot):
    """Chapter 00 as a student opens it: one Shift-Enter, one question, an answer that grows."""
    link, since = lab.chapter("00_start_here"), time.perf_counter()
    page = Notebook(open_page(link)).page
    cell = page.locator(".jp-Notebook .jp-CodeCell").first
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    box = cell.get_by_role("textbox", name="question")
    box.fill("Why is grass green?", timeout=60_000)
    cell.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function(SPANS, arg=0, timeout=60_000)
    few = page.evaluate("document.querySelector('.instrument').view.timeline.spans.start.length")
    page.wait_for_function(SPANS, arg=few, timeout=60_000)
    took = time.perf_counter() - since
    seen = page.locator(".flow canvas").first.bounding_box()
    shot(page, "first-contact")
    within = seen["y"] + seen["height"] <= 720
    note = f"the flow is {'on' if within else 'below'} the first screen of 1,280 × 720, at {seen['y']:.0f} pixels"
    figure("first_contact_s", took, 1, note)
