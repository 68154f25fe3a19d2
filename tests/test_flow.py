"""The system at an instant: what the flow says against the timeline, counted by hand; its picture and its columns."""

import random

import pytest
from flow_by_hand import by_hand

from disagg import Config, Request, simulate
from disagg.plan.config import PRESETS
from disagg.show import flow
from disagg.show.plots.flow_plot import flow_picture
from disagg.trace.flow import GONE, HOST, QUEUE, Flow

SHORT = {"decode_blocks": 16, "ring_slots": 2, "link": 5e6}


def run_of(preset: str):
    few = SHORT if preset in ("staged", "paged", "dynamic") else {"link": 5e6} if preset == "streamed" else {}
    return simulate(
        Config.preset(preset, **few), [Request([1] * (40 + 30 * (i % 3)), 6 + 4 * (i % 3), 0.15 * i) for i in range(6)]
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_moment_agrees_with_the_timeline_counted_by_hand(preset):
    run, chance = run_of(preset), random.Random(1)
    found, length = Flow(run), run.timeline.end_ns - run.timeline.start_ns
    for ns in [0, length, *(chance.randrange(length) for _ in range(200))]:
        now, wanted = found.at(run.timeline.start_ns + ns), by_hand(run, ns)
        assert {name: {"requests": list(p.requests), "done": p.done} for name, p in now.passes.items()} == wanted[
            "passes"
        ]
        assert {name: list(step) for name, step in now.steps.items()} == wanted["steps"]
        assert {lane: flight._asdict() for lane, flight in now.flights.items()} == wanted["flights"]
        assert (now.ready, now.ring, now.tokens) == (wanted["ready"], wanted["ring"], wanted["tokens"])
        assert sorted(request for here in now.here.values() for request in here) == wanted["open"]


@pytest.mark.parametrize("preset", PRESETS)
def test_who_computes_is_there(preset):
    """A request is on the worker whose pass or step it is in, and in host memory while it is spilled or parked."""
    run = run_of(preset)
    found = Flow(run)
    for span in run.timeline.spans:
        if span.kind in ("prefill", "decode"):
            here = found.at((span.start_ns + span.end_ns) // 2).here
            assert {found.numbers[request] for request in span.requests} <= set(here[span.place]), span
    assert all(visits[0].place == QUEUE and visits[-1].place == GONE for visits in found.visits)


def test_a_parked_or_spilled_request_is_in_host_memory():
    run = simulate(Config.preset("paged", decode_blocks=12), [Request([1] * 60, 40, 0.1 * i) for i in range(4)])
    assert run.counts["spills"] or run.counts["parked"]
    assert any(visit.place == HOST for visits in Flow(run).visits for visit in visits)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_picture_says_what_it_shows(preset):
    run = run_of(preset)
    picture = flow_picture(run, 300.0, part="link")
    now = Flow(run).at(run.timeline.start_ns + 300_000_000)
    assert picture.finding.startswith("At 300 ms: ") and len(picture.png()) > 5_000
    for computing in now.passes.values():
        assert f"layer {computing.done + 1} of 30 of request {computing.requests[0]}" in picture.finding
    assert ("ring slots held" in picture.finding) == (run.config.route == "staged" and not run.config.colocated)


def test_without_a_time_the_picture_shows_a_moment_with_a_copy_under_way():
    assert " on the way to " in flow_picture(run_of("staged")).finding


def test_a_run_of_nothing_flows():
    assert flow_picture(simulate(Config.preset("staged"), [])).finding == "At 0 ms: 0 of 8 ring slots held."


def test_flow_shows_a_widget_with_picture_and_sentence():
    shown = flow(run_of("streamed"))
    data, metadata = shown._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= data.keys()
    assert metadata["image/png"]["alt"].startswith("The system at an instant.")
    assert (
        data["text/plain"]
        == "6 requests, 420 prompt tokens, 60 new tokens; 180 copies of 30 layers over 1 link (22.1 MB)."
    )
    shown.close()
