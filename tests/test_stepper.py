"""Stepping: every moment is the same in any order and says why; its panel."""

import json
import random
import re
from dataclasses import replace

import pytest

from disagg import Config, Request
from disagg.plan.config import PRESETS
from disagg.plan.errors import ConfigError
from disagg.plan.events import Probed
from disagg.show import stepper
from disagg.twin.simulate import simulate
from disagg.twin.stepper import EVERY, Moment, Stepper


def to_bytes(moment: Moment) -> bytes:
    return json.dumps(vars(moment), sort_keys=True).encode()


def requests(count=12, seed=0):
    draw = random.Random(seed)
    return [Request([1] * draw.randint(4, 120), draw.randint(1, 20), arrival_s=0.2 * i) for i in range(count)]


def tight(preset: str) -> Config:
    sizes = {"decode_blocks": 24, "host_blocks": 24 if preset in ("paged", "dynamic") else 0, "prefill_blocks": 24}
    return Config.preset(preset, link=0.05e9, layers_per_copy=5, **sizes)


@pytest.mark.parametrize("preset", PRESETS)
def test_moments_are_the_same_in_any_order_and_in_another_stepper(preset):
    stepper, other = Stepper(tight(preset), requests()), Stepper(tight(preset), requests())
    forward = [to_bytes(stepper.at(number)) for number in range(len(stepper))]
    assert len(forward) == len(stepper) > EVERY, "several windows"
    assert [to_bytes(stepper.at(number)) for number in reversed(range(len(stepper)))] == forward[::-1]
    numbers = random.Random(preset).sample(range(len(other)), 30)
    assert [to_bytes(other.at(number)) for number in numbers] == [forward[number] for number in numbers]


@pytest.mark.parametrize("preset", PRESETS)
def test_moments_are_the_events_of_the_simulated_run(preset):
    stepper, run = Stepper(tight(preset), requests()), simulate(tight(preset), requests())
    assert [stepper.at(n).at_ns for n in range(len(stepper))] == [
        at for at, event in run.log if not isinstance(event, Probed)
    ]
    assert [r.token_times_ns for r in stepper.run().results] == [r.token_times_ns for r in run.results]


def test_a_moment_shows_what_is_held_and_where():
    stepper = Stepper(tight("paged"), requests())
    for number in range(len(stepper)):
        state = stepper.at(number).state
        tables = {"prefill 0": "prefill", "decode 0": "decode", "host": "host"}
        for pool, memory in tables.items():
            held = state["pools"][pool]
            blocks = [block for entry in held["held"] for block in entry["blocks"]]
            assert len(set(blocks)) == len(blocks) == held["total"] - held["free"]
            owned = {b for r in state["requests"].values() for b in r["tables"].get(memory, [])}
            assert owned <= set(blocks)
    last = stepper.at(len(stepper) - 1).state
    assert last["requests"] == {} and all(pool["held"] == [] for pool in last["pools"].values())


def test_it_says_why_with_the_numbers_compared():
    stepper = Stepper(tight("paged"), requests(20))
    words = "\n".join(why for number in range(len(stepper)) for why in stepper.at(number).why)
    for rule in ("starts prefill: it takes", "waits for decode 0:", "joins the batch as row", "makes room for request",
                 "(first come, first served) it is the last", "is spilled:", "takes one more block",
                 "ends (length)"):  # fmt: skip
        assert rule in words, rule
    costs = re.findall(r"is spilled: ([\d.]+) ms there and back, against ([\d.]+) ms", words)
    assert costs and all(float(spill) < float(recompute) for spill, recompute in costs)
    assert stepper.at(0).event.endswith("at most 13 new ones")
    alone = Stepper(Config.preset("baseline"), requests())
    few = "\n".join(why for number in range(20) for why in alone.at(number).why)
    assert "1 requests are on their way to 1 places in the batch" in few


def test_a_moment_beyond_the_end_is_refused():
    stepper = Stepper(tight("split"), requests(2))
    assert stepper.at(len(stepper) - 1).number == len(stepper) - 1
    for number in (-1, len(stepper)):
        with pytest.raises(ConfigError, match="moment .* does not exist: this run has"):
            stepper.at(number)


POOL = {"free": 1, "total": 2}


@pytest.fixture
def view():
    config = Config.preset("paged", decode_blocks=24, host_blocks=24, prefill_blocks=24)
    view = stepper(config, [Request([1] * 60, 20, arrival_s=0.1 * i) for i in range(6)])
    yield view
    view.close()


def cells(view) -> dict[str, list[str]]:
    return {name: [before, after] for name, before, after in said(view)["rows"]}


def said(view) -> dict:
    return view.scene.answer(view.run, view.settings)[0]


def test_it_starts_at_the_first_event_and_says_why(view):
    assert "1 of 237, at 0.0 ms: request 0 arrived: 60 prompt tokens" in said(view)["words"][0]
    assert "because request 0 starts prefill: it takes 4 of the 24 free blocks of prefill 0" in said(view)["words"]
    assert cells(view)["request 0"] == ["–", "prefilling, 0 tokens; blocks: prefill 0–3; decode 0–3"]
    assert view._repr_mimebundle_()[0]["text/plain"] == repr(view)
    assert repr(view).startswith("The controller, one event at a time: event 1. 6 requests, ")


def test_forth_and_back_are_inverse_and_the_playhead_goes_along(view):
    first = said(view)
    view.set(event=3)
    third = said(view)
    assert third != first and third["at"] >= first["at"] == 0
    view.set(event=237)
    assert said(view)["words"][0].startswith("237 of 237") and said(view)["at"] > third["at"]
    view.set(event=3)
    assert said(view) == third
    view.reset()
    assert said(view) == first
    with pytest.raises(ConfigError, match="event must be a whole number from 1 to 237; got 238"):
        view.set(event=238)


def test_a_row_is_what_the_event_before_left(view):
    view.set(event=20)
    after = {name: row[1] for name, row in cells(view).items()}
    view.set(event=21)
    assert {name: row[0] for name, row in cells(view).items() if row[0] != "–"} == after


def test_two_decode_workers_have_two_rows():
    view = stepper(Config.preset("two_colocated"), [Request([1] * 20, 4), Request([1] * 20, 4)])
    assert {"queue for decode 0", "queue for decode 1", "landed on decode 1"} <= set(cells(view))
    view.close()


def test_text_that_could_be_html_stays_text(view, monkeypatch):
    monkeypatch.setattr("disagg.show.instruments.Canvas", None)
    tag = "<img src=x onerror=alert(1)>"
    moment = Stepper(view.run.config, requests(1)).at(0)
    struck = replace(moment, event=tag, why=(tag,), commands=(tag,), state={**moment.state, "pools": {tag: POOL}})
    monkeypatch.setattr(Stepper, "at", lambda self, number: struck if number else moment)
    pictures = stepper(view.run.config, requests(1))
    pictures.set(event=2)
    words = pictures._face.words.value
    pictures.close()
    assert "<img" not in words and words.count("&lt;img src=x") == 4


def test_a_run_that_is_probed_begins_with_its_first_request():
    stepper = Stepper(Config.preset("paged"), [Request([1] * 60, 4)])
    assert (
        stepper.at(0).event.startswith("request 0 arrived") and stepper.at(len(stepper) - 1).number == len(stepper) - 1
    )
