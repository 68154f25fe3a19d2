"""The question box: what is asked is answered in turn, and an engine that cannot start says so in place."""

import pytest

from disagg.show import ask


def test_questions_are_answered_in_turn_and_the_view_follows():
    box = ask(model="tiny", tokens=4)
    assert repr(box) == "Ask the model: a box with a question and a button Ask; an answer has 4 tokens."
    box.ask("first")
    box.wait()
    first = box.last.results[0]
    box.ask("<b>second</b>")
    box.wait()
    second = box.last.results[0]
    assert (first.prompt, second.prompt) == ("first", "<b>second</b>")
    assert len(second.token_ids) == 4 and second.finish_reason == "length"
    assert box._view.panel.said["sentence"].startswith("Token 1 came after"), "the view shows the last run"
    box.close()
    assert box.engine is not None


def test_an_engine_that_cannot_start_is_told_in_place():
    box = ask(model="no-such-model")
    box.wait()
    assert "no-such-model" in box.answer.value
    with pytest.raises(RuntimeError, match="no-such-model"):
        _ = box.engine
    box.close()


def test_an_answer_is_text_and_no_markup():
    box = ask(model="tiny", tokens=2)
    box.ask("x")
    box.wait()
    box.last.results[0].text = "<img src=x>"
    box._show(box.last)
    assert "&lt;img src=x&gt;" in box.answer.value and "<img" not in box.answer.value
    box.close()
