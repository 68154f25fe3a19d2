"""The gate for stored notebooks and the bite test: each rule bites, one change at a time, and nbval turns red."""

import socket
from pathlib import Path

import nbformat
import notebook_gate
import pytest
from nbformat import v4
from notebook_gate import normalise, problems

from benchmarks.robustness import notebook_mutation
from benchmarks.robustness.notebook_mutation import KINDS, mutations
from benchmarks.robustness.notebooks import bites

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").rglob("*.ipynb"))
SENTENCE = "Timeline of 12 spans, end 15.0 ms"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if ".ipynb_checkpoints" not in p.parts], ids=lambda p: p.name)
def test_notebook_may_be_stored(path):
    assert problems(path) == []


def picture(text=SENTENCE, alt=SENTENCE):
    metadata = {"image/png": {"alt": alt}} if alt else {}
    return v4.new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": text}, metadata=metadata)


def cell(source, *outputs, count=1, tags=()):
    made = v4.new_code_cell(source, outputs=list(outputs), execution_count=count, metadata={"tags": list(tags)})
    made.id = f"cell-{count}"
    return made


def says(text):
    return v4.new_output("stream", text=text)


@pytest.fixture
def check(tmp_path):
    """Store the cells as a notebook and return what the gate says, as one text."""

    def check(*cells, **metadata):
        notebook = v4.new_notebook(cells=list(cells), metadata=notebook_gate.METADATA | metadata)
        path = tmp_path / "lesson.ipynb"
        nbformat.write(notebook, path)
        return "\n".join(problems(path))

    return check


GOOD = cell("print('blocks: 12')", says("blocks: 12\n"))


def test_good_notebook_passes(check):
    empty = v4.new_code_cell("")
    shown = cell("show(timeline)", picture(), count=2)
    failing = cell("1 / 0", v4.new_output("error", ename="E", evalue="e"), count=3, tags=["raises-exception"])
    local = cell("print(url)", says("JupyterLab is on http://127.0.0.1:8888/lab, flags 0x1F, torch 2.13.0\n"), count=4)
    assert check(GOOD, empty, v4.new_markdown_cell("see /home/me"), shown, failing, local) == ""


@pytest.mark.parametrize("counts", [(2, 1), (1, 3), (1, None), (2, 3)])
def test_execution_counts(check, counts):
    cells = [cell("x = 1", says("a"), count=count) for count in (1, 2)]
    for made, count in zip(cells, counts, strict=True):
        made.execution_count = count
    assert "execution counts" in check(*cells)


@pytest.mark.parametrize("text", ["<Figure size 640x480 with 1 Axes>", "", "VBox(children=(a, b, c, d))", "Timeline"])
def test_picture_needs_a_sentence(check, text):
    assert "which is no sentence" in check(cell("show()", picture(text=text)))


@pytest.mark.parametrize("alt", [None, "", "image", "<Figure size 640x480 with 1 Axes>"])
def test_picture_needs_alt_text(check, alt):
    assert "without alt text" in check(cell("show()", picture(alt=alt)))


@pytest.mark.parametrize("tag", ["<img src='data:image/png;base64,aGVsbG8='>", "<IMG alt='' src='x.png'>"])
def test_html_picture_needs_alt_text(check, tag):
    html = v4.new_output("display_data", {"text/html": tag, "text/plain": SENTENCE})
    assert "an <img> in HTML without alt text" in check(cell("show()", html))


LEAKS = {
    "<disagg.Engine at 0x7f00deadbeef>": "memory address",
    "saved to /home/anna/out.json": "machine path",
    "saved to /tmp/x1/out.json": "machine path",
    "saved to C:\\Users": "machine path",
    "File ~/course/disagg/engine.py:12": "machine path",
    "\x1b[32m/root\x1b[0m/lab": "machine path",
    "lib/python3.11/site-packages/torch": "machine path",
    "listening on 0.0.0.0:8888": "IP address",
    "rank 0 at 10.1.2.3.": "IP address",
    "http://gpu-box:8000/metrics": "host name",
    "anna@gpu-box:~/lab": "host name",
    "gpu-box.local is up": "host name",
    "running on lab-17": "host name",
}


@pytest.mark.parametrize("text", LEAKS)
@pytest.mark.parametrize("kind", ["stream", "html", "error", "alt"])
def test_leaks(check, monkeypatch, text, kind):
    monkeypatch.setattr(socket, "gethostname", lambda: "lab-17")
    output, tags = {
        "stream": lambda: (says(text), []),
        "html": lambda: (v4.new_output("execute_result", {"text/html": f"<b>{text}</b>", "text/plain": "ok"}), []),
        "error": lambda: (v4.new_output("error", ename="E", evalue="", traceback=[text]), ["raises-exception"]),
        "alt": lambda: (picture(alt=f"A timeline of spans, {text}"), []),
    }[kind]()
    assert LEAKS[text] in check(cell("f()", output, tags=tags))


def test_bytes_of_pictures_are_not_read_as_text(check):
    html = f'<img alt="{SENTENCE}" src="data:image/png;base64,iVBO/tmp/ab+/root/x0x7f00deadbeef=">'
    assert check(cell("show()", v4.new_output("display_data", {"text/html": html, "text/plain": SENTENCE}))) == ""


FAULTS = {
    "stored error ValueError": ([cell("f()", v4.new_output("error", ename="ValueError", evalue="no"))], {}),
    "'my-env', not 'python3'": (
        [GOOD],
        {"kernelspec": {"display_name": "my env", "language": "python", "name": "my-env"}},
    ),
    "widget state": ([GOOD], {"widgets": {"application/vnd.jupyter.widget-state+json": {}}}),
    "no stored output that nbval would compare": ([cell("x = 1")], {}),
    "the limit is 500,000": ([cell("f()", says("x" * 500_000))], {}),
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_may_not_be_stored_is_named(check, words):
    cells, metadata = FAULTS[words]
    assert words in check(*cells, **metadata)


@pytest.mark.parametrize("tag", ["nbval-ignore-output", "nbval-skip"])
def test_ignored_cells_are_listed(check, monkeypatch, tag):
    ignored = cell("t()", says("took 3 s"), count=2, tags=[tag])
    assert "nbval ignores cells ['cell-2']" in check(GOOD, ignored)
    monkeypatch.setitem(notebook_gate.IGNORED_CELLS, "lesson.ipynb", {"cell-2"})
    assert check(GOOD, ignored) == ""
    assert "IGNORED_CELLS lists ['cell-2']" in check(GOOD)


@pytest.mark.parametrize("comment", ["# NBVAL_IGNORE_OUTPUT", "#NBVAL_SKIP", "# PYTEST_VALIDATE_IGNORE_OUTPUT"])
def test_ignoring_by_comment_counts_too(check, comment):
    assert "nbval ignores cells ['cell-2']" in check(GOOD, cell(f"{comment}\nt()", says("took 3 s"), count=2))


def test_solutions_have_a_list_of_their_own(check, monkeypatch, tmp_path):
    ignored = cell("t()", says("took 3 s"), count=2, tags=["nbval-ignore-output"])
    monkeypatch.setitem(notebook_gate.IGNORED_CELLS, "lesson.ipynb", {"cell-2"})
    assert check(GOOD, ignored) == ""
    solution = tmp_path / "solutions" / "lesson.ipynb"
    solution.parent.mkdir()
    (tmp_path / "lesson.ipynb").rename(solution)
    assert "nbval ignores cells ['cell-2']" in "\n".join(problems(solution))
    monkeypatch.setitem(notebook_gate.IGNORED_CELLS, "solutions/lesson.ipynb", {"cell-2"})
    assert problems(solution) == []


def test_listed_notebooks_exist():
    assert set(notebook_gate.IGNORED_CELLS) <= {notebook_gate.listed_as(path) for path in NOTEBOOKS}


@pytest.mark.parametrize("source", ["print('x')", "x = 1\ndisplay(x)"])
def test_stripped_cell(check, source):
    assert "no stored output" in check(GOOD, cell(source, count=2))


@pytest.mark.parametrize("source", ["def f():\n    print('x')", "%time x", "engine.close()", "print('x', file=log)"])
def test_silent_cell_may_be_silent(check, source):
    assert check(GOOD, cell(source, count=2)) == ""


def test_an_empty_notebook(check):
    assert "no stored output that nbval would compare" in check()


def test_cell_ids(tmp_path):
    path = tmp_path / "old.ipynb"
    path.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}')
    assert "has no cell ids" in problems(path)[0]
    path.write_text("not a notebook")
    assert "not a valid notebook" in problems(path)[0]


def test_normalise(tmp_path):
    made = cell("print('x')", picture(), tags=["gpu"])
    made.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    path = tmp_path / "lesson.ipynb"
    nbformat.write(v4.new_notebook(cells=[made], metadata={"widgets": {}}), path)
    normalise(path)
    stored = nbformat.read(path, as_version=4)
    assert stored.metadata == notebook_gate.METADATA
    assert stored.cells[0].metadata == {"tags": ["gpu"]}
    assert stored.cells[0].outputs == made.outputs
    before = path.read_bytes()
    normalise(path)
    assert path.read_bytes() == before


FIGURE = {"image/png": "aGVsbG8=", "text/plain": "Timeline of 12 spans."}


def named(name, source, *outputs, tags=()):
    made = cell(source, *outputs, tags=tags)
    made.id = name
    return made


def book(*cells):
    return v4.new_notebook(cells=list(cells), metadata={"kernelspec": {"name": "python3", "display_name": "x"}})


def found(*cells) -> dict[str, tuple[str, str, str]]:
    return {m.kind: (m.cell, m.old, m.new) for m in mutations(book(*cells))}


def test_one_of_each_kind():
    cells = [
        named("names", "LAYERS = 30\nother = f(4)"),
        named("serve", "run = serve([Request('é', 8, arrival_s=0.5)])", says("8")),
        named("guess", "guess = predict('How many?', 0, 100, 'ms')"),
        named("draw", "draw(run)", v4.new_output("display_data", FIGURE)),
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
    notebook = book(named("a", mutated))
    mutation = next(m for m in mutations(notebook) if m.kind == "constant")
    assert mutation.applied(notebook).cells[0].source == source
    assert notebook.cells[0].source == mutated


def test_a_sentence_without_a_number_loses_a_word():
    data = {**FIGURE, "text/plain": "More copying is left."}
    notebook = book(named("a", "draw()", says("x"), v4.new_output("display_data", data)))
    changed = mutations(notebook)[0].applied(notebook)
    assert changed.cells[0].outputs[1].data["text/plain"] == "eroMx copying is left."


def test_what_is_not_compared_or_sets_times_is_left_alone():
    assert found(named("a", "f(3)\nx = 3", says("3"), tags=["nbval-ignore-output"])) == {}
    assert found(named("a", "%time f(3)", says("3"))) == {}
    assert found(named("a", "serve(Link.ratio(0.5), link=3)", says("x"))) == {}
    assert found(named("a", "f(rows[3], True)", says("x"))) == {}


def test_what_decides_comes_before_what_does_not():
    cells = named("a", "print(round(x, 3), 4)", says("x")), named("b", "Request(text, max_new_tokens=6)", says("x"))
    assert found(*cells)["number"] == ("b", "6", "7")
    assert found(cells[0], named("b", "Request(text, max_new_tokens=6)"))["number"][0] == "a", "b shows nothing"
    tokens = found(named("b", "Request([7] * 128, 6)", says("x")))["number"]
    assert tokens == ("b", "128", "129"), "which token is no matter"


@pytest.mark.parametrize(("source", "old", "new"), [
    ("predict('?', 0, 1, 'x')", "1", "0.5"),
    ("ipywidgets.IntSlider(value=8)", "8", "4"),
])  # fmt: skip
def test_where_a_slider_starts(source, old, new):
    assert found(named("a", source))["slider default"] == ("a", old, new)


def test_nbval_turns_red_about_each_and_not_about_what_nobody_sees(tmp_path):
    """A real kernel; the notebook shows its number, its constant and a figure's sentence."""
    figure = 'display({"image/png": "aGVsbG8=", "text/plain": f"Timeline of {n} spans."}, raw=True)'
    cells = [
        named("a", "n = 12\nhidden = 5"),
        named("b", "print(max(7, 3) + n)", says("19\n")),
        named("c", figure, v4.new_output("display_data", FIGURE)),
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
