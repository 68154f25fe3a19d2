"""A real Chromium, and a page that writes down what it asked for and complained about. Run by `make test-browser`.

CHROMIUM=path names the browser; without it chromium or google-chrome on the PATH is taken, else playwright's own.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from lab import Lab
from playwright.sync_api import sync_playwright

SHOTS = Path(__file__).parents[2] / "build" / "browser"


@pytest.fixture(scope="session")
def browser():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def shot():
    """Keeps a picture of the page: shot(page, name)."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def figure(record_property, capsys):
    """Keeps what was measured for `python -m benchmarks notebooks`, and prints it: figure(row, value, n, note)."""

    def kept(row: str, value: float, n: int = 1, note: str = "", bar: float | None = None):
        record_property(row, json.dumps({"value": value, "n": n, "note": note, "bar": bar}))
        with capsys.disabled():
            print(f"\n{row}: {value:.4g}" + (f" ({note})" if note else ""))

    return kept


@pytest.fixture(scope="session")
def heard():
    """heard(page) gives the page back; from then on its `.requests` and `.complaints` grow."""

    def listening(page):
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda said: said.type in ("error", "warning") and page.complaints.append(said.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        return page

    return listening


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def open_page(browser, heard):
    """open_page(address, **context) gives a page that is heard."""
    contexts = []

    def opened(address: str, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})
        contexts.append(context)
        page = heard(context.new_page())
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
