"""The explorer in a real Chromium, served as any static host would, from a folder below the root."""

import pytest
from playwright.sync_api import expect

from benchmarks.explorer import (  # fmt: skip
    CACHE,
    COMPARED,
    differing,
    expected_log,
    log_of,
    permalink,
    served,
    until_answered,
)
from disagg.explorer.settings import CONTROLS
from disagg.explorer.site import build

FEW = {"requests": "10"}
LONG = 60_000  # a busy machine may take so many ms to start Python


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("host")
    build(root / "below" / "explorer", CACHE)
    with served(root) as address:
        yield f"{address}below/explorer/"


#: Whatever a worker says to the page is written down too.
LISTEN = """
window.heard = [];
window.Worker = class extends Worker {
  constructor(...given) { super(...given), this.addEventListener("message", ({ data }) => heard.push(data.id)); }
};"""


@pytest.fixture(scope="module")
def opened(browser, heard, address):
    """One page for most tests: starting Python takes longer than all they do with it."""
    page = heard(browser.new_page(viewport={"width": 1280, "height": 900}))
    page.add_init_script(LISTEN)
    page.goto(permalink(address, FEW))
    yield page
    page.close()


@pytest.fixture
def page(opened, address):
    """With ten requests, answered, at the beginning of each test."""
    opened.evaluate("history.replaceState(null, '', '#')")
    go(opened, FEW)
    expect(opened.locator("body")).to_have_attribute("aria-busy", "false", timeout=LONG)
    expect(opened.locator("#said")).to_contain_text("10 requests in")
    opened.evaluate("performance.clearMeasures()")
    yield opened
    assert [url for url in opened.requests if not url.startswith((address, "data:", f"blob:{address[:17]}"))] == []
    assert opened.complaints == []


def go(page, given: dict[str, str]):
    """Tells the page another address, and comes back once it has heard of it."""
    page.evaluate(
        "(hash) => new Promise((done) => (addEventListener('hashchange', done, { once: true }), location.hash = hash))",
        permalink("", given),
    )


def test_it_shows_a_run_and_asks_for_nothing_outside_its_folder(page, shot):
    expect(page.locator("#timeline canvas")).to_be_visible()
    expect(page.locator("#numbers th").first).to_be_attached()
    expect(page.locator("#numbers")).to_contain_text("second-token gap")
    expect(page.locator("#about ~ p").nth(1)).to_contain_text("of what two cores of an AMD EPYC")
    assert any(url.endswith("pyodide.asm.wasm") for url in page.requests), "the worker's requests are seen too"
    shot(page, "explorer-light")


def test_the_event_log_is_the_packages_byte_for_byte(address, page):
    assert log_of(page) == expected_log(FEW)
    assert expected_log({**FEW, "seed": "1"}) != expected_log(FEW), "the control: another seed, another log"
    assert differing(page, address) == [] and len(COMPARED) > 5


def test_the_start_is_shown_while_python_loads(open_page, address, shot):
    """The folder holds that answer; Python's own is the same."""
    page = open_page(address)
    expect(page.locator("#said")).to_contain_text("Computed when this page was built")
    told, before = page.locator("#said").text_content(), page.locator("#numbers").text_content()
    expect(page.locator("#log")).to_be_disabled()
    shot(page, "explorer-start")
    until_answered(page)
    assert told.startswith(page.locator("#said").text_content())
    assert page.locator("#numbers").text_content() == before
    expect(page.locator("#log")).to_be_enabled()
    assert page.complaints == []


def test_keys_alone(page, shot):
    seen = []
    while len(seen) < len(CONTROLS):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.name ?? ''")
        seen += [name] * (name in CONTROLS)
    assert seen == list(CONTROLS)
    before = page.locator("#said").text_content()
    page.locator("#rate").focus()
    page.keyboard.press("End")
    expect(page.locator("output[for=rate]")).to_have_text("64")
    expect(page.locator("#said")).not_to_have_text(before, timeout=LONG)
    assert page.locator("#said").get_attribute("aria-live") == "polite"
    assert page.locator("#rate").evaluate("node => node.labels[0].textContent") == CONTROLS["rate"].label
    shot(page, "explorer-keys")


def test_a_permalink_holds_the_settings(open_page, address, page):
    page.locator("#preset").select_option("split")
    page.locator("#hardware").select_option("H100+L4")
    page.wait_for_url("**preset=split&*")  # the address follows a moment later
    link = page.locator("#permalink").evaluate("node => node.href")
    assert link == page.url and "hardware=H100%2BL4" in link and "preset=split" in link
    other = open_page(link)
    expect(other.locator("#said")).to_have_text(page.locator("#said").text_content(), timeout=LONG)
    expect(other.locator("#hardware")).to_have_value("H100+L4")
    assert log_of(other) == expected_log({**FEW, "preset": "split", "hardware": "H100+L4"})


def test_an_address_that_changes_is_followed(page):
    go(page, {"requests": "20"})
    expect(page.locator("#said")).to_contain_text("20 requests in", timeout=LONG)
    expect(page.locator("#requests")).to_have_value("20")


EVIL = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("hash", "words"),
    [
        (f"preset={EVIL}", f"Refused: preset '{EVIL}' is unknown; known: baseline"),
        ("nosuch=1", "Refused: setting 'nosuch' is unknown; known: preset"),
        ("__proto__=1", "Refused: setting '__proto__' is unknown"),
        ("rate=1e9", "Refused: rate must be a whole number from 1 to 64; got '1e9'."),
        ("model=llama3-70b", "which is 67,087,314,944 more than 90% of its 80,000,000,000."),
    ],
)
def test_a_bad_link_is_refused_in_words(page, hash, words):
    before = page.locator("#said").text_content()
    page.evaluate("hash => { location.hash = hash }", hash)
    expect(page.locator("#refusal")).to_contain_text(words, timeout=LONG)
    expect(page.locator("#said")).to_have_text("The picture still shows the last settings that can be.")
    assert page.locator("#refusal img").count() == 0
    go(page, FEW)
    expect(page.locator("#said")).to_have_text(before, timeout=LONG)
    expect(page.locator("#refusal")).to_be_hidden()


def test_a_bad_link_is_refused_at_the_start_too(open_page, address):
    page = open_page(f"{address}#seed=100")
    expect(page.locator("#refusal")).to_contain_text("seed must be a whole number from 0 to 99", timeout=LONG)
    expect(page.locator("#seed")).to_have_value("0")
    expect(page.locator("#timeline canvas")).to_have_count(0)
    page.locator("#requests").fill("10")
    expect(page.locator("#said")).to_contain_text("10 requests in", timeout=LONG)


WISH = """(wishes) => {
  const wish = ([name, value]) => Object.assign(document.getElementById(name), { value });
  for (const one of wishes) {
    Object.entries(one).forEach(wish);
    document.getElementById("rate").dispatchEvent(new Event("input", { bubbles: true }));
  }
}"""


def test_of_many_wishes_the_last_is_answered(page):
    page.evaluate(WISH, [{"rate": str(n), "requests": str(10 * n)} for n in range(1, 21)])
    expect(page.locator("#said")).to_contain_text("200 requests in", timeout=LONG)
    assert page.evaluate("performance.getEntriesByName('answered').length") < 4


def test_a_newer_wish_ends_a_run_that_is_under_way(page):
    """The worker is heard directly: it never answers the long one."""
    page.evaluate("window.heard.length = 0")
    page.evaluate(WISH, [{"requests": "300", "preset": "staged"}])
    page.wait_for_timeout(100)  # it has begun
    page.evaluate(WISH, [{"requests": "20", "preset": "split"}])
    expect(page.locator("#said")).to_contain_text("20 requests in", timeout=LONG)
    assert page.evaluate("window.heard.length") == 1


def test_two_answers_stand_side_by_side(page):
    page.get_by_role("button", name="Keep these to compare").click()
    page.locator("#link").select_option("1gbe")
    until_answered(page, 1)
    assert page.locator("#numbers tr").first.locator("th").all_text_contents() == ["", "now", "kept"]
    gap = page.locator("#numbers tr", has_text="second-token gap").locator("td").all_text_contents()
    assert len(gap) == 2 and gap[0] != gap[1]
    page.get_by_role("button", name="Back to the start").click()
    expect(page.locator("#said")).to_contain_text("100 requests in", timeout=LONG)
    expect(page.locator("#link")).to_have_value(CONTROLS["link"].default)


def test_an_injected_script_does_not_run(open_page, address):
    """The control: the policy forbids scripts and addresses that are not the page's own, and the test would hear it."""
    page = open_page(address)
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'alert(3)'; document.body.append(s); }"
    )
    page.evaluate("fetch('https://example.org/').catch(() => {})")
    page.wait_for_timeout(200)
    policy = [text for text in page.complaints if "Content Security Policy" in text]
    assert len(policy) >= 2 and not [text for text in page.complaints if "dialog" in text]


def test_from_disk_it_says_that_it_needs_a_host(open_page, tmp_path):
    page = open_page(build(tmp_path / "site", None).joinpath("index.html").as_uri())
    expect(page.locator("#said")).to_contain_text("opened as a file: it has to come from a web server")


@pytest.mark.parametrize(("wide", "scheme"), [(640, "light"), (390, "dark")])
def test_small_and_enlarged_everything_fits(open_page, address, shot, wide, scheme):
    """640 points are 200 % zoom of a window of 1,280."""
    options = {"viewport": {"width": wide, "height": 800}, "device_scale_factor": 2, "color_scheme": scheme}
    page = open_page(permalink(address, FEW), reduced_motion="reduce", **options)
    expect(page.locator("#said")).to_contain_text("10 requests in", timeout=LONG)
    assert page.evaluate("document.documentElement.scrollWidth") <= wide
    assert page.locator("#timeline").evaluate("node => getComputedStyle(node).transitionDuration") == "0s"
    shot(page, f"explorer-{wide}-{scheme}")
    assert page.complaints == []


def test_without_javascript_it_says_so(open_page, address):
    page = open_page(address, java_script_enabled=False)
    assert '<noscript><p class="refused">The explorer needs JavaScript' in page.content()
    expect(page.locator("#about ~ p").first).to_be_visible()
