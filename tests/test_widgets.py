"""The slider on a function: it calls it with the chosen link, shows what came back, and says errors as text."""

import pytest
from test_plots import LATEX, hand_made

from disagg import Config, Engine, Link, Request
from disagg.show.widgets import COLUMNS, LINES, SPEEDS, LinkSlider, link_name, no_math


def words(slider) -> str:
    return str(slider.words)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def slider(asked):
    def run_with_link(link):
        asked.append(link)
        return hand_made()

    slider = LinkSlider(run_with_link)
    yield slider
    slider.close()


def test_nothing_runs_before_the_button(slider, asked):
    slider.slider.value = 0
    assert asked == [] and slider.last is None
    assert slider.image.layout.display == "none"


def test_the_button_runs_with_the_chosen_link(slider, asked):
    slider.button.click()
    slider.slider.value = len(SPEEDS) - 1
    slider.button.click()
    assert asked == [20e6, None]
    assert slider.image.value[:4] == b"\x89PNG" and slider.image.layout.display is None
    assert words(slider).startswith("no limit: Token 1 came after 10 ms;")
    assert not slider.button.disabled


def test_run_is_what_the_button_does(slider, asked):
    slider.run()
    assert asked == [20e6] and slider.last.results[0].request == 7


def test_the_panel_stands_for_itself_as_text(slider):
    bundle = slider._repr_mimebundle_()
    assert bundle["text/plain"] == repr(slider)
    assert "slider at 20 MB/s (of 2 MB/s, 5 MB/s," in bundle["text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == slider.panel.model_id
    slider.slider.value = 0
    assert "slider at 2 MB/s" in repr(slider)


def test_an_error_is_shown_as_text_and_the_panel_goes_on():
    answers = [ValueError(LATEX), hand_made()]

    def run_with_link(link):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    slider = LinkSlider(run_with_link)
    slider.button.click()
    assert words(slider) == f"20 MB/s: ValueError: {no_math(LATEX)}"
    assert "$" not in words(slider) and "\\frac" not in words(slider), "JupyterLab would typeset it"
    assert "<img src=x onerror=alert(1)> </script>" in words(slider), "shown as it was typed"
    assert {type(label).__name__ for label in slider.words.box.children} == {"Label"}, "a Label sets text, never HTML"
    slider.button.click()
    assert "Token 1" in words(slider)
    slider.close()


def test_a_long_error_is_cut_to_a_few_lines():
    def run_with_link(link):
        raise RuntimeError("many words " * 500)

    slider = LinkSlider(run_with_link)
    slider.run()
    assert len(slider.words.box.children) == LINES and words(slider).endswith("…")
    assert all(len(label.value) <= COLUMNS for label in slider.words.box.children)
    slider.close()


def test_the_start_must_be_one_of_the_values():
    with pytest.raises(ValueError, match="3 MB/s"):
        LinkSlider(lambda link: None, value=3e6)


def test_closing_closes_every_part_and_may_be_repeated(slider):
    parts = [slider.panel, slider.slider, slider.button, slider.words.box, slider.image, *slider.words.box.children]
    slider.close()
    slider.close()
    assert all(part.comm is None for part in parts)


def test_names_of_links():
    links = [2e6, 14.0913e6, 500e3, None, "slow", Link(), Link(10e6), Link.ratio(0.5)]
    assert list(map(link_name, links)) == [
        "2 MB/s", "14.1 MB/s", "0.5 MB/s", "no limit", "slow", "no limit", "10 MB/s", "c/x = 0.5",
    ]  # fmt: skip
    assert link_name((Link(10e6),)) == "10 MB/s" and link_name((Link(10e6), Link())) == "10 MB/s then no limit"


def test_with_a_real_engine_and_after_it_was_closed():
    engine = Engine(Config.preset("dynamic", model="tiny"))

    def run_with_link(link):
        engine.retune(link=link)
        return engine.serve([Request("<b>$x$", max_new_tokens=3)])

    slider = LinkSlider(run_with_link, value=2e6)
    slider.run()
    assert slider.last.config.link == 2e6 and len(slider.last.results[0].token_ids) == 3
    engine.close()
    slider.run()
    assert "EngineError: this engine is closed; build a new one" in words(slider)
    slider.close()
