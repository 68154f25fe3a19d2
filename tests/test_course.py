"""The course's own machinery: every exercise knows its answer and its mistakes; a guess stands beside the answer."""

import gc
import json
import math
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pytest

from disagg.course import check, exercise, predict, progress
from disagg.course.exercise import FILE, Exercise, exercises

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
ALL = pytest.mark.parametrize("task", exercises().values(), ids=lambda task: task.name)
MISTAKES = [(task, *wrong) for task in exercises().values() for wrong in task.wrong]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test has a progress file of its own, and leaves no widget."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ipywidgets.Widget.close_all()


def nothing(*arguments):
    """The skeleton as it stands in a notebook: a body of `...`."""
    ...


def fails(*arguments):
    raise NotImplementedError("write me")


# ---- every exercise -------------------------------------------------------------------------------------------------


@ALL
def test_the_reference_passes(task):
    verdict = check(task.name, task.answer)
    assert verdict.right and repr(verdict) == f"✓ {task.name}: right, on {len(task.cases)} cases"


@ALL
@pytest.mark.parametrize("skeleton", [nothing, fails])
def test_a_skeleton_fails_with_a_useful_hint(task, skeleton):
    verdict = check(task.name, skeleton)
    assert not verdict.right and repr(verdict).startswith(f"✗ {task.name}: not yet. {task.name}(")
    assert " is expected. " in verdict.words and verdict.words.endswith(task.hint)
    assert {nothing: "gives None", fails: "an error (NotImplementedError: write me)"}[skeleton] in verdict.words


@pytest.mark.parametrize(("task", "mistake", "hint"), MISTAKES, ids=[task.name for task, *_ in MISTAKES])
def test_a_known_mistake_gets_its_own_hint(task, mistake, hint):
    assert task.verdict(mistake) == (False, hint)


@ALL
def test_mistakes_differ_from_each_other_and_from_the_answer(task):
    behaviours = [tuple(repr(exercise._call(f, a)) for a in task.cases) for f in (task.answer, *dict(task.wrong))]
    assert len(set(behaviours)) == len(behaviours), "two of them can't be told apart on these cases"
    hints = [task.hint, *(hint for _, hint in task.wrong)]
    assert len(set(hints)) == len(hints) >= 3
    assert all(len(hint.split()) >= 4 for hint in hints)


@ALL
def test_an_exercise_says_what_it_asks(task):
    assert task.name.isidentifier() and len(task.task.split()) >= 4 and len(task.cases) >= 2


@ALL
def test_checking_leaves_the_cases_as_they_are(task):
    before = repr(task.cases)
    task.verdict(lambda *arguments: [argument.clear() for argument in arguments if isinstance(argument, list)])
    assert repr(task.cases) == before


@ALL
def test_chapter_and_solution_check_it(task):
    """The chapter has the skeleton and its hint stored, the solution the tick."""
    chapter, solution = NOTEBOOKS / f"{task.chapter}.ipynb", NOTEBOOKS / "solutions" / f"{task.chapter}.ipynb"
    if not chapter.exists():
        pytest.skip(f"{chapter.name} is not written yet")
    for path, sign in ((chapter, f"✗ {task.name}: not yet."), (solution, f"✓ {task.name}: right")):
        said = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        assert any(sign in repr(output.get("data", output.get("text"))) for output in said), path.name


# ---- check ----------------------------------------------------------------------------------------------------------


def total(numbers):
    return sum(numbers)


TASK = Exercise("total", "x", "Add them.", total, (([1, 2],), ([],)), ((len, "that counts them"),), "Add all.")


@pytest.mark.parametrize("given", [None, 3, "total", ...])
def test_what_is_no_function_is_reported(given):
    assert TASK.verdict(given) == (False, f"give the function itself, as in check('total', total); got {given!r}")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="there is no exercise 'kv_byte'; known: .*kv_bytes"):
        check("kv_byte", total)


def test_another_difference_shows_the_first_case_and_the_hint():
    words = "total([1, 2]) gives 4, and 3 is expected. Add all."
    assert TASK.verdict(lambda numbers: sum(numbers) + 1) == (False, words)
    assert TASK.verdict(lambda numbers: numbers.clear())[1].startswith("total([1, 2]) gives None, and 3")
    assert "gives an error (ZeroDivisionError: division by zero)" in TASK.verdict(lambda numbers: 1 / 0)[1]
    assert "TypeError" in TASK.verdict(lambda: 3)[1]


def test_an_interrupt_is_an_interrupt():
    def endless(numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TASK.verdict(endless)


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        (0.1 + 0.2, 0.3, True), (3, 3.0, True), (np.int64(3), 3, True), (np.float64(0.5), 0.5, True), (3.001, 3, False),
        ([1, 2], (1, 2), True), ([1], [1, 2], False), ([1, [2.0]], (1, (2,)), True), (None, 3, False), ("3", 3, False),
        (math.nan, 1.0, False), (math.inf, math.inf, True), (True, True, True), (np.True_, True, True),
        (None, None, True), ({"a": 0.1 + 0.2}, {"a": 0.3}, True), ({"b": 1}, {"a": 1}, False),
        (np.array([1, 2]), "a", False), (np.array([1, 2]), True, False), (np.array([1, 2]), [1, 2], False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(found, wanted, same):
    assert exercise._same(found, wanted) is same


# ---- progress -------------------------------------------------------------------------------------------------------

FIRST = next(iter(exercises().values()))


def test_progress_grows_by_what_is_right(folder):
    assert str(progress()) == f"0 of {len(exercises())} exercises solved."
    check(FIRST.name, nothing)
    assert not (folder / FILE).exists()
    check(FIRST.name, FIRST.answer)
    assert str(progress()) == f"1 of {len(exercises())} exercises solved: {FIRST.name}."
    check(FIRST.name, nothing)
    assert "1 of" in str(progress()), "solved once is solved"
    assert [path.name for path in folder.iterdir()] == [FILE], "no draft is left"


@pytest.mark.parametrize("content", [b"", b"{", b"7", b'{"a": 1}', b"\xff\xfe", b'[1, null, ["kv_bytes"], "gone"]',
                                     b"[" * 100_000])  # fmt: skip
def test_a_file_that_cannot_be_read_counts_as_none(folder, content):
    (folder / FILE).write_bytes(content)
    assert str(progress()).startswith("0 of")
    check(FIRST.name, FIRST.answer)
    assert json.loads((folder / FILE).read_text()) == [FIRST.name]


def test_a_folder_that_cannot_be_written_is_reported(folder):
    (folder / FILE).mkdir()
    verdict = check(FIRST.name, FIRST.answer)
    assert verdict.right and verdict.words.endswith("can't be written here, so progress() will not know of it")


@pytest.mark.parametrize("projector", [False, True])
def test_progress_picture_has_a_box_an_exercise(projector):
    check(FIRST.name, FIRST.answer)
    axes = progress(projector).figure.axes[0]
    texts = {text.get_text(): text for text in axes.texts}
    names = {f"✓ {FIRST.name}", *set(exercises()) - {FIRST.name}}
    assert set(texts) == names | {task.chapter for task in exercises().values()}
    assert len(axes.patches) == len(exercises())
    full = [box for box in axes.patches if box.get_facecolor()[3]]
    assert len(full) == 1
    figure = axes.figure
    figure.canvas.draw()
    for text in texts.values():
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width, f"{text.get_text()} is cut off"


# ---- guesses --------------------------------------------------------------------------------------------------------


def test_a_guess_is_where_the_slider_is():
    guess = predict("How much of the copy hides?", 0, 100, "%")
    assert guess.value == 50 and isinstance(guess.slider, ipywidgets.IntSlider)
    guess.slider.value = 80
    assert guess.value == 80
    picture = guess.compare(96.7)
    assert str(picture) == "How much of the copy hides? You guessed 80 %; the answer is 96.7 %."


def test_a_small_range_has_small_steps_and_large_numbers_are_written_out():
    small, large = predict("Which fraction?", 0, 1, "of it"), predict("How many bytes?", 0, 100_000, "bytes")
    assert small.value == 0.5 and small.slider.step == pytest.approx(0.01)
    assert "You guessed 50,000 bytes; the answer is 46,080 bytes." in str(large.compare(46_080))


@pytest.mark.parametrize("answer", [0, 3.5, -20, 400])
@pytest.mark.parametrize("projector", [False, True])
def test_guess_and_answer_are_two_bars_of_their_length(answer, projector):
    guess = predict("How long is it?", 0, 100, "ms")
    axes = guess.compare(answer, projector=projector).figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50, answer]
    low, high = axes.get_xlim()
    assert low <= min(0, answer) and high > max(50, answer)
    assert [bar.get_hatch() for bar in axes.patches] == ["///", None], "told apart without colour"


def test_times_stay_out_of_a_checked_sentence():
    guess = predict("How long is it?", 0, 100, "ms")
    picture = guess.compare(12.3, times=False)
    assert picture.finding == "How long is it? Guess and answer stand side by side."
    assert "12.3 ms" in picture.alt


def test_the_text_of_a_guess_never_changes():
    guess = predict("How long is it?", 0, 100, "ms")
    sentence = "How long is it? A slider from 0 to 100 ms takes your guess."
    bundle = guess._repr_mimebundle_()
    assert bundle["text/plain"] == sentence and "application/vnd.jupyter.widget-view+json" in bundle
    guess.slider.value = 3
    assert repr(guess) == sentence


def test_a_long_question_is_not_cut():
    guess = predict("Why is it so? " * 20, 0, 1, "of it")
    labels = [child.value for child in guess.panel.children[:-1]]
    assert len(labels) == 3 and " ".join(labels).split() == ("Why is it so? " * 20 + "(of it)").split()


def test_a_guess_needs_room():
    with pytest.raises(ValueError, match="low is 3 and high is 3"):
        predict("How many?", 3, 3, "")


def test_close_leaves_no_widget():
    gc.collect()
    before = len(ipywidgets.widgets.widget._instances)
    guess = predict("How long is it?", 0, 100, "ms")
    guess.close()
    guess.close()
    assert len(ipywidgets.widgets.widget._instances) == before
