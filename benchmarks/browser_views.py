"""What canvas and exported page cost: CPU of a live update, size of the file, frames and first draw in a browser."""

import dataclasses
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.show.html_page import page, to_html
from disagg.show.report import Row
from disagg.trace.results import Run
from disagg.trace.timeline import Timeline
from disagg.twin.simulate import simulate

Say = Callable[[str], None]

#: Runs in a kernel of its own, so that messages are signed and sent as they are in a notebook.
UPDATES = """
import statistics, time
from disagg import Timeline
from disagg.show.canvas import TimelineCanvas
from benchmarks.browser_views import staged
spans = staged(40).timeline.spans
canvas = TimelineCanvas(Timeline(spans[:2000]))
took = []
for first in range(2000, 2200):
    before = time.thread_time()
    canvas.extend(spans[first % len(spans) : first % len(spans) + 10])
    took.append(time.thread_time() - before)
    time.sleep(0.002)
print(1e3 * statistics.median(took), 1e3 * sorted(took)[int(0.99 * len(took))])
"""

COUNT_FRAMES = """() => {
  window.times = [];
  const tick = (now) => { window.times.push(now); requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
}"""


def staged(requests: int) -> Run:
    """A run of about 68 spans a request: 30 layers over two hops, and decode steps."""
    config = Config.preset("staged", model="tiny", link=0.05e9)
    return simulate(config, [Request([1] * 100, 20, arrival_s=0.4 * index) for index in range(requests)])


def repeated(run: Run, spans: int) -> Run:
    """The run's timeline again and again, one after the other, until there are as many spans."""
    length, found = run.timeline.end_ns, []
    while len(found) < spans:
        later = len(found) // len(run.timeline.spans) * length
        found += [s._replace(start_ns=s.start_ns + later, end_ns=s.end_ns + later) for s in run.timeline.spans]
    return dataclasses.replace(run, timeline=Timeline(found[:spans], devices=run.timeline.devices))


def canvas_update_cpu_ms() -> Row:
    """CPU of `extend` with 10 new spans, 2,000 being shown: packing, signing and sending, in a real kernel."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    try:
        said: list[str] = []
        client.execute_interactive(
            UPDATES, timeout=120, output_hook=lambda message: said.append(message["content"].get("text", ""))
        )
        middle, worst = map(float, "".join(said).split())
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
    return Row("canvas_update_cpu_ms", middle, "ms", 1, 200, f"10 new spans, 2,000 shown; p99 {worst:.2f} ms")


def to_html_mb() -> Row:
    run = staged(300)
    size = len(page(run).encode()) / 1e6
    return Row("to_html_mb", size, "MB", 1.5, 1, f"{len(run.timeline.spans)} spans, {len(run.results)} requests")


def drag_fps() -> Row:
    """Animation frames a second that the browser reached while the mouse dragged the timeline."""
    with _opened(repeated(staged(40), 20_000), "drag_fps") as (page, path):
        page.goto(path)
        box = page.locator("#timeline canvas").bounding_box()
        page.locator("#timeline").get_by_role("button", name="+").click()
        page.evaluate(COUNT_FRAMES)
        page.mouse.move(box["x"] + 900, box["y"] + 60)
        page.mouse.down()
        for step in range(120):
            page.mouse.move(box["x"] + 900 - 5 * step, box["y"] + 60)
        page.mouse.up()
        times = page.evaluate("window.times")
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    note = f"20,000 spans, 120 moves of the mouse; longest frame {max(gaps):.0f} ms; headless, no GPU"
    return Row("drag_fps", 1e3 / statistics.mean(gaps), "frames/s", 30, len(gaps), note, at_most=False)


def render_100k_s() -> Row:
    """From opening the file to the first full draw of 100,000 spans."""
    with _opened(repeated(staged(40), 100_000), "render_100k_s") as (page, path):
        page.goto(path)
        drawn = "() => performance.getEntriesByName('timeline drawn')[0].startTime"
        seconds = page.evaluate(drawn) / 1e3
    return Row("render_100k_s", seconds, "s", 3, 1, "headless Chromium, no GPU")


class NoBrowser(Exception):
    """playwright or a Chromium is missing."""


@contextmanager
def chromium(name: str):
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
def _opened(run: Run, name: str):
    """(page, address of the exported run) in Chromium."""
    with tempfile.TemporaryDirectory() as folder, chromium(name) as browser:
        path = to_html(run, Path(folder) / "run.html")
        yield browser.new_page(viewport={"width": 1280, "height": 720}), path.as_uri()


def suite(say: Say) -> Iterator[Row]:
    """Without a browser its rows are left out, and what is missing is said."""
    for measure in (canvas_update_cpu_ms, to_html_mb, drag_fps, render_100k_s):
        say(measure.__name__)
        try:
            yield measure()
        except NoBrowser as error:
            say(str(error))
