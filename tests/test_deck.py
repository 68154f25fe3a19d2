"""A deck holds everything itself: no address, no live cell, and a slide a heading."""

import re
import sys
from pathlib import Path

import pytest
from nbformat import v4

from disagg.cli import deck
from disagg.plan.errors import FileError

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "00_start_here.ipynb"


@pytest.fixture
def reveal(tmp_path, monkeypatch):
    """A package with the files of reveal.js that are read."""
    folder = tmp_path / "sphinx_revealjs"
    (folder / "_static/revealjs/dist/theme").mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name, text in (("reveal.js", "var Reveal='</script>'"), ("reveal.css", ".reveal{}"),
                       ("theme/simple.css", "@import url(https://fonts.example/x);.theme{}")):  # fmt: skip
        (folder / "_static/revealjs/dist" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("sphinx_revealjs", None)


def test_a_deck_asks_for_nothing_from_outside(reveal):
    html = deck.deck(NOTEBOOK)
    assert "fonts.example" not in html and ".theme{}" in html and "var Reveal='<\\/script>'" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*\.(?:js|css)[^"]*"', html)
    assert "<title>Start here: what happens when a model answers?</title>" in html
    assert "slider at 20 MB/s" not in html and "widget-view" not in html, "live cells are left out"


def test_headings_start_slides_and_live_cells_are_left_out():
    def code(source, *outputs, tags=()):
        return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})

    widget = v4.new_output("execute_result", {deck.WIDGET: {"model_id": "1"}, "text/plain": "A slider."})
    lines = [v4.new_output("stream", text=text) for text in ("so ", "far")]
    shown = deck.slides([
        v4.new_markdown_cell("# One\n\ntext\n\n## Two\n\n### not three"), code("a", *lines), code("b", widget),
        code("watch()", tags=["live"]), v4.new_markdown_cell("x" * 900), code("c"), code(""),
    ])  # fmt: skip
    assert [cell.source[:6] for cell in shown] == ["# One\n", "## Two", "a", "b", "xxxxxx", "c"]
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in shown]
    assert kinds == ["slide", "slide", "-", "subslide", "subslide", "subslide"]
    assert [output.text for output in shown[2].outputs] == ["so far"]
    assert shown[3].outputs[0].data == {"text/plain": "A slider."}


def test_what_is_missing_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(deck.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(deck.DeckError, match="make slides"):
        deck.reveal()
    for content in ("not a notebook", ""):
        (tmp_path / "x.ipynb").write_text(content)
        with pytest.raises(FileError, match="is no notebook"):
            deck.deck(tmp_path / "x.ipynb")
    with pytest.raises(FileError, match="gone.ipynb can't be read: No such file"):
        deck.deck(tmp_path / "gone.ipynb")
