"""Live views: they serve, show, stop and end as they say, and leave nothing behind. A front end is played by a list."""

import gc
import sys
import threading
from contextlib import closing

import ipywidgets
import pytest
from engine_tools import LIMIT_S, before, joined, opened, small, started, threads
from interrupts import interrupt_main
from test_plots import LATEX, simulated

import disagg.show
from disagg import Engine, Link, Request, simulate
from disagg.plan.errors import ConfigError, DisaggError, EngineError, RequestError
from disagg.show import flow, live, panel, watch
from disagg.show.fallback import SERVE, STOP
from disagg.show.instruments import Instrument
from disagg.show.scene import Numbers, Scene, Setup
from disagg.show.serving import LINES, short_turns, tail, text_lines
from disagg.trace.results import Result

TAGS = LATEX + "\n<b>[red]"


def asked(count: int = 3, new: int = 12, **fields) -> list[Request]:
    return [Request(TAGS, new, ignore_eos=True, **fields) for _ in range(count)]


@pytest.fixture
def screen(monkeypatch):
    """What a notebook would get: the bundles that were displayed, and the runs that were seen."""
    got, seen, see = [], [], Instrument.see
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: got.append(data))
    monkeypatch.setattr(
        Instrument, "see", lambda self, run, *more, **named: (seen.append(run), see(self, run, *more, **named))
    )
    return got, seen


@pytest.fixture(autouse=True)
def nothing_left():
    gc.collect()
    running = threads()
    yield
    assert threads() == running
    ipywidgets.Widget.close_all()  # a view stays in its cell


def until_it_serves(shown):
    """Returns when the engine has the requests."""
    for _ in range(round(LIMIT_S * 100)):
        if (serving := shown._live) is not None and (serving.engine.open_handles() or serving.wait(0.01)):
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never began")


def test_watch_serves_and_its_text_never_changes(screen):
    displayed, seen = screen
    with opened(small("staged", link=1e6)) as engine:
        run = watch(engine, asked(), updates_per_s=50)
        again = watch(engine, asked(), updates_per_s=50)
    assert [r.token_ids for r in run.results] == [r.token_ids for r in again.results]
    assert [data["text/plain"] for data in displayed] == ["Live view of 3 requests."] * 2, "one display a call"
    assert all("application/vnd.jupyter.widget-view+json" in data and "image/png" in data for data in displayed)
    assert seen[-1] is again and len(seen) > 3, "several looks, and the whole run at the end"


def test_a_look_that_takes_long_is_taken_less_often(monkeypatch):
    waits = []

    class Asked:
        def wait(self, timeout_s):
            waits.append(timeout_s)
            return len(waits) == 3

    clock = iter([0.0, 1.0, 5.0, 5.001])  # two looks: of a second, and of a millisecond
    monkeypatch.setattr("disagg.show.serving.time.perf_counter", lambda: next(clock))
    with opened(small()) as engine:
        live.follow(Asked(), engine, lambda run: None, 0.1)
    assert waits == [0.1, 20.0, 0.1]


def test_turns_are_short_while_a_view_is_made_and_as_before_after_it():
    before = sys.getswitchinterval()
    with pytest.raises(RuntimeError), short_turns():
        assert sys.getswitchinterval() < before
        raise RuntimeError
    assert sys.getswitchinterval() == before


def test_without_a_front_end_the_sentence_is_printed_once(capsys):
    with opened(small()) as engine:
        run = watch(engine, asked(1))
    assert run.results[0].finish_reason == "length"
    assert capsys.readouterr().out == "Live view of 1 request.\n"


def test_an_interrupt_ends_the_requests_and_returns(monkeypatch, screen):
    hold = threading.Event()
    with opened(small()) as engine:
        monkeypatch.setattr(Instrument, "see", lambda *a, **k: interrupt_main() or hold.wait(LIMIT_S))
        serving = [*asked(2, 900), *asked(1, arrival_s=1e6)]
        monkeypatch.setattr(live.Screen, "show", once(live.Screen.show))
        run = watch(engine, serving, updates_per_s=100)
        monkeypatch.undo()
        assert run.interrupted and {r.finish_reason for r in run.results} == {"cancelled"}
        assert not engine.serve(asked(1)).interrupted, "the engine goes on"


def once(act):
    """Only the first call acts."""
    calls = []
    return lambda *arguments: calls.append(1) or (act(*arguments) if len(calls) == 1 else None)


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


# ---- the panel -------------------------------------------------------------------------------------------------------


def test_the_button_serves_and_the_answers_are_lines():
    with opened(small("staged", link=2e6)) as engine, closing(panel(engine, asked())) as shown:
        assert shown.real is None and shown.run.results[0].prompt_tokens == len(engine.model.encode(TAGS))
        words = repr(shown)
        shown._asked(1, None, SERVE)
        shown.wait()
        said = shown._face.said
        assert [text[:20] for text in said["texts"]] == [f"{i}  12 tokens, length" for i in range(3)]
        assert not any("\n" in text for text in said["texts"]) and said["act"] == SERVE
        assert said["sentence"].startswith("On the real engine: 3 requests in ")
        assert repr(shown) == words, "a text to compare"


@pytest.mark.parametrize("preset", ["streamed", "staged"])
def test_dials_show_a_link_that_was_measured(preset):
    with opened(small(preset, link=Link.ratio(0.8))) as engine, closing(panel(engine, asked(1))) as shown:
        assert shown.settings["link"].endswith("MB/s")


def test_what_is_turned_while_it_serves_changes_the_engine(monkeypatch):
    with opened(small()) as engine, closing(panel(engine, asked(2, 900))) as shown:
        shown.set(max_batch=3)
        assert engine.config.max_batch == 32, "a simulation"
        shown.serve()
        until_it_serves(shown)
        assert engine.config.max_batch == 3, "it serves what was set"
        shown.set(max_batch=2, policy="shortest first", link="2 MB/s")
        assert (engine.config.max_batch, engine.config.policy, engine.config.link) == (2, "shortest", 2e6)
        before(monkeypatch, Engine, "retune", lambda *a, **k: (_ for _ in ()).throw(ConfigError(LATEX)))
        refused = []
        monkeypatch.setattr(shown._face, "refuse", lambda words, number=0: refused.append((words, number)))
        shown._asked(7, {**shown.settings, "decode_blocks": 3}, None)
        assert refused == [(LATEX, 7)] and shown.settings["decode_blocks"] == 64
        assert shown._face.said["act"] == STOP
        shown._asked(8, None, SERVE)  # the same button
        shown.wait()
        assert {result.finish_reason for result in shown.real.results} == {"cancelled"}
        marked = [one["words"] for one in shown._face.said["brackets"] if one["start"] == one["end"]]
        assert marked == ["link 2 MB/s, policy shortest first, max_batch 2"], "in the timeline, when it was turned"


def test_other_requests_have_to_wait():
    controls = {"n": Numbers("n", 1, (1, 2))}
    with opened(small()) as engine:

        def world(n):
            return Setup(engine.config, asked(n, 900))

        scene = Scene("", controls, lambda n: simulate(engine.config, [Request([1], 2)] * n), world=world)
        with closing(Instrument(scene, engine)) as shown:
            shown.serve()
            until_it_serves(shown)
            with pytest.raises(DisaggError, match="being served"):
                shown.set(n=2)
            with pytest.raises(DisaggError, match="serving already"):
                shown.serve()


def test_a_closed_engine_is_reported_in_place():
    engine = Engine(small())
    shown, refused = panel(engine, asked()), []
    shown._face.refuse = lambda words, number=0: refused.append(words)
    engine.close()
    shown.serve()
    shown.wait()
    assert refused == ["The engine could not serve it: this engine is closed; build a new one"]
    assert shown._face.said["act"] == SERVE
    shown.close()


def test_closing_ends_what_it_serves():
    with opened(small()) as engine:
        shown = panel(engine, [*asked(2, 900), *asked(1, arrival_s=1e6)])
        shown.serve()
        until_it_serves(shown)
        shown.close()
        assert engine.idle and shown._face.comm is None
        shown.close()


def test_a_run_that_fails_shows_its_sentence_and_the_simulated_one_stays(monkeypatch):
    def fail(*args):
        raise EngineError(LATEX)

    with opened(small()) as engine:
        before(monkeypatch, Engine, "serve", fail)
        shown, refused = panel(engine, asked()), []
        shown._face.refuse = lambda words, number=0: refused.append(words)
        shown.serve()
        shown.wait()
        assert refused == [f"The engine could not serve it: {LATEX}"] and shown.shown is shown.run
        shown.close()


def test_without_anywidget_pictures_follow_and_the_button_stops(monkeypatch):
    monkeypatch.setattr("disagg.show.instruments.Canvas", None)
    with opened(small()) as engine, closing(panel(engine, asked(2, 900))) as shown:
        face = shown._face
        first = face.images["timeline"].value
        face.controls["max_batch"].value = 1
        assert shown.settings["max_batch"] == 1 and face.images["timeline"].value != first
        face._reset([control.index for control in face.controls.values()][:-1] + [31])
        assert shown.settings["max_batch"] == 32
        face.actor.click()
        until_it_serves(shown)
        face.actor.description = STOP
        face.actor.click()
        shown.wait()
        assert face.actor.description == SERVE and "cancelled" in face.words.value
        assert shown.shown is shown.real and "<b>[red]" not in face.words.value


# ---- words -----------------------------------------------------------------------------------------------------------


def test_lines_hold_one_line_of_plain_letters():
    assert tail("a\nb\tc\x1b[31m", 20) == "a↵b c [31m"
    assert tail("abcdef", 4) == "…def"
    run = simulated("streamed", 12)
    lines = text_lines(run.results, run.timeline.end_ns * 2, lambda ids: TAGS)
    assert len(lines) == LINES and lines[-1].startswith("11  5 tokens, length: ") and LATEX in lines[-1]


def test_the_words_of_the_package_are_found_and_others_not():
    assert {watch, panel} == {getattr(disagg.show, name) for name in ("watch", "panel")}
    with pytest.raises(AttributeError, match="wach"):
        _ = disagg.show.wach


def test_a_request_that_failed_says_why_and_a_control_has_the_name_that_the_error_gives():
    with opened(small("streamed", decode_blocks=8)) as engine:
        shown = panel(engine, [Request([5] * 60, 40, ignore_eos=True)])
        with pytest.raises(RequestError) as refused:
            shown.set(decode_blocks=1)
        words, controls = str(refused.value), [control.label for control in shown.scene.controls.values()]
        shown.close()
    name = words.split("raise ")[1].split()[0].strip(".,;")
    assert name in controls, words
    failed = Result(0, 60, 0, [7], [5], finish_reason="failed", error="needs 7 blocks; raise decode_blocks", ended_ns=9)
    assert text_lines([failed], 10, None) == ("0  1 token, failed: needs 7 blocks; raise decode_blocks",)
    assert text_lines([failed], 4, None) == ("0  no token yet",)


def test_a_view_of_a_run_needs_no_engine():
    with closing(flow(simulated("streamed", 3))) as shown, pytest.raises(DisaggError, match="has no model"):
        shown.serve()
