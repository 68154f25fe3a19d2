"""The gate for stored notebooks: this repository's notebooks pass it, and each of its rules bites."""

import socket
from pathlib import Path

import nbformat
import notebook_gate
import pytest
from nbformat import v4
from notebook_gate import normalise, problems

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


def test_stored_error(check):
    assert "stored error ValueError" in check(cell("f()", v4.new_output("error", ename="ValueError", evalue="no")))


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


def test_kernel_name(check):
    kernel = {"display_name": "my env", "language": "python", "name": "my-env"}
    assert "'my-env', not 'python3'" in check(GOOD, kernelspec=kernel)


def test_widget_state(check):
    assert "widget state" in check(GOOD, widgets={"application/vnd.jupyter.widget-state+json": {}})


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


def test_stripped_notebook(check):
    assert "no stored output that nbval would compare" in check(cell("x = 1"))
    assert "no stored output that nbval would compare" in check()


def test_size(check):
    assert "the limit is 500,000" in check(cell("f()", says("x" * 500_000)))


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
