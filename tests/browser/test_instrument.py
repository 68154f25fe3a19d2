"""The moving picture and the instruments in a real Chromium: what they show is what the timeline holds."""

import random
import re

import pytest
from flow_by_hand import blocks_by_hand, by_hand
from lab import Notebook
from playwright.sync_api import expect

from disagg import Config, Request, simulate
from disagg.plan.config import PRESETS

SETTLE = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
TWENTY = [Request([1] * (30 + 12 * (i % 5)), 6 + 3 * (i % 4), 0.12 * i) for i in range(20)]


def crowd(preset: str):
    few = {"decode_blocks": 24, "ring_slots": 2, "link": 8e6} if preset in ("staged", "paged", "dynamic") else {}
    return simulate(Config.preset(preset, **few), TWENTY)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_flow_agrees_with_the_timeline_counted_by_hand(open_page, tmp_path, figure, preset):
    run, chance = crowd(preset), random.Random(2)
    page = open_page(run.to_html(tmp_path / "run.html").as_uri())
    length = run.timeline.end_ns - run.timeline.start_ns
    moments = [0, length, *(chance.randrange(length) for _ in range(200))]
    shown = page.evaluate(
        """(moments) => { const { flow } = document.querySelector(".flow").view; return moments.map((ns) => {
          flow.blocks.seek(ns);
          const pools = flow.blocks.pools.map((p) => [p.name, [...p.states], [...p.owners]]);
          return { ...flow.at(ns), pools }; }); }""",
        moments,
    )
    states, numbers = ("free", "in_flight", "used", "quarantined"), {r.request: i for i, r in enumerate(run.results)}
    for ns, now in zip(moments, shown, strict=True):
        wanted = by_hand(run, ns)
        for name in ("passes", "steps", "flights", "ready", "ring", "tokens"):
            assert now[name] == wanted[name], (ns, name)
        assert sorted(one for here in now["here"].values() for one in here) == wanted["open"]
        blocks = blocks_by_hand(run, ns)
        for pool, state, owner in now["pools"]:
            for block, (name, request) in blocks.get(pool, {}).items():
                assert states[state[block]] == name and owner[block] == numbers.get(request, -1), (ns, pool, block)
    assert page.complaints == []
    figure(f"flow_agrees[{preset}]", 100.0, len(moments), "moments; the picture against the timeline by brute force")


def test_flow_and_timeline_have_one_playhead_and_every_width(open_page, tmp_path, shot):
    page = open_page(crowd("paged").to_html(tmp_path / "run.html").as_uri())
    canvas = page.locator(".flow canvas")
    page.locator("#scrub").fill("900")
    expect(canvas).to_have_attribute("aria-label", re.compile(r"^At 900\.0 ms: .* ring slots held\.$"))
    page.get_by_role("button", name="step", exact=True).click()
    page.evaluate(SETTLE)
    assert not canvas.get_attribute("aria-label").startswith("At 900.0 ms")
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
        page.set_viewport_size({"width": width, "height": 720})
        page.emulate_media(color_scheme=scheme)
        page.evaluate(SETTLE)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shot(page, f"flow-{width}-{scheme}")
    assert page.complaints == []


IMPORTS = """
from disagg import Config, Engine, Request, simulate
from disagg.course.scenes import SCENES
from disagg.show import instrument
from disagg.show.scene import Numbers
"""
ALL = """
from disagg.course import recorded
from disagg.course.buglab.replays import replays
from disagg.course.scenes import SCENES
from disagg.show import instrument, recordings
every = {
    **SCENES,
    "07, the SMs shared": recorded.sharing(recordings.timelines()),
    "07, the dial": recorded.dials(recordings.staged()),
    "07, the splits": recorded.splits(recordings.splits()),
    "08": replays(case_b={"bug": "lost notice", "before": "failure told", "after": "waiting ends"}.get),
}
"""
CELLS = """
shown = {{name: instrument(every[name]) for name in {names}}}
from IPython.display import display
for name in shown: display(shown[name])
"""


@pytest.fixture(scope="module")
def every() -> dict:
    """The scenes of all chapters, as the cell has them."""
    names: dict = {}
    exec(ALL, names)
    return names["every"]


def turned(view, name: str, by: int):
    """Moves a control by so many places, as a reader's mouse or keys do; gives back the value that is shown."""
    return view.locator(f'[name="{name}"]').evaluate(
        """(node, by) => { const select = node.tagName === "SELECT", key = select ? "selectedIndex" : "value";
          const most = select ? node.options.length - 1 : Number(node.max), at = Number(node[key]);
          node[key] = (at + by) % (most + 1);
          for (const heard of ["input", "change"]) node.dispatchEvent(new Event(heard, { bubbles: true }));
          return node.closest(".instrument").view.settings[node.name]; }""",
        by,
    )


def spans_shown(view) -> list:
    return view.evaluate(
        "(node) => { const { spans } = node.view.timeline; return spans.start.map((s, i) => [s, spans.stop[i]]); }"
    )


def spans_of(run) -> list:
    return [[s.start_ns - run.timeline.start_ns, s.end_ns - run.timeline.start_ns] for s in run.timeline.spans]


@pytest.mark.parametrize(
    "names",
    [
        ("00", "01"),
        ("02", "03"),
        ("04", "05"),
        ("06",),
        ("07, the SMs shared", "07, the dial", "07, the splits"),
        ("08",),
    ],
)
def test_every_control_of_a_chapter_changes_what_is_shown_as_python_says(lab, open_page, shot, figure, every, names):
    book = Notebook(open_page(lab.notebook(f"scenes-{names[0][:2]}", [ALL + CELLS.format(names=names)])))
    book.run_all(until="new tokens a second", within_s=60)
    expect(book.page.locator(".instrument")).to_have_count(len(names), timeout=30_000)
    for index, name in enumerate(names):
        view = book.page.locator(".instrument").nth(index)
        view.scroll_into_view_if_needed()
        seen = [operate(book.page, view, every[name], control) for control in every[name].controls]
        assert len(set().union(*seen)) > len(seen), f"the controls of {name} hardly change anything"
        shot(book.page, f"instrument-{name}")
        view.get_by_role("button", name="Reset").click()
        words, count = ", ".join(control.label for control in every[name].controls.values()), len(every[name].controls)
        figure(f"controls[{name}]", count, 2 * count, f"{words}; two places each", bar=count)
    assert book.page.complaints == [] or all("favicon" in text for text in book.page.complaints)


def operate(page, view, scene, control: str) -> set[str]:
    """Two other places of a control: sentence, facts, spans and brackets are those of Python's own run. Gives what it
    said there."""
    seen = set()
    for by in (1, 2):
        turned(view, control, by)
        page.wait_for_function("(node) => !node.view.pending && !node.view.wanted", arg=view.element_handle())
        settings = scene.settings(view.evaluate("(node) => node.view.settings"))
        run = scene.run(**settings)
        said = scene.answer(run, settings)[0]
        expect(view.locator(".sentence")).to_have_text(said["sentence"])
        expect(view.locator(".facts b")).to_have_text([value for _, value in said["facts"]])
        assert spans_shown(view) == spans_of(run), (control, settings)
        assert view.evaluate("(node) => node.view.timeline.brackets") == said["brackets"], (control, settings)
        seen.add(view.locator(".figures").text_content())
    return seen


def test_undo_pin_and_link(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("undo", [ALL + CELLS.format(names=("03",))])))
    book.run_all(until="TTFT")
    view = book.page.locator(".instrument").first
    sentence = view.locator(".sentence")
    first = sentence.text_content()
    view.get_by_role("button", name="Pin this").click()
    turned(view, "x", 3)
    expect(sentence).not_to_have_text(first)
    expect(view.locator(".facts .ghost").first).to_contain_text("(pinned: ")
    assert view.evaluate("(node) => node.view.timeline.ghost.length") > 30
    view.get_by_role("button", name="Link").click()
    assert "layers=30&x=40" in view.get_by_label("the setting as text").input_value()
    shot(book.page, "instrument-pinned")
    view.get_by_role("button", name="Undo").click()
    expect(sentence).to_have_text(first)


def test_a_refusal_and_a_kernel_that_is_gone(lab, open_page, shot):
    cell = (
        f"{IMPORTS}"
        "def breaks(x):\n    if x == 2: raise ValueError('x of 2 breaks')\n    return SCENES['00'].run(link=20)\n"
        "instrument(breaks, {'x': Numbers('x', 1, (1, 2, 3))})"
    )
    book = Notebook(open_page(lab.notebook("refusal", [cell])))
    book.run_all(until="TTFT")
    view = book.page.locator(".instrument").first
    turned(view, "x", 1)
    expect(view.locator(".refused")).to_have_text("ValueError: x of 2 breaks")
    turned(view, "x", 1)
    expect(view.locator(".refused")).to_be_hidden()
    view.evaluate("(node) => { node.view.ask = () => {}; }")  # as after a restart: nobody hears
    turned(view, "x", 1)
    expect(view.locator(".refused")).to_contain_text("Nothing answers: the kernel was restarted", timeout=10_000)


def test_a_run_on_the_real_engine_beside_the_simulated_one(lab, open_page, shot):
    cell = f"{IMPORTS}engine = Engine(Config.preset('streamed', model='tiny'))\ninstrument(SCENES['00'], engine=engine)"
    book = Notebook(open_page(lab.notebook("real", [cell])))
    book.run_all(until="TTFT")
    view = book.page.locator(".instrument").first
    view.get_by_role("button", name="Serve it for real").click()
    expect(view.locator(".sentence")).to_contain_text("On the real engine: Token 1 came after", timeout=30_000)
    shot(book.page, "instrument-real")


def test_a_question_is_answered_while_its_bars_grow(lab, open_page, shot):
    cell = "from disagg.show import ask\nquestion = ask(model='tiny')\nquestion"
    book = Notebook(open_page(lab.notebook("ask", [cell, "print('engine:', question.engine.config.route)"])))
    book.run_all(until="engine: staged")
    view = book.page.locator(".jp-OutputArea").first
    view.get_by_role("textbox").fill("Why is grass green? <b>x</b>")
    view.get_by_role("button", name="Ask", exact=True).click()
    expect(view.locator(".instrument .sentence")).to_contain_text("Token 1 came after", timeout=30_000)
    expect(view.locator(".flow canvas")).to_be_visible()
    shot(book.page, "ask")
