"""A picture in JupyterLab: its sentence stands below it, and a dark page has a dark picture."""

import json

import pytest
from lab import Notebook
from playwright.sync_api import expect

CELL = """
from disagg import Config, Request, simulate
from disagg.show.plots.timeline_plot import timeline_picture
run = simulate(Config.preset("streamed", link=10e6), [Request([7] * 128, 6)])
timeline_picture(run)
"""


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_the_sentence_stands_below_and_a_dark_page_turns_the_picture_dark(lab, open_page, shot, theme):
    settings = lab.root / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True, exist_ok=True)
    chosen = settings / "themes.jupyterlab-settings"
    chosen.write_text(json.dumps({"theme": f"JupyterLab {theme}"}))
    try:
        page = open_page(lab.notebook(f"picture_{theme}", [CELL]))
        Notebook(page).run_all("H = 85%")
        image, says = page.locator(".jp-RenderedImage img"), page.locator(".picture-says")
        expect(says).to_be_visible()
        above, below = image.bounding_box(), says.bounding_box()
        assert above["y"] + above["height"] <= below["y"] + 1
        assert below["x"] + below["width"] <= page.viewport_size["width"]
        look = image.evaluate("node => getComputedStyle(node).filter")
        assert look.startswith("invert") if theme == "Dark" else look == "none"
        shot(page, f"picture_{theme}")
    finally:
        chosen.unlink()
