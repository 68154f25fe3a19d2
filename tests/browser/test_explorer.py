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
from disagg.course.catalogue import quizzes
from disagg.explorer.chapters import CHAPTERS
from disagg.explorer.settings import CONTROLS
from disagg.explorer.site import build

FEW = {"requests": "10"}
VIEW = "document.querySelector('.instrument').view"
SENTENCE, ALERT = "#explorer .sentence", "#explorer .refused"
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
    expect(opened.locator(".instrument")).to_have_attribute("aria-busy", "false", timeout=LONG)
    expect(opened.locator(SENTENCE)).to_contain_text("10 requests in")
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
    expect(page.locator(".views canvas").last).to_be_visible()
    expect(page.locator("#explorer .facts b").first).to_be_visible()
    expect(page.locator("#explorer .facts")).to_contain_text("second-token gap")
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
    before = page.locator("#explorer .figures").text_content()
    expect(page.locator("#log")).to_be_disabled()
    shot(page, "explorer-start")
    until_answered(page)
    assert page.locator("#explorer .figures").text_content() == before
    expect(page.locator("#said")).to_contain_text("99912 prompt tokens")
    expect(page.locator("#log")).to_be_enabled()
    assert page.complaints == []


def test_keys_alone(page, shot):
    seen = []
    while len(seen) < len(CONTROLS):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.name ?? ''")
        seen += [name] * (name in CONTROLS)
    assert seen == list(CONTROLS)
    before = page.locator(SENTENCE).text_content()
    page.locator("[name=rate]").focus()
    page.keyboard.press("End")
    expect(page.locator("label:has([name=rate]) b")).to_have_text("64")
    expect(page.locator(SENTENCE)).not_to_have_text(before, timeout=LONG)
    assert page.locator("#said").get_attribute("aria-live") == "polite"
    assert page.locator("[name=rate]").evaluate("node => node.labels[0].textContent") == CONTROLS["rate"].label + " 64"
    shot(page, "explorer-keys")


def test_a_permalink_holds_the_settings(open_page, address, page):
    page.locator("[name=preset]").select_option("split")
    page.locator("[name=hardware]").select_option("H100+L4")
    page.wait_for_url("**preset=split&*")  # the address follows a moment later
    page.get_by_role("button", name="Link").click()
    link = page.get_by_label("the setting as text").input_value()
    assert link == page.url and "hardware=H100%2BL4" in link and "preset=split" in link
    other = open_page(link)
    expect(other.locator(SENTENCE)).to_have_text(page.locator(SENTENCE).text_content(), timeout=LONG)
    expect(other.locator("[name=hardware]")).to_have_value("H100+L4")
    assert log_of(other) == expected_log({**FEW, "preset": "split", "hardware": "H100+L4"})


def test_an_address_that_changes_is_followed(page):
    go(page, {"requests": "20"})
    expect(page.locator(SENTENCE)).to_contain_text("20 requests in", timeout=LONG)
    expect(page.locator("[name=requests]")).to_have_attribute("aria-valuetext", "20")


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
    before = page.locator(SENTENCE).text_content()
    page.evaluate("hash => { location.hash = hash }", hash)
    expect(page.locator(ALERT)).to_contain_text(words, timeout=LONG)
    expect(page.locator("#said")).to_have_text("The picture still shows the last settings that can be.")
    assert page.locator(f"{ALERT} img").count() == 0
    go(page, FEW)
    expect(page.locator(SENTENCE)).to_have_text(before, timeout=LONG)
    expect(page.locator(ALERT)).to_be_hidden()


def test_a_bad_link_is_refused_at_the_start_too(open_page, address):
    page = open_page(f"{address}#seed=100")
    expect(page.locator(ALERT)).to_contain_text("seed must be a whole number from 0 to 99", timeout=LONG)
    expect(page.locator("[name=seed]")).to_have_attribute("aria-valuetext", "0")
    page.locator("[name=requests]").press("Home")
    expect(page.locator(SENTENCE)).to_contain_text("10 requests in", timeout=LONG)


WISH = """(wishes) => {
  const { view } = document.querySelector(".instrument");
  for (const wish of wishes) {
    view.inputs.forEach((one) => wish[one.name] && one.set(wish[one.name]));
    view.want();
  }
}"""


def test_of_many_wishes_the_last_is_answered(page):
    page.evaluate(WISH, [{"rate": str(n), "requests": str(10 * n)} for n in range(1, 21)])
    expect(page.locator(SENTENCE)).to_contain_text("200 requests in", timeout=LONG)
    assert page.evaluate("performance.getEntriesByName('answered').length") < 4


def test_a_newer_wish_ends_a_run_that_is_under_way(page):
    """The worker is heard directly: it never answers the long one."""
    page.evaluate("window.heard.length = 0")
    page.evaluate(WISH, [{"requests": "300", "preset": "staged"}])
    page.wait_for_timeout(1100)  # so long it may take
    page.evaluate(WISH, [{"requests": "20", "preset": "split"}])
    expect(page.locator(SENTENCE)).to_contain_text("20 requests in", timeout=LONG)
    assert page.evaluate("window.heard.length") == 1


#: How many colours of spans and text a canvas has.
COLOURS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""


def test_a_pinned_run_stays_with_its_settings_and_its_timeline(page, shot):
    """Both runs on one axis: the longer one sets it, and what is done to the one timeline is done to the other."""
    page.get_by_role("button", name="Pin this").click()
    page.locator("[name=link]").select_option("1gbe")
    until_answered(page, 1)
    expect(page.locator("#explorer .figures > .ghost")).to_have_text("Pinned: link between the two 25gbe, 3.125 GB/s.")
    gap = page.locator("#explorer .facts > span", has_text="second-token gap")
    assert gap.locator("b").text_content() not in gap.locator(".ghost").text_content()
    expect(page.get_by_role("heading", name="The pinned run, on the same axis")).to_be_visible()
    page.evaluate(f"() => {{ {VIEW}.timeline.zoom(0.5, 0); {VIEW}.second.seek(1e8) }}")
    page.wait_for_function(f"() => {VIEW}.second.high === {VIEW}.timeline.high")
    assert page.evaluate(f"{VIEW}.timeline.at === 1e8 && {VIEW}.second.at === 1e8")
    assert page.evaluate(
        f"{VIEW}.second.spans === {VIEW}.pinned.spans && {VIEW}.second.spans !== {VIEW}.timeline.spans"
    )
    assert page.evaluate(f"{VIEW}.timeline.whole === Math.max({VIEW}.second.spans.end, {VIEW}.timeline.spans.end)")
    for view in ("timeline", "second"):
        assert page.evaluate(f"({COLOURS})({VIEW}.{view}.canvas)") > 3, "both are drawn"
    shot(page, "explorer-pinned")
    page.get_by_role("button", name="Unpin").click()
    expect(page.locator("#explorer .beside")).to_be_hidden()
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(SENTENCE)).to_contain_text("10 requests in", timeout=LONG)
    expect(page.locator("[name=link]")).to_have_value(CONTROLS["link"].default)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_question_is_explained_once_it_is_answered(open_page, address, chapter):
    page = open_page(f"{address}{chapter}.html")
    first, question = page.locator(".question").first, quizzes()[chapter][0]
    wrong = next(letter for letter in question.letters if letter != question.right)
    expect(first.locator(".why")).to_be_hidden()
    for letter, verdict in ((wrong, "Not this one: "), (question.right, "Right: ")):
        first.locator(f"[value={letter}]").check()
        expect(first.locator(".why")).to_have_text(verdict + question.why(letter).replace("`", ""))
    expect(page.locator(".why").nth(1)).to_be_hidden()
    assert page.complaints == []


#: Another scene on a page of the site; its slider moves step by step, each time until the answer has been painted.
DRAG = """async (moves) => {
  const place = document.body.appendChild(document.createElement("div")), took = [], drawn = new Set();
  place.dataset.scene = "04";
  const { opened } = await import("./pages.js"), view = await opened(place), slider = place.querySelector("input");
  for (let k = 0; k < moves; k++) {
    const since = performance.now(), most = Number(slider.max);
    slider.value = Math.abs(((k + most) % (2 * most)) - most);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    while (view.pending) await new Promise((done) => setTimeout(done));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    took.push(performance.now() - since), drawn.add(view.timeline.spans);
  }
  return [took, drawn.size];
}"""


def test_a_slider_of_the_site_redraws_while_it_moves(open_page, address, figure):
    """Six requests of 30 layers, the scene of chapter 04, as Python in the browser answers them."""
    page = open_page(f"{address}03.html")
    page.wait_for_function("() => performance.getEntriesByName('python ready').length", timeout=LONG)
    times, drawn = page.evaluate(DRAG, 65)
    assert drawn == 65 and page.complaints == []
    warm = sorted(times[5:])  # the first ones load what is imported late
    note = f"a moved slider to the new picture, six requests of 30 layers; longest {warm[-1]:.0f} ms"
    for share in (50, 95):
        figure(f"slider_ms[site] p{share}", warm[len(warm) * share // 100], len(warm), note)


#: What stands outside the window or is clipped by its own box: an option of a menu needs 20 points for its arrow.
CUT = """() => {
  const pen = document.createElement("canvas").getContext("2d");
  const room = (menu) => (pen.font = getComputedStyle(menu).font, menu.clientWidth - 20);
  const clips = (node) => [...(node.options ?? [])].some(({ text }) => pen.measureText(text).width > room(node)) ||
    (node.childElementCount === 0 && node.clientWidth && node.scrollWidth > node.clientWidth + 1);
  return [...document.querySelectorAll("main *")].filter((node) => {
    const { left, right, width } = node.getBoundingClientRect();
    return width && (left < 0 || right > innerWidth || clips(node));
  }).map((node) => `${node.tagName} ${node.textContent}`);
}"""


@pytest.mark.parametrize(("wide", "tall"), [(1280, 720), (390, 844)])
def test_the_numbers_stand_on_the_first_screen_and_nothing_is_cut(open_page, address, shot, wide, tall):
    page = open_page(permalink(address, {**FEW, "preset": "paged"}), viewport={"width": wide, "height": tall})
    expect(page.locator(SENTENCE)).to_contain_text("10 requests in", timeout=LONG)
    shot(page, f"explorer-first-{wide}")
    figures, picture = (
        page.locator("#explorer .facts").bounding_box(),
        page.locator(".views canvas").last.bounding_box(),
    )
    assert figures["y"] + figures["height"] < tall
    assert wide < 900 or picture["y"] + picture["height"] < tall, "the timeline too, where there is room"
    page.get_by_role("button", name="Pin this").click()
    sliders, figures = (page.locator(f"#explorer {part}").bounding_box() for part in (".controls", ".facts"))
    assert wide < 900 or figures["x"] > sliders["x"] + sliders["width"] - 1, "beside the sliders where there is room"
    assert page.evaluate(CUT) == []
    ends = page.evaluate(f"{VIEW}.timeline.entries({wide} - 24).map(({{ k, x }}) => x + 28 + "
                         f"{VIEW}.timeline.pen.measureText({VIEW}.timeline.look[k].words).width)")  # fmt: skip
    assert len(ends) > 2 and max(ends) < wide - 24
    names = page.locator(".instrument button").all_text_contents()
    assert len(set(names)) == len(names) - len(page.locator(".beside button").all_text_contents()), "no two alike"
    shot(page, f"explorer-numbers-{wide}")


@pytest.mark.parametrize("wide", [1280, 390])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nothing_of_a_chapter_is_cut(open_page, address, chapter, wide):
    """What is printed in columns may be moved sideways."""
    page = open_page(f"{address}{chapter}.html", viewport={"width": wide, "height": 844})
    expect(page.locator(".instrument canvas").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= wide
    cut = page.evaluate(CUT.replace('"main *"', '"main :not(pre, pre *, table *)"'))
    assert cut == []
    picture = page.locator("figure img").last
    picture.click()
    whole = "node => node.width >= Math.min(node.naturalWidth, 900)"
    assert picture.evaluate(whole) and page.evaluate("document.documentElement.scrollWidth") <= wide, "to be moved"
    assert page.complaints == []


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
    expect(page.locator(SENTENCE)).to_contain_text("10 requests in", timeout=LONG)
    assert page.evaluate("document.documentElement.scrollWidth") <= wide
    assert page.locator("#explorer").evaluate("node => getComputedStyle(node).transitionDuration") == "0s"
    shot(page, f"explorer-{wide}-{scheme}")
    assert page.complaints == []


def test_without_javascript_it_says_so(open_page, address):
    page = open_page(address, java_script_enabled=False)
    assert '<noscript><p class="refused">The explorer needs JavaScript' in page.content()
    expect(page.locator("#about ~ p").first).to_be_visible()
