"""The explorer in a real Chromium: how long until it shows something and answers, and that it computes the same."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import Say
from disagg.explorer.settings import ExplorerSettings
from disagg.explorer.site import build
from disagg.plan.errors import FileError
from disagg.show.report import LeftOut, Row
from disagg.twin.replay import in_lines
from disagg.twin.simulate import simulate

CACHE, FOLDER = Path("build/cache"), Path("build/site")
NAMES = ("explorer_first_picture_s", "explorer_first_answer_s", "explorer_answer_s", "explorer_logs_that_differ",
         "explorer_requests_outside")  # fmt: skip
WAIT_S = 300  # a browser runs Python several times as slowly, and may have busy neighbours
#: What is compared byte by byte: every route, and each kind of hardware and policy once.
COMPARED: tuple[dict[str, str], ...] = (
    {}, {"preset": "baseline", "model": "qwen3-0.6b"}, {"preset": "split", "link": "own", "hardware": "2xL4"},
    {"preset": "staged", "policy": "shortest", "rate": "40"}, {"preset": "dynamic", "answer": "100", "seed": "7"},
    {"preset": "two_colocated", "hardware": "2xRTX4090"}, {"hardware": "2xCPU", "model": "smollm2", "link": "slow"},
    {"hardware": "H100+L4", "prompt": "2000", "requests": "200"},
)  # fmt: skip


class NoBrowser(Exception):
    """playwright or a Chromium is missing."""


@contextmanager
def chromium(name: str) -> Iterator[Any]:
    """A Chromium for the row of this name. NoBrowser says what is missing."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise NoBrowser(f'{name} needs playwright: pip install "disagg[browser]"') from None
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found)
        except Error as error:
            raise NoBrowser(f"{name}: no Chromium could be started; set CHROMIUM=path ({error.message[:80]})") from None
        yield browser
        browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Its address on 127.0.0.1, at a port that is free, as `make explorer` serves it."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout  # it is a pipe
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().partition(' port ')[2].split()[0]}/"
        finally:
            server.terminate()


def permalink(address: str, given: dict[str, str]) -> str:
    return f"{address}#{'&'.join(f'{name}={value}' for name, value in given.items())}".replace("+", "%2B")


def until_answered(page: Any, count: int = 1) -> list[float]:
    """The ms that each answer took, once there are so many."""
    deadline = time.monotonic() + WAIT_S
    while len(took := page.evaluate("performance.getEntriesByName('answered').map((one) => one.duration)")) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"no answer within {WAIT_S} s: {page.locator('.instrument .refused').first.text_content()}"
            )
        page.wait_for_timeout(20)
    return took


def firsts_s(browser: Any, address: str) -> tuple[float, float]:
    """From opening the page in a new, empty profile to the first picture (of the start, from the folder), and to the
    first that the twin computed in the browser."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    took = until_answered(page)[0] + page.evaluate("performance.getEntriesByName('answered')[0].startTime")
    seen = page.evaluate("performance.getEntriesByName('timeline drawn')[0].startTime")
    context.close()
    return seen / 1e3, took / 1e3


def answers_s(page: Any, moves: int) -> list[float]:
    """From a key on the slider of arrivals to the picture, 100 requests."""
    page.locator("[name=rate]").focus()
    for move in range(moves):
        page.keyboard.press("ArrowRight")
        took = until_answered(page, 2 + move)
    return [ms / 1e3 for ms in took[1:]]


def log_of(page: Any) -> bytes:
    with page.expect_download() as waiting:
        page.locator("#log").click()
    return Path(waiting.value.path()).read_bytes()


def expected_log(given: dict[str, str]) -> bytes:
    """What the package gives for the same settings, in this Python."""
    settings = ExplorerSettings.parse(given)
    return in_lines(simulate(settings.config, settings.asked, hardware=settings.hardware).log)


def differing(page: Any, address: str) -> list[dict]:
    """The settings whose event log is another one in the browser than here."""
    found = []
    for given in COMPARED:
        page.evaluate("performance.clearMeasures()")
        page.goto(permalink(address, given))  # the page stays, and takes the settings from its address
        until_answered(page)
        if log_of(page) != expected_log(given):
            found.append(given)
    return found


def suite(say: Say) -> Iterator[Row | LeftOut]:
    """Without npm's Pyodide or a browser its rows are left out, with the reason."""
    try:
        say("build the site")
        folder = build(FOLDER, CACHE)
        with served(folder) as address, chromium("explorer") as browser:
            yield from _rows(browser, address, say)
    except (FileError, NoBrowser) as error:
        yield from (LeftOut(name, str(error)) for name in NAMES)


def _rows(browser: Any, address: str, say: Say) -> Iterator[Row]:
    say(NAMES[0])
    firsts = [firsts_s(browser, address) for _ in range(3)]
    notes = ("what the folder holds of the start", "what the twin computed in the browser")
    for name, found, note in zip(NAMES[:2], zip(*firsts, strict=True), notes, strict=True):
        note = f"{note}; new profile each, from 127.0.0.1; longest {max(found):.1f} s"
        yield Row(name, statistics.median(found), "s", 10, len(found), note)
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    until_answered(page)
    say(NAMES[2])
    took = answers_s(page, 20)
    note = f"a key on the slider of arrivals, 100 requests, preset streamed; longest {max(took):.2f} s"
    yield Row(NAMES[2], statistics.median(took), "s", 0.5, len(took), note)
    say(NAMES[3])
    logs = differing(page, address)
    yield Row(NAMES[3], len(logs), "", 0, len(COMPARED), "settings; the log's bytes here and in the browser")
    outside = [url for url in asked if not url.startswith(address)]
    yield Row(NAMES[4], len(outside), "", 0, len(asked), "of all requests of the page and its worker")
