"""The panel over a stepper: buttons, slider and sentence, and a table in which what changed is marked."""

import re
from dataclasses import replace

import pytest

from disagg import Config, Request
from disagg.show.plots.summaries import short_list
from disagg.show.stepping import _table, _words, stepper

POOL = {"free": 1, "total": 2}


@pytest.fixture
def view():
    config = Config.preset("paged", decode_blocks=24, host_blocks=24, prefill_blocks=24)
    view = stepper(config, [Request([1] * 60, 20, arrival_s=0.1 * i) for i in range(6)])
    yield view
    view.close()


def cells(view) -> dict[str, list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", view.table.value)[1:]
    texts = [[re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]
    return {text[0]: text[1:] for text in texts}


def test_it_starts_at_the_first_event_and_says_why(view):
    assert "1 of 237, at 0.0 ms: request 0 arrived: 60 prompt tokens" in view.words.value
    assert "because request 0 starts prefill: it takes 4 of the 24 free blocks of prefill 0" in view.words.value
    assert cells(view)["request 0"] == ["–", "▸ prefilling, 0 tokens; blocks: prefill 0–3; decode 0–3"]


def test_step_and_back_are_inverse(view):
    first = view.words.value, view.table.value
    view.step_button.click()
    view.step_button.click()
    second = view.words.value, view.table.value
    assert second != first and view.slider.value == 2
    view.back_button.click()
    view.step_button.click()
    assert (view.words.value, view.table.value) == second
    view.slider.value = 0
    assert (view.words.value, view.table.value) == first
    view.back_button.click()
    assert view.slider.value == 0, "stays at the first"
    view.slider.value = len(view.stepper) - 1
    view.step_button.click()
    assert view.slider.value == len(view.stepper) - 1


def test_only_what_changed_is_marked(view):
    for number in range(0, len(view.stepper), 20):
        view.slider.value = number
        for before, after in cells(view).values():
            assert after.startswith("▸ ") == (before != after.removeprefix("▸ "))


def test_two_decode_workers_have_two_rows():
    view = stepper(Config.preset("two_colocated"), [Request([1] * 20, 4), Request([1] * 20, 4)])
    assert {"queue for decode 0", "queue for decode 1", "landed on decode 1"} <= set(cells(view))
    view.close()


def test_text_that_could_be_html_is_escaped(view):
    tag = "<img src=x onerror=alert(1)>"
    moment = view.stepper.at(3)
    struck = replace(moment, event=tag, why=(tag,), commands=(tag,), state={**moment.state, "pools": {tag: POOL}})
    shown = _words(struck, 9) + _table(moment, struck)
    assert "<img" not in shown and shown.count("&lt;img src=x") == 4


def test_numbers_in_a_row_are_a_range():
    assert short_list([0, 1, 2, 5, 6]) == "0–2, 5, 6"


def test_it_stands_for_itself_as_text(view):
    assert view._repr_mimebundle_()["text/plain"] == repr(view)
    assert repr(view) == "The controller one event at a time: 237 events, buttons Back and Step."


def test_a_fork_gives_both_futures(view):
    view.slider.value = 50
    kept, changed = view.fork(max_batch=1)
    assert changed.timeline.end_ns > kept.timeline.end_ns
