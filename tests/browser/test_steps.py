"""Stepping in a real JupyterLab: the controller's events, a panel that serves, back and step of the flow."""

import re

import pytest
from lab import Notebook
from playwright.sync_api import expect

STEPPER = """
from disagg import Config, Request
from disagg.show import stepper
config = Config.preset("paged", decode_blocks=24, host_blocks=24, prefill_blocks=24)
stepper(config, [Request([1] * 60, 20, arrival_s=0.1 * i) for i in range(6)])
"""
PANEL = """
from disagg import Config, Engine, Request
from disagg.show import panel
engine = Engine(Config.preset("staged", model="tiny", link=2e6))
panel(engine, [Request("<img src=x onerror=alert(1)> why?", 60, 0.2 * i, ignore_eos=True) for i in range(4)])
"""
FLOW = """
from disagg import Config, Request, simulate
from disagg.show import flow
config = Config.preset("paged", link=0.05e9, decode_blocks=24, host_blocks=24, prefill_blocks=24)
run = simulate(config, [Request([1] * 60, 20, arrival_s=0.1 * i) for i in range(6)])
shown = flow(run)
shown
"""


@pytest.mark.parametrize("zoom", [1, 2])
def test_the_stepper(lab, open_page, shot, zoom):
    size = {"width": 1280 // zoom, "height": 720 // zoom}
    book = Notebook(open_page(lab.notebook(f"stepper{zoom}", [STEPPER]), viewport=size, device_scale_factor=zoom))
    book.run_all(until="1 of 237, at 0.0 ms: request 0 arrived")
    slider, said = book.output.locator("input[type=range]"), book.output.locator(".figures")
    slider.focus()
    book.page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("2 of 237")
    second = said.inner_text()
    book.page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("3 of 237")
    book.page.keyboard.press("ArrowLeft")
    expect(said).to_contain_text("2 of 237")
    assert said.inner_text() == second, "back shows the same words"
    book.page.keyboard.press("End")
    expect(said).to_contain_text("237 of 237")
    expect(said.locator("tr.changed").first).to_be_visible()
    shot(book.page, f"lab-stepper-{zoom}")
    assert not book.page.complaints or "error" not in " ".join(book.page.complaints).lower()


def test_the_panel(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("panel", [PANEL])))
    book.run_all(until="Live panel of 4 requests")
    book.button("Serve it for real").click()
    expect(book.output).to_contain_text("On the real engine so far", timeout=60_000)
    book.output.locator("select[name=policy]").select_option("shortest first")
    expect(book.output).to_contain_text(re.compile("3  60 tokens, length"), timeout=60_000)
    expect(book.button("Serve it for real")).to_be_visible()
    assert not [text for text in book.page.complaints if "dialog" in text], "a prompt stays text"
    shot(book.page, "lab-panel")


def test_back_and_step_go_to_what_was_chosen(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("stops", [FLOW])))
    book.run_all(until="6 requests in ")
    stops, sentence = book.output.get_by_label("what back and step go to"), book.output.locator("p[aria-live]")
    assert "a request is done" in stops.inner_text() and "a token" in stops.inner_text()
    book.button("start").click()
    stops.select_option("a request is done")
    before = sentence.inner_text()
    seen = []
    for _ in range(3):
        book.button("step").click()
        seen.append(sentence.inner_text())
    assert len({before, *seen}) == 4
    book.button("back").click()
    expect(sentence).to_have_text(seen[1])
    shot(book.page, "lab-stops")


BINS = """
from disagg.course.scenes import SCENES
from disagg.show import instrument
instrument(SCENES["05"])
"""


def test_the_ends_of_bins_are_dragged_in_the_picture(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("bins", [BINS])))
    book.run_all(until="padding")
    plane, first = book.output.locator(".curve canvas"), book.output.locator("label", has_text="first bin ends at")
    before = book.output.locator(".sentence").first.inner_text()
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    x, y = box["x"] + 52, box["y"] + 60  # where the handle of no bin stands: at the left end of the axis
    book.page.mouse.move(x, y)
    book.page.mouse.down()
    for step in range(1, 9):
        book.page.mouse.move(x + 12 * step, y)
    book.page.mouse.up()
    expect(first).not_to_contain_text("first bin ends at 0")
    expect(book.output.locator(".sentence").first).not_to_have_text(before)
    shot(book.page, "lab-bins")
    book.button("Undo").click()
    assert not [text for text in book.page.complaints if "error" in text.lower()]
