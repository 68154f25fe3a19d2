"""Stepping in a real JupyterLab: the controller's events, a live panel, the microscope; by mouse and by keys."""

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
MICROSCOPE = """
from disagg import Config, Request, simulate
from disagg.show import microscope
config = Config.preset("paged", link=0.05e9, decode_blocks=24, host_blocks=24, prefill_blocks=24)
microscope(simulate(config, [Request([1] * 60, 20, arrival_s=0.1 * i) for i in range(6)]))
"""


@pytest.mark.parametrize("zoom", [1, 2])
def test_the_stepper(lab, open_page, shot, zoom):
    size = {"width": 1280 // zoom, "height": 720 // zoom}
    book = Notebook(open_page(lab.notebook(f"stepper{zoom}", [STEPPER]), viewport=size, device_scale_factor=zoom))
    book.run_all(until="1 of 237, at 0.0 ms: request 0 arrived")
    expect(book.output).to_contain_text("▸", use_inner_text=True)
    book.button("Step").click()
    expect(book.output).to_contain_text("2 of 237")
    second = book.output.inner_text()
    book.button("Step").click()
    expect(book.output).to_contain_text("3 of 237")
    book.button("Back").click()
    expect(book.output).to_contain_text("2 of 237")
    assert book.output.inner_text() == second, "back shows the same words"
    book.slider.focus()
    book.page.keyboard.press("End")
    expect(book.output).to_contain_text("237 of 237")
    book.slider.focus()
    book.page.keyboard.press("Home")
    expect(book.output).to_contain_text("1 of 237")
    book.button("Back").focus()
    book.press("Step")
    expect(book.output).to_contain_text("2 of 237")
    shot(book.page, f"lab-stepper-{zoom}")
    assert not book.page.complaints or "error" not in " ".join(book.page.complaints).lower()


def test_the_panel(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("panel", [PANEL])))
    book.run_all(until="Live panel of 4 requests")
    before = book.picture()
    book.button("Start").click()
    expect(book.output).to_contain_text("length: ", timeout=60_000)
    expect(book.output).to_contain_text(re.compile("3  60 tokens, length"), timeout=60_000)
    shot(book.page, "lab-panel")
    done = book.picture()
    assert done != before
    time_slider = book.output.locator(".noUi-handle").first
    time_slider.focus()
    book.page.keyboard.press("Home")
    expect(book.output).not_to_contain_text("60 tokens, length")
    assert book.picture() != done
    book.press("Step")
    book.page.wait_for_timeout(500)
    stepped = book.picture()
    book.press("Step")
    book.page.wait_for_timeout(500)
    assert book.picture() != stepped
    assert not [text for text in book.page.complaints if "dialog" in text], "a prompt stays text"
    shot(book.page, "lab-panel-back")


def test_the_microscope(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("microscope", [MICROSCOPE])))
    book.run_all(until="Microscope of blocks")
    first = book.picture()
    for _ in range(3):
        book.button("Step").click()
    expect(book.output.locator("img").first).not_to_have_attribute("src", first)
    shot(book.page, "lab-microscope")
