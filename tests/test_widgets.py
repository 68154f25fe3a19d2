"""Parts of panels: names of links, and lines of text that stay plain and short."""

from test_plots import LATEX

from disagg import Link
from disagg.show.widgets import COLUMNS, LINES, TextLines, link_name, no_math


def test_a_line_stays_text_as_it_was_typed():
    lines = TextLines()
    lines.say(LATEX)
    assert str(lines) == no_math(LATEX)
    assert "$" not in str(lines) and "\\frac" not in str(lines), "JupyterLab would typeset it"
    assert "<img src=x onerror=alert(1)> </script>" in str(lines), "shown as it was typed"
    assert {type(label).__name__ for label in lines.box.children} == {"Label"}, "a Label sets text, never HTML"
    lines.close()


def test_a_long_text_is_cut_to_a_few_lines():
    lines = TextLines()
    lines.say("many words " * 500)
    assert len(lines.box.children) == LINES and str(lines).endswith("…")
    assert all(len(label.value) <= COLUMNS for label in lines.box.children)
    parts = [lines.box, *lines.box.children]
    lines.close()
    assert all(part.comm is None for part in parts)


def test_names_of_links():
    links = [2e6, 14.0913e6, 500e3, None, "slow", Link(), Link(10e6), Link.ratio(0.5)]
    assert list(map(link_name, links)) == [
        "2 MB/s", "14.1 MB/s", "0.5 MB/s", "no limit", "slow", "no limit", "10 MB/s", "c/x = 0.5",
    ]  # fmt: skip
    assert link_name((Link(10e6),)) == "10 MB/s" and link_name((Link(10e6), Link())) == "10 MB/s then no limit"
