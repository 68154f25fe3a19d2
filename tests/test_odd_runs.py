"""Every view of runs with little in them: a picture, a panel, or a sentence that is true, and no bare error.

Views find themselves: each function of disagg.show that draws or tells something of a run, some runs, or a result.
"""

import contextlib
import functools
import importlib
import inspect
import pkgutil
import re

import pytest
from engine_tools import opened, small
from rich.console import Console, Group

import disagg.show
from benchmarks.claims.report_figures import Film
from benchmarks.robustness.faulty_simulation import FaultySimulation
from disagg import Config, Request, simulate
from disagg.monitor.fault_plan import FaultPlan
from disagg.plan.errors import ConfigError, DisaggError, EngineError
from disagg.show import panel, stepper, watch
from disagg.show.instruments import Instrument
from disagg.show.plots.batch_plot import batch_picture
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import sentence
from disagg.trace.results import Result, Run
from disagg.twin.simulate import simulation_of
from disagg.twin.simulated_engine import Speeds

SHOWN = (Picture, Instrument, Film, Group, str)
GIVEN = {"index": 0, "at_s": 0.0, "width": 80, "a_name": "one", "b_name": "other"}  # what a view asks for besides runs
NO_WORDS = re.compile(r"to -\d|\bNone\b|\bnan\b|\binf\b|rows \.|of 0\.0 rows|, \.")


@functools.cache
def views() -> dict[str, object]:
    found = {}
    for module in pkgutil.walk_packages(disagg.show.__path__, "disagg.show."):
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            members = inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
            own = [(name, view) for name, view in members if view.__module__ == module.name and name[0] != "_"]
            found |= {f"{module.name.rpartition('.')[2]}.{name}": view for name, view in own if is_view(view)}
    return found


def is_view(view) -> bool:
    shown = inspect.signature(view).return_annotation
    names = [str(kind) for kind in SHOWN]
    return str(shown) in names and arguments(view, runs()["one token"]) is not None


def arguments(view, run: Run) -> dict | None:
    """What a view is called with; None where it is no view of a run, or asks for more than is known here."""
    given = {}
    for name, parameter in inspect.signature(view).parameters.items():
        kind = str(parameter.annotation)
        if parameter.annotation is Run:
            given[name] = run
        elif parameter.annotation is Result:
            given[name] = run.results[0] if run.results else Result(0, 1, 0)
        elif "results.Run]" in kind:
            given[name] = {0.5 if "float" in kind else "the run": run}
        elif parameter.default is inspect.Parameter.empty:
            if name not in GIVEN:
                return None
            given[name] = GIVEN[name]
    return given if given.keys() - GIVEN else None


def trial(strikes: dict, requests: int = 1, preset: str = "streamed") -> Run:
    asked = [Request([1] * 20, 4) for _ in range(requests)]
    world = simulation_of(FaultySimulation, Config.preset(preset), asked, Speeds(), faults=FaultPlan(strikes))
    world.run()
    return world.so_far()


@functools.cache
def runs() -> dict[str, Run]:
    streamed, one = Config.preset("streamed"), [Request([1] * 20, 1)]
    never = simulate(streamed, [])
    never.results, never.interrupted = [Result(-1, 20, 0, finish_reason="cancelled")] * 2, True
    return {
        "no request": simulate(streamed, []),
        "no request, not recorded": simulate(streamed, [], record=False),
        "one token": simulate(streamed, one),
        "one token, one device": simulate(Config.preset("baseline"), one),
        "two tokens, two devices without a hand-off": simulate(Config.preset("two_colocated"), [Request([1] * 9, 2)]),
        "not recorded": simulate(streamed, [Request([1] * 20, 3)], record=False),
        "one token, paged": simulate(Config.preset("paged"), one),
        "failed in prefill": trial({("prefill", 1): "fail"}),
        "failed in a copy": trial({("copy", 1): "fail"}, preset="staged"),
        "cancelled in the queue": trial({("event", 1): "cancel"}),
        "cancelled later": trial({("event", 6): "cancel"}),
        "interrupted": trial({("event", 2): "interrupt"}, 3),
        "never begun": never,
        "rejected": simulate(streamed.replace(policy="deadline"), [Request([1] * 20, 3, deadline_s=0.001)]),
    }


def words_of(shown) -> list[str]:
    if isinstance(shown, Picture):
        assert shown.png().startswith(b"\x89PNG")
        return [shown.alt, shown.finding, *(text.get_text() for text in shown.figure.texts)]
    if isinstance(shown, Group):
        console = Console(width=80, file=None)
        with console.capture() as out:
            console.print(shown)
        return [out.get()]
    if isinstance(shown, str):
        return [re.sub(r"<(script|style).*?</\1>", "", shown, flags=re.DOTALL)]
    return [repr(shown) if isinstance(shown, Instrument) else shown.finding]


@pytest.mark.parametrize("run", runs())
@pytest.mark.parametrize("view", views())
def test_a_view_shows_an_odd_run_or_says_why_not(view, run, monkeypatch):
    monkeypatch.setattr("benchmarks.claims.report_figures.FRAMES", 2)
    try:
        shown = views()[view](**arguments(views()[view], runs()[run]))
    except DisaggError as error:
        texts = [str(error)]
    else:
        texts = words_of(shown)
        with contextlib.suppress(AttributeError):
            shown.close()
    assert texts and not [text for text in texts if NO_WORDS.search(text)], texts


def test_views_are_found():
    """The control."""
    assert {"instruments.flow", "timeline_plot.timeline_picture",
            "receipt_plot.diff_picture", "receipt_plot.receipt_picture", "html_page.page",
            "summaries.sentence"} <= views().keys()  # fmt: skip


ENGINES = ("baseline", "colocated", "streamed", "paged", "two_colocated")


@pytest.mark.parametrize("preset", ENGINES)
@pytest.mark.parametrize("requests", [[], [Request([5] * 9, 1)], [Request([5] * 9, 3)]], ids=len)
def test_engines_with_and_without_a_hand_off_can_be_watched(preset, requests, capsys):
    with opened(small(preset)) as engine:
        run = watch(engine, requests)
        assert len(run.results) == len(requests)
        panel_ = panel(engine, requests)
        texts = [repr(panel_), capsys.readouterr().out, sentence(run)]
        panel_.close()
    assert not [text for text in texts if NO_WORDS.search(text)], texts


@pytest.mark.parametrize("preset", ENGINES)
def test_the_stepper_of_no_request_says_so(preset):
    with pytest.raises(ConfigError, match="it has no request"):
        stepper(Config.preset(preset), [])
    view = stepper(Config.preset(preset), [Request([1] * 9, 1)])
    assert not NO_WORDS.search(str(view.scene.answer(view.run, view.settings)[0]["words"]) + repr(view))
    view.close()


def test_a_step_that_does_not_exist_is_refused_with_the_numbers():
    run = simulate(Config.preset("streamed"), [Request([1] * 9, 3)])
    with pytest.raises(EngineError, match="decode step 9 does not exist: this run has 2, from 0 to 1"):
        batch_picture(run, 9)
