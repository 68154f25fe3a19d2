"""Widgets in a real JupyterLab: moved by mouse and by keys, and the words and pictures that follow."""

from lab import Notebook
from playwright.sync_api import expect

CANVAS = """
from disagg import Config, Request, simulate
from disagg.show import flow
run = simulate(Config.preset("staged", model="tiny", link=0.05e9), [Request([1] * 100, 8, 0.1 * i) for i in range(3)])
shown = flow(run)
canvas = shown.panel
shown
"""


def test_the_canvas_follows_the_kernel_and_the_kernel_the_canvas(lab, open_page, shot):
    cells = [CANVAS, "canvas.seek(100); canvas.request = 1", "print('now at', canvas.at_ms)"]
    book = Notebook(open_page(lab.notebook("canvas", cells)))
    book.run_all(until="now at 100.0")
    view = book.page.locator(".jp-OutputArea").first
    expect(view.get_by_label("request", exact=True)).to_have_value("1")
    expect(view).to_contain_text("At 100.0 ms, request 1:")
    spans = view.get_by_role("application").get_attribute("aria-label")
    shot(book.page, "lab-canvas")
    view.get_by_role("application").focus()
    book.page.keyboard.press("Home")
    book.page.keyboard.press("Escape")
    expect(view).to_contain_text("At 0.00 ms:")
    book.page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
    book.page.keyboard.press("Control+Enter")
    expect(book.output).to_contain_text("now at 0.0")
    assert "rows from the top: prefill, link to host, link to decode, decode" in spans


def test_the_canvas_in_the_dark_theme(lab, open_page, shot):
    book = Notebook(open_page(lab.notebook("dark", [CANVAS])))
    book.run_all(until="At 903.6 ms:")
    look = "() => document.querySelector('.jp-OutputArea canvas').toDataURL()"
    before = book.page.evaluate(look)
    book.page.get_by_role("menuitem", name="Settings", exact=True).click()
    book.page.locator(".lm-Menu-itemLabel", has_text="Theme").first.click()
    book.page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
    expect(book.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    book.page.wait_for_timeout(300)
    assert book.page.evaluate(look) != before
    shot(book.page, "lab-dark")
