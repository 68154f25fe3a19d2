"""The exported page in a real Chromium, opened from disk."""

import pytest
from playwright.sync_api import expect

from disagg import Config, Request, simulate

EVIL = "<img src=x onerror=alert(1)> </script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    config = Config.preset("paged", model="tiny", decode_blocks=20, link=0.05e9)
    run = simulate(config, [Request([1] * 100, 20, arrival_s=0.1 * i) for i in range(6)])
    for result, prompt in zip(run.results, [EVIL, *["Why?"] * 5], strict=True):
        result.prompt = prompt
    return run.to_html(tmp_path_factory.mktemp("page") / "run.html").as_uri()


@pytest.fixture
def page(open_page, address):
    page = open_page(address)
    yield page
    assert page.requests == [address], "the page asked for something"
    assert page.complaints == []


def sentence(page):
    return page.locator("#timeline p[aria-live], #timeline p").first


def pixels(page, selector="#timeline canvas") -> str:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate("(selector) => document.querySelector(selector).toDataURL()", selector)


def until(page, holds):
    """Waits up to 3 s. (playwright's own wait_for_function evaluates text, which the page's policy forbids.)"""
    for _ in range(60):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come true within 3 s")


def test_it_opens_from_disk_and_asks_for_nothing(page, shot):
    expect(page.locator("h1")).to_contain_text("6 requests")
    expect(sentence(page)).to_have_text("At 0.00 ms: prefill: prefill pass 1, 100 tokens, request 0.")
    expect(page.locator("#pages h3")).to_have_text(["prefill 0", "decode 0"])
    expect(page.locator("#pages p").first).to_contain_text("7 of 256 blocks held. request 0: 7 in flight")
    assert page.locator("tbody").first.locator("tr").count() == 6
    shot(page, "page-light")


def test_a_prompt_stays_text(page):
    expect(page.locator("pre").first).to_have_text(EVIL)
    assert page.locator("img").count() == 0


def test_an_injected_script_does_not_run(open_page, address):
    """The control: the policy forbids what was not written into the page, and the test would hear of it."""
    page = open_page(address)
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'alert(3)'; document.body.append(s); }"
    )
    page.evaluate("() => { document.body.append(Object.assign(new Image(), { src: 'https://example.org/x.png' })); }")
    page.wait_for_timeout(200)
    assert len(page.complaints) == 2 and all("Content Security Policy" in text for text in page.complaints)


def test_rows_that_decode_in_a_pass_stand_above_it(open_page, tmp_path, shot):
    config = Config.preset("colocated", model="tiny", chunk_tokens=64)
    run = simulate(config, [Request([1] * 40, 9), Request([1] * 128, 3, 0.3)])
    mixed = next(span for span in run.timeline.spans if span.kind == "prefill" and span.requests == (1,))
    page = open_page(run.to_html(tmp_path / "mixed.html").as_uri())
    expect(page.locator("h1")).to_have_text("disagg: 2 requests, colocated")
    page.locator("#scrub").fill(str(mixed.start_ns / 1e6))
    expect(sentence(page)).to_contain_text("device: prefill pass")
    expect(sentence(page)).to_contain_text("device: decode step")
    canvas, tip = page.locator("#timeline canvas"), page.locator("#timeline > div > div").last
    width = canvas.evaluate("node => node.clientWidth") - 112 - 8
    middle = (mixed.start_ns + mixed.end_ns) / 2 - run.timeline.start_ns
    x = 112 + middle / (1.01 * run.timeline.end_ns) * width
    pixels(page)
    column = canvas.evaluate("(node, x) => [...node.getContext('2d').getImageData(x, 0, 1, 60).data]", x)
    box = canvas.bounding_box()
    for y, word, blue in ((26 + 5 + 4, "decode step", False), (26 + 5 + 16, "prefill pass", True)):
        assert (column[4 * y + 2] > column[4 * y + 1]) is blue, word
        page.mouse.move(box["x"] + x, box["y"] + y)
        expect(tip).to_contain_text(word)
    shot(page, "page-mixed")
    assert page.complaints == []


def test_keys_alone(page, shot):
    canvas = page.locator("#timeline canvas")
    while not canvas.evaluate("node => node === document.activeElement"):
        page.keyboard.press("Tab")
    assert "solid" in canvas.evaluate("node => new Promise(r => requestAnimationFrame(() => r(node.style.outline)))")
    before = pixels(page)
    page.keyboard.press(".")
    expect(sentence(page)).to_contain_text("At 13.40 ms: prefill: prefill pass 1, 100 tokens, request 0; link to host: "
                                           "copy of layer 0, 0.172 MB, request 0.")  # fmt: skip
    page.keyboard.press(".")
    page.keyboard.press(",")
    expect(sentence(page)).to_contain_text("At 13.40 ms")
    assert pixels(page) != before
    for key in ("+", "ArrowRight", "-", "0"):
        before = pixels(page)
        page.keyboard.press(key)
        assert pixels(page) != before, key
    page.keyboard.press("End")
    expect(sentence(page)).to_contain_text("nothing runs")
    page.keyboard.press("Home")
    page.keyboard.press("]")
    page.keyboard.press("]")
    expect(page.get_by_label("request", exact=True)).to_have_value("1")
    page.keyboard.press(".")
    expect(sentence(page)).to_contain_text(", request 1: prefill: prefill pass 3")
    shot(page, "page-focus")
    page.keyboard.press("Escape")
    expect(page.get_by_label("request", exact=True)).to_have_value("")


def test_dragging_pans_and_a_click_sets_the_playhead(page):
    box = page.locator("#timeline canvas").bounding_box()
    y, before = box["y"] + 45, pixels(page)
    page.locator("#timeline").get_by_role("button", name="+").click()
    zoomed = pixels(page)
    assert zoomed != before
    page.mouse.move(box["x"] + 600, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, y, steps=5)
    page.mouse.up()
    assert pixels(page) != zoomed
    expect(sentence(page)).to_contain_text("At 0.00 ms")
    page.mouse.click(box["x"] + 700, y)
    expect(sentence(page)).not_to_contain_text("At 0.00 ms")


def test_the_wheel_zooms_only_with_the_focus(page):
    box = page.locator("#timeline canvas").bounding_box()
    before = pixels(page)
    page.mouse.move(box["x"] + 600, box["y"] + 45)
    page.mouse.wheel(0, 100)
    until(page, lambda: page.evaluate("scrollY") > 0)
    assert pixels(page) == before
    page.evaluate("scrollTo(0, 0)")
    page.mouse.click(box["x"] + 600, box["y"] + 45)
    before = pixels(page)
    page.mouse.wheel(0, -100)
    until(page, lambda: pixels(page) != before)


def test_hovering_says_what_lies_there(page, shot):
    box = page.locator("#timeline canvas").bounding_box()
    tip = page.locator("#timeline > div > div").last
    page.mouse.move(box["x"] + 130, box["y"] + 26 + 17)
    expect(tip).to_be_visible()
    expect(tip).to_have_text("prefill: prefill pass 1, 100 tokens, request 0; start 0.00 ms, takes 405.0 ms")
    shot(page, "page-hover")
    page.mouse.move(box["x"] + 130, box["y"] + box["height"] + 200)
    expect(tip).to_be_hidden()


def test_the_slider_and_the_playhead_are_tied(page, shot):
    slider, blocks = page.locator("#scrub"), page.locator("#pages p").last
    slider.fill("500")
    expect(sentence(page)).to_contain_text("At 500.0 ms")
    expect(blocks).to_contain_text("request 0: 7 used")
    page.locator("#timeline").get_by_role("button", name="end").click()
    assert float(slider.input_value()) > 3000
    expect(blocks).to_contain_text("0 of 20 blocks held")
    slider.fill("500")
    expect(blocks).to_contain_text("request 0: 7 used")
    page.locator("#pages").scroll_into_view_if_needed()
    shot(page, "page-blocks")


def test_play_moves_on_and_pause_stops(page):
    page.get_by_role("button", name="play").click()
    expect(sentence(page)).not_to_contain_text("At 0.00 ms")
    page.get_by_role("button", name="pause").click()
    stopped = sentence(page).text_content()
    page.wait_for_timeout(100)
    expect(sentence(page)).to_have_text(stopped)


def test_dark_and_light_differ(open_page, address, shot):
    dark = open_page(address, color_scheme="dark")
    light = open_page(address, color_scheme="light")
    assert pixels(dark) != pixels(light)
    shot(dark, "page-dark")
    before = pixels(dark)
    dark.emulate_media(color_scheme="light")
    assert pixels(dark) != before, "a theme that changes is followed"
    assert dark.complaints == light.complaints == []


def test_at_twice_the_size_everything_fits(open_page, address, shot):
    """200 % zoom of a window of 1,280 × 720: half the CSS pixels, each twice as dense."""
    page = open_page(address, viewport={"width": 640, "height": 360}, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 640
    assert page.evaluate("document.querySelector('#timeline canvas').width") > 1100
    page.set_viewport_size({"width": 500, "height": 360})
    until(page, lambda: page.evaluate("document.querySelector('#timeline canvas').width") < 1000)
    shot(page, "page-200-percent")
    assert page.complaints == []


def test_without_javascript_the_tables_remain(open_page, address):
    page = open_page(address, java_script_enabled=False)
    assert "need JavaScript" in page.content()
    expect(page.locator("svg.bar")).to_be_visible()
    assert page.locator("tbody").first.locator("tr").count() == 6
