"""The bite test finds its places by rule, changes one thing only, and nbval turns red about it."""

import nbformat
import pytest
from nbformat import v4

from benchmarks.robustness import notebook_mutation
from benchmarks.robustness.notebook_mutation import KINDS, mutations
from benchmarks.robustness.notebooks import bites

FIGURE = {"image/png": "aGVsbG8=", "text/plain": "Timeline of 12 spans."}


def cell(name, source, *outputs, tags=()):
    made = v4.new_code_cell(source, outputs=list(outputs), execution_count=1, metadata={"tags": list(tags)})
    made.id = name
    return made


def says(text):
    return v4.new_output("stream", text=text)


def book(*cells):
    return v4.new_notebook(cells=list(cells), metadata={"kernelspec": {"name": "python3", "display_name": "x"}})


def found(*cells) -> dict[str, tuple[str, str, str]]:
    return {m.kind: (m.cell, m.old, m.new) for m in mutations(book(*cells))}


def test_one_of_each_kind():
    cells = [
        cell("names", "LAYERS = 30\nother = f(4)"),
        cell("serve", "run = serve([Request('é', 8, arrival_s=0.5)])", says("8")),
        cell("guess", "guess = predict('How many?', 0, 100, 'ms')"),
        cell("draw", "draw(run)", v4.new_output("display_data", FIGURE)),
    ]
    assert found(*cells) == {
        "number": ("serve", "8", "9"),
        "constant": ("names", "30", "31"),
        "slider default": ("guess", "100", "50"),
        "sentence": ("draw", "12", "13"),
    }
    assert [m.kind for m in mutations(book(*cells))] == list(KINDS)


@pytest.mark.parametrize(("mutated", "source"), [("é = 'ü', 8", "é = 'ü', 9"), ("a = 'so '\nf(2)", "a = ' osx'\nf(2)")])
def test_only_the_place_changes(mutated, source):
    notebook = book(cell("a", mutated))
    mutation = next(m for m in mutations(notebook) if m.kind == "constant")
    assert mutation.applied(notebook).cells[0].source == source
    assert notebook.cells[0].source == mutated


def test_a_sentence_without_a_number_loses_a_word():
    data = {**FIGURE, "text/plain": "More copying is left."}
    notebook = book(cell("a", "draw()", says("x"), v4.new_output("display_data", data)))
    changed = mutations(notebook)[0].applied(notebook)
    assert changed.cells[0].outputs[1].data["text/plain"] == "eroMx copying is left."


def test_what_is_not_compared_or_sets_times_is_left_alone():
    assert found(cell("a", "f(3)\nx = 3", says("3"), tags=["nbval-ignore-output"])) == {}
    assert found(cell("a", "%time f(3)", says("3"))) == {}
    assert found(cell("a", "serve(Link.ratio(0.5), link=3)", says("x"))) == {}
    assert found(cell("a", "f(rows[3], True)", says("x"))) == {}


def test_what_decides_comes_before_what_does_not():
    cells = cell("a", "print(round(x, 3), 4)", says("x")), cell("b", "Request(text, max_new_tokens=6)", says("x"))
    assert found(*cells)["number"] == ("b", "6", "7")
    assert found(cells[0], cell("b", "Request(text, max_new_tokens=6)"))["number"][0] == "a", "b shows nothing"
    tokens = found(cell("b", "Request([7] * 128, 6)", says("x")))["number"]
    assert tokens == ("b", "128", "129"), "which token is no matter"


@pytest.mark.parametrize(("source", "old", "new"), [
    ("LinkSlider(run, value=20e6)", "20e6", "10000000.0"), ("predict('?', 0, 1, 'x')", "1", "0.5"),
    ("ipywidgets.IntSlider(value=8)", "8", "4"),
])  # fmt: skip
def test_where_a_slider_starts(source, old, new):
    assert found(cell("a", source))["slider default"] == ("a", old, new)


def test_nbval_turns_red_about_each_but_not_about_invisible_changes(tmp_path):
    """A real kernel; the notebook shows its number, its constant and a figure's sentence."""
    figure = 'display({"image/png": "aGVsbG8=", "text/plain": f"Timeline of {n} spans."}, raw=True)'
    cells = [
        cell("a", "n = 12\nhidden = 5"),
        cell("b", "print(max(7, 3) + n)", says("19\n")),
        cell("c", figure, v4.new_output("display_data", FIGURE)),
    ]
    for number, made in enumerate(cells, 1):
        made.execution_count = number
    path = tmp_path / "lesson.ipynb"
    nbformat.write(book(*cells), path)
    before = path.read_bytes()
    number, constant, sentence = mutations(nbformat.read(path, 4))
    assert bites(path, number) and bites(path, sentence)
    unseen = notebook_mutation.Mutation("constant", "a", constant.start + 12, constant.start + 13, "5", "6")
    assert not bites(path, unseen), "the control: green, because nothing shows it"
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
