"""Live views: they serve, show, stop and end as they say, and leave nothing behind. A front end is played by a list."""

import gc
import threading
from contextlib import closing

import ipywidgets
import pytest
from engine_tools import LIMIT_S, before, joined, opened, small, started, threads
from interrupts import interrupt_main
from test_plots import LATEX, simulated

import disagg.show
from disagg import Engine, Link, Request
from disagg.plan.errors import ConfigError, EngineError, RequestError
from disagg.show import live, panel, player, watch
from disagg.show.live import tail, text_lines
from disagg.show.widgets import no_math
from disagg.trace.results import Result

TAGS = LATEX + "\n<b>[red]"


def asked(count: int = 3, new: int = 12, **fields) -> list[Request]:
    return [Request(TAGS, new, ignore_eos=True, **fields) for _ in range(count)]


def settle(shown):
    """Returns when everything wished for so far is drawn."""
    for _ in range(2):
        done = threading.Event()
        shown.wish(done.set)
        assert done.wait(LIMIT_S)


def until(shown, condition):
    for _ in range(100_000):
        settle(shown)
        if condition():
            return
    raise AssertionError("it never came")


@pytest.fixture
def screen(monkeypatch):
    """What a notebook would get: (png, plain text, alt) of each update."""
    got = []
    monkeypatch.setattr(live, "in_notebook", lambda: True)

    class Display:
        display_id = "one"

        def display(self, data, raw, metadata):
            assert not got or got[-1][3] is not self
            self.update(data, raw, metadata)

        def update(self, data, raw, metadata):
            assert raw and set(data) == {"image/png", "text/plain"}
            got.append((data["image/png"], data["text/plain"], metadata["image/png"]["alt"], self))

    monkeypatch.setattr("IPython.display.DisplayHandle", Display)
    return got


@pytest.fixture(autouse=True)
def nothing_left():
    gc.collect()
    widgets, running = len(ipywidgets.widgets.widget._instances), threads()
    yield
    assert threads() == running
    assert len(ipywidgets.widgets.widget._instances) == widgets
    assert player._OPEN == {}


def test_watch_serves_and_its_text_never_changes(screen):
    with opened(small("staged", link=1e6)) as engine:
        run = watch(engine, asked(), updates_per_s=50)
        again = watch(engine, asked(), updates_per_s=50)
    assert [r.token_ids for r in run.results] == [r.token_ids for r in again.results]
    assert len(screen) > 3 and len({words for _, words, _, _ in screen}) == 1
    words = "Live timeline of 3 requests; rows from the top: prefill, link to host, link to decode, decode."
    assert screen[0][1] == words
    assert "3 requests in " in screen[-1][2], "the last picture is of the whole run"
    assert len({id(handle) for *_, handle in screen}) == 2, "one display a call"


def test_without_a_front_end_the_sentence_is_printed_once(capsys):
    with opened(small()) as engine:
        run = watch(engine, asked(1))
    assert run.results[0].finish_reason == "length"
    assert capsys.readouterr().out == "Live timeline of 1 request; rows from the top: prefill, link, decode.\n"


def test_an_interrupt_ends_the_requests_and_returns(monkeypatch, screen):
    hold = threading.Event()
    with opened(small()) as engine:
        monkeypatch.setattr(live.Look, "png", lambda self: interrupt_main() or hold.wait(LIMIT_S) or b"")
        run = watch(engine, [*asked(2, 900), *asked(1, arrival_s=1e6)], updates_per_s=100)
        monkeypatch.undo()
        assert run.interrupted and {r.finish_reason for r in run.results} == {"cancelled"}
        assert not engine.serve(asked(1)).interrupted, "the engine goes on"


def test_requests_that_others_submitted_are_watched_to_their_end(screen):
    with opened(small()) as engine:
        handles = [engine.submit(request) for request in asked(2, 60)]
        run = watch(engine, updates_per_s=100)
        assert all(handle.done for handle in handles)
        assert [r.token_ids for r in run.results] == [h.result().token_ids for h in handles][-len(run.results) :]
        assert watch(engine).results == [], "nothing is open"


def test_what_cannot_be_served_is_raised(screen):
    with opened(small()) as engine, pytest.raises(RequestError, match="vocabulary"):
        watch(engine, [Request([9999])])
    with pytest.raises(EngineError, match="closed"):
        watch(engine, asked())


def test_two_engines_are_watched_at_once():
    with opened(small()) as one, opened(small("staged")) as other:
        runs = {}
        others = started(lambda: runs.update(other=watch(other, asked(2))))
        runs["one"] = watch(one, asked(3))
        joined(others)
    assert len(runs["one"].results) == 3 and len(runs["other"].results) == 2
    assert {s.place for s in runs["one"].timeline.spans} == {"prefill 0", "direct 0", "decode 0"}


def test_start_serves_and_shows_text_as_text():
    with opened(small("staged", link=2e6)) as engine, closing(panel(engine, asked())) as shown:
        assert shown.last is None
        words = repr(shown)
        shown.buttons[0].click()
        until(shown, lambda: shown.last is not None)
        settle(shown)
        assert shown.image.value[:4] == b"\x89PNG"
        assert [label.value[:16] for label in shown.texts[:4]] == [f"{i}  12 tokens, le" for i in range(3)] + [""]
        assert not any(letter in label.value for label in shown.texts for letter in "$\n")
        assert {type(label) for label in (*shown.texts, shown.words)} == {ipywidgets.Label}
        assert repr(shown) == words == shown._repr_mimebundle_()["text/plain"]
        shown.close()


def test_pause_freezes_the_playhead_and_the_engine_goes_on():
    with opened(small()) as engine, closing(panel(engine, asked())) as shown:
        shown.buttons[1].click()
        shown.buttons[0].click()
        shown.buttons[1].click()
        until(shown, lambda: shown.last is not None)
        at = shown.playhead.at_ms
        assert not shown.playhead.playing and at < shown.source.end_ms
        shown.buttons[3].click()
        settle(shown)
        assert shown.playhead.at_ms > at and shown.buttons[1].description == "Play"


@pytest.mark.parametrize("preset", ["streamed", "staged"])
def test_dials_show_a_link_that_was_measured(preset):
    with opened(small(preset, link=Link.ratio(0.8))) as engine, closing(panel(engine, asked(1))) as shown:
        assert shown.source.dials.controls["link"].label.endswith("MB/s")


def test_dials_retune_and_a_refusal_is_text(monkeypatch):
    with opened(small()) as engine, closing(panel(engine, asked())) as shown:
        dials = shown.source.dials.controls
        dials["max_batch"].value, dials["policy"].value, dials["link"].value = 2, 1, 0
        settle(shown)
        assert (engine.config.max_batch, engine.config.policy, engine.config.link) == (2, "shortest", 2e6)

        def refuse(**changes):
            raise ConfigError(LATEX)

        monkeypatch.setattr(engine, "retune", refuse)
        dials["decode_blocks"].value = 3
        settle(shown)
        assert dials["decode_blocks"].value == 64, "back to what it is"


def test_a_closed_engine_is_reported_in_a_sentence():
    engine = Engine(small())
    shown = panel(engine, asked())
    engine.close()
    shown.buttons[0].click()
    until(shown, lambda: shown.words.value)
    assert shown.words.value == "EngineError: this engine is closed; build a new one"
    shown.close()


def test_closing_ends_what_it_serves_and_the_same_cell_closes_the_panel_before():
    with opened(small()) as engine:
        for _ in range(3):
            shown = panel(engine, [*asked(2, 900), *asked(1, arrival_s=1e6)])
            shown.buttons[0].click()
            settle(shown)
        assert len([name for name in threads() if name == "disagg panel"]) == 1
        shown.close()


def test_a_worker_that_fails_shows_its_sentence(monkeypatch):
    def fail(*args):
        raise EngineError(LATEX)

    with opened(small()) as engine:
        before(monkeypatch, Engine, "serve", fail)
        shown = panel(engine, asked())
        shown.buttons[0].click()
        until(shown, lambda: shown.words.value)
        assert no_math(LATEX) in shown.words.value and "$" not in shown.words.value
        shown.close()


def test_every_control_has_words():
    with opened(small()) as engine:
        shown = panel(engine, asked())
        for control in (*shown.buttons, shown.speed, shown.time):
            assert control.description and control.tooltip
        shown.close()


def test_lines_hold_one_line_of_plain_letters():
    assert tail("a\nb\tc\x1b[31m", 20) == "a↵b c [31m"
    assert tail("abcdef", 4) == "…def"
    run = simulated("streamed", 12)
    lines = text_lines(run.results, run.timeline.end_ns * 2, lambda ids: TAGS)
    assert len(lines) == live.LINES and lines[-1].startswith("11  5 tokens, length: ") and LATEX in lines[-1]


def test_the_words_of_the_package_are_found_and_others_not():
    assert {watch, panel} == {getattr(disagg.show, name) for name in ("watch", "panel")}
    with pytest.raises(AttributeError, match="wach"):
        _ = disagg.show.wach


def test_a_request_that_failed_says_why_and_the_dial_has_the_name_that_the_error_gives():
    with opened(small("streamed", decode_blocks=8)) as engine:
        shown = panel(engine, [Request([5] * 60, 40, ignore_eos=True)])
        engine.retune(decode_blocks=1)
        shown.buttons[0].click()
        settle(shown)
        words = shown.words.value
        shown.close()
    name = words.split("raise ")[1].split()[0].strip(".,;")
    assert name in {control.description for control in shown.source.dials.controls.values()}, words
    failed = Result(0, 60, 0, [7], [5], finish_reason="failed", error="needs 7 blocks; raise decode_blocks", ended_ns=9)
    assert text_lines([failed], 10, None) == ("0  1 token, failed: needs 7 blocks; raise decode_blocks",)
    assert text_lines([failed], 4, None) == ("0  no token yet",)
