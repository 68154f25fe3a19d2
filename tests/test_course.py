"""The course's own machinery: every exercise knows its answer, its mistakes and three hints; every question knows why
each of its options is right or wrong; a guess stands beside the answer.
"""

import gc
import inspect
import json
import math
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pytest

from disagg import Config, Request, simulate
from disagg.course import check, checking, exercise, hint, predict, progress, quiz
from disagg.course.catalogue import FILE, chapters, exercises, question_name, quizzes
from disagg.course.exercise import Exercise
from disagg.course.piece_hints import HINTS
from disagg.trace.intervals import intersection, length, union

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
ALL = pytest.mark.parametrize("task", exercises().values(), ids=lambda task: task.name)
MISTAKES = [(task, *wrong) for task in exercises().values() for wrong in task.wrong]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Each test has a progress file of its own, and leaves no widget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checking, "_told", {})
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
@pytest.mark.parametrize("skeleton", [nothing, fails, lambda *arguments: ...])
def test_under_a_skeleton_stands_only_that_it_is_empty(task, skeleton):
    words = f"✗ {task.name}: not yet. {task.name} is still empty: it returns nothing yet"
    assert repr(check(task.name, skeleton)) == words
    assert repr(hint(task.name)).startswith("Try first"), "an empty function is no try"


@pytest.mark.parametrize(("task", "mistake", "words"), MISTAKES, ids=[task.name for task, *_ in MISTAKES])
def test_a_known_mistake_is_named_under_the_first_case_that_fails(task, mistake, words):
    verdict = check(task.name, mistake)
    assert not verdict.right and verdict.words.startswith(f"not yet. {task.name}(")
    assert verdict.words.endswith(f' is expected ({words}). hint("{task.name}") helps.')


@ALL
def test_mistakes_differ_from_each_other_and_from_the_answer(task):
    functions = [task.answer, *dict(task.wrong), *filter(None, [task.broken])]
    behaviours = [tuple(repr(exercise._call(f, a)) for a in task.cases) for f in functions]
    assert len(set(behaviours)) == len(behaviours), "two of them can't be told apart on these cases"
    words = [*task.hints, *(words for _, words in task.wrong)]
    assert len(set(words)) == len(words) and len(task.wrong) >= 2
    assert all(len(each.split()) >= 4 for each in words)


@ALL
def test_three_hints_come_after_a_wrong_answer_one_more_a_call(task):
    assert len(task.hints) == 3
    check(task.name, lambda *arguments: "wrong")
    for shown in (1, 2, 3, 3):
        lines = repr(hint(task.name)).splitlines()
        assert lines == [f"{number} of 3: {words}" for number, words in enumerate(task.hints[:shown], 1)]


@pytest.mark.parametrize("task", [task for task in exercises().values() if task.broken], ids=lambda task: task.name)
def test_a_repair_is_given_with_its_bug_and_says_no_more(task):
    code = task.task.partition("```python")[2].partition("```")[0]
    given = {}
    exec(code, given)
    found = task.verdict(given[task.name])
    assert not found.right and not found.tried and "does what it did" in found.words
    assert [exercise._call(task.broken, a) for a in task.cases] == [given[task.name](*a) for a in task.cases]


PUZZLES = ("computed_again", "chunk_for", "tokens_at", "longest_prompt", "exposed_uneven", "steps_until_full",
           "left_prefill", "best_bound", "readers_on")  # fmt: skip


@pytest.mark.parametrize("name", PUZZLES)
def test_the_text_of_a_puzzle_names_its_arguments(name):
    task = exercises()[name]
    for argument in inspect.signature(task.answer).parameters:
        assert f"`{argument}`" in task.task, argument


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
    """The chapter has the skeleton stored as not solved, the solution the tick."""
    name = task.name
    chapter, solution = NOTEBOOKS / f"{task.chapter}.ipynb", NOTEBOOKS / "solutions" / f"{task.chapter}.ipynb"
    for path, sign in ((chapter, f"✗ {name}: not yet."), (solution, f"✓ {name}: right")):
        said = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
        assert any(sign in repr(output.get("data", output.get("text"))) for output in said), path.name


# ---- check ----------------------------------------------------------------------------------------------------------


def total(numbers):
    return sum(numbers)


STEPS = ("Look at them.", "Add two.", "Add all.")
TASK = Exercise("total", "x", "Add them.", total, (([1, 2],), ([],)), ((len, "that counts them"),), STEPS)


@pytest.mark.parametrize("given", [None, 3, "total", ...])
def test_what_is_no_function_is_reported(given):
    words = f"give the function itself, as in check('total', total); got {given!r}"
    assert TASK.verdict(given) == (False, words, False)


def test_an_unknown_name_lists_the_known_ones():
    for ask in (lambda: check("tokens_ad", total), lambda: hint("tokens_ad")):
        with pytest.raises(ValueError, match="there is no exercise( or piece)? 'tokens_ad'; known: .*tokens_at"):
            ask()


def test_another_difference_shows_the_first_case():
    words = 'total([1, 2]) gives 4, and 3 is expected. hint("total") helps.'
    assert TASK.verdict(lambda numbers: sum(numbers) + 1) == (False, words, True)
    assert TASK.verdict(lambda numbers: numbers.clear() or "").words.startswith("total([1, 2]) gives , and 3")
    assert "gives an error (ZeroDivisionError: division by zero)" in TASK.verdict(lambda numbers: 1 / 0).words
    assert "TypeError" in TASK.verdict(lambda: 3).words


def test_a_function_that_is_empty_only_at_times_is_a_try():
    found = TASK.verdict(lambda numbers: None if numbers else 0)
    assert found.tried and found.words.startswith("total([1, 2]) gives None, and 3 is expected")


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
    none = f"0 of {len(exercises())} exercises solved; 0 of 7 pieces built; 0 of 45 questions answered."
    assert str(progress()) == none
    check(FIRST.name, nothing)
    assert not (folder / FILE).exists()
    check(FIRST.name, FIRST.answer)
    done = f"1 of {len(exercises())} exercises solved: {FIRST.name}; 0 of 7 pieces built; "
    assert str(progress()) == done + "0 of 45 questions answered."
    assert quiz("03").answer(1, quizzes()["03"][0].right).right
    assert str(progress()) == done + "1 of 45 questions answered."
    check(FIRST.name, nothing)
    assert "1 of" in str(progress()), "solved once is solved"
    assert [path.name for path in folder.iterdir()] == [FILE], "no draft is left"


@pytest.mark.parametrize("content", [b"", b"{", b"7", b'{"a": 1}', b"\xff\xfe", b'[1, null, ["tokens_at"], "gone"]',
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


def test_progress_picture_has_a_box_an_exercise():
    check(FIRST.name, FIRST.answer)
    axes = progress().figure.axes[0]
    texts = {text.get_text(): text for text in axes.texts}
    numbers = {str(number) for number in range(1, 6)}
    names = {f"✓ {FIRST.name}", *set(exercises()) - {FIRST.name}}
    assert set(texts) == names | numbers | set(chapters()) | set(HINTS) | {"my_disagg"}
    assert len(axes.patches) == len(exercises()) + 45 + len(HINTS)
    full = [box for box in axes.patches if box.get_facecolor()[3]]
    assert len(full) == 1
    figure = axes.figure
    figure.canvas.draw()
    for text in texts.values():
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width, f"{text.get_text()} is cut off"


# ---- quizzes --------------------------------------------------------------------------------------------------------

QUESTIONS = [
    pytest.param(question, id=question_name(chapter, number))
    for chapter, questions in quizzes().items()
    for number, question in enumerate(questions, 1)
]


def test_each_chapter_has_five_questions():
    assert list(quizzes()) == [f"0{number}" for number in range(9)]
    assert {len(questions) for questions in quizzes().values()} == {5}


@pytest.mark.parametrize("question", QUESTIONS)
def test_one_option_is_right_and_each_is_explained(question):
    assert 3 <= len(question.options) <= 4 and question.right in tuple(question.letters)
    texts = [text for option in question.options for text in option]
    assert len(set(texts)) == len(texts) and all(texts)
    assert all(len(said) <= 100 for said, _ in question.options), "a radio button does not wrap"
    assert all(len(why.split()) >= 5 and len(why) <= 400 for _, why in question.options)


def test_the_right_letter_can_not_be_guessed():
    letters = [question.right for questions in quizzes().values() for question in questions]
    assert all(letters.count(letter) >= 6 for letter in "abc") and letters.count("d") >= 3
    longest = sum(
        max(q.options, key=lambda option: len(option[0])) == q.options[q.letters.index(q.right)]
        for questions in quizzes().values()
        for q in questions
    )
    assert longest <= len(letters) // 2, "the longest option is too often the right one"


def test_an_answer_is_explained_and_a_right_one_remembered(folder):
    question = quizzes()["04"][1]
    for letter, (_, why) in zip(question.letters, question.options, strict=True):
        verdict = quiz("04").answer(2, letter)
        right = letter == question.right
        assert repr(verdict) == f"{'✓' if right else '✗'} 04, question 2, {letter}: {why}"
        assert (folder / FILE).exists() == right
        (folder / FILE).unlink(missing_ok=True)


def test_h_and_w_of_the_question_on_them_come_from_a_run():
    """98 % and 72 %, and the difference is that of the second hand-offs, as the answer says."""
    assert "H is 98 %, W 72 %" in quizzes()["04"][4].text
    lengths = (40, 90, 16, 120, 20, 75)
    crowd = [Request([1] * n, 48, arrival_s=0.15 * i) for i, n in enumerate(lengths)]
    config = Config.preset("paged", link=50e6, prefill_blocks=24, host_blocks=0, decode_blocks=20)
    run = simulate(config, crowd)
    found = run.overlap()
    assert (f"{found.hidden:.0%}", f"{found.wall:.0%}") == ("98%", "72%") and run.counts["recomputes"]
    passes = [interval for span in run.timeline.spans if span.kind == "prefill" for interval in span.computing]
    first = {span.requests[0]: span.transfer for span in reversed(run.timeline.spans) if span.kind == "copy"}
    copies = [s for s in run.timeline.spans if s.kind == "copy" and s.transfer == first[s.requests[0]]]
    moving = union((span.start_ns, span.end_ns) for span in copies)
    assert length(intersection(moving, passes)) == length(moving)


def test_an_answer_that_is_not_there_is_refused_in_words():
    with pytest.raises(ValueError, match="no quiz '3'; there are 00, 01"):
        quiz("3")
    for number in (0, 6, "1"):
        with pytest.raises(ValueError, match="there are 1 to 5"):
            quiz("03").answer(number, "a")
    for letter in ("e", "", "ab", 1):
        with pytest.raises(ValueError, match="there are a, b, c"):
            quiz("03").answer(1, letter)


def test_where_it_can_not_be_kept_a_right_answer_says_so(folder):
    (folder / FILE).mkdir()
    assert "can't be written here" in quiz("03").answer(1, quizzes()["03"][0].right).words


def test_the_panel_takes_an_answer_and_changes_it_and_its_text_gives_nothing_away():
    gc.collect()
    before = len(ipywidgets.widgets.widget._instances)
    panel, question = quiz("03"), quizzes()["03"][0]
    bundle = panel._repr_mimebundle_()
    sentence = bundle["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert not any(text in sentence for each in quizzes()["03"] for option in each.options for text in option)
    *_, buttons, words = panel.panel.children[0].children
    assert isinstance(buttons, ipywidgets.RadioButtons) and buttons.value is None, "keys work, and nothing is chosen"
    for letter in question.letters:
        buttons.value = letter
        said = " ".join(label.value for label in words.children)
        assert said.startswith(repr(panel.answer(1, letter))[:80])
    assert repr(panel) == sentence
    panel.close()
    panel.close()
    assert len(ipywidgets.widgets.widget._instances) == before


def test_printed_it_shows_all_questions_and_no_answer():
    printed = str(quiz("05"))
    for number, question in enumerate(quizzes()["05"], 1):
        assert f"{number}. {question.text}" in printed
        assert all(said in printed and why not in printed for said, why in question.options)


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
def test_guess_and_answer_are_two_bars_of_their_length(answer):
    guess = predict("How long is it?", 0, 100, "ms")
    axes = guess.compare(answer).figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50, answer]
    low, high = axes.get_xlim()
    assert low <= min(0, answer) and high > max(50, answer)
    assert [bar.get_hatch() for bar in axes.patches] == ["///", None], "told apart without colour"


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
