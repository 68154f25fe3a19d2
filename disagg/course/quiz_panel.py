"""The five questions at a chapter's end, answered by mouse, by keys (Tab leads on, Space chooses) or by a call."""

import textwrap
from functools import cached_property

import ipywidgets

from disagg.course.catalogue import NOT_KEPT, question_name, quizzes, remember
from disagg.course.checking import Verdict
from disagg.course.questions import Question
from disagg.show.widgets import COLUMNS, InCell, TextLines, no_math


class Quiz(InCell):
    """A panel of questions. `answer(1, "b")` answers without it, and print(quiz) shows the questions."""

    def __init__(self, chapter: str, questions: tuple[Question, ...]) -> None:
        self.chapter, self.questions = chapter, questions
        self._words = [TextLines() for _ in questions]

    def answer(self, number: int, letter: str) -> Verdict:
        """Is it this one, and why? A right answer is remembered for progress()."""
        if number not in range(1, len(self.questions) + 1):
            raise ValueError(f"question {number!r} is not in this quiz; there are 1 to {len(self.questions)}")
        question = self.questions[number - 1]
        if letter not in tuple(question.letters):
            raise ValueError(f"question {number} has no option {letter!r}; there are {', '.join(question.letters)}")
        right = letter == question.right
        kept = not right or remember(question_name(self.chapter, number))
        words = question.why(letter) + ("" if kept else NOT_KEPT)
        return Verdict(f"{self.chapter}, question {number}, {letter}", right, words)

    @cached_property
    def panel(self) -> ipywidgets.VBox:
        return ipywidgets.VBox([self._asked(number) for number in range(1, len(self.questions) + 1)])

    def _asked(self, number: int) -> ipywidgets.VBox:
        question, words = self.questions[number - 1], self._words[number - 1]
        lines = textwrap.wrap(no_math(f"{number}. {question.text}"), COLUMNS)  # a Label does not wrap
        options = [(no_math(said), letter) for said, letter in question.lettered()]
        look = dict(value=None, tooltip=question.text, layout=ipywidgets.Layout(width="max-content"))
        buttons = ipywidgets.RadioButtons(options=options, **look)
        buttons.observe(lambda change: words.say(repr(self.answer(number, change.new))), "value")
        return ipywidgets.VBox([*map(ipywidgets.Label, lines), buttons, words.box])

    def close(self) -> None:
        for words in self._words:
            words.close()
        if "panel" in self.__dict__:
            super().close()

    def __str__(self) -> str:
        lines = []
        for number, question in enumerate(self.questions, 1):
            lines += [f"{number}. {question.text}", *(f"   {said}" for said, _ in question.lettered())]
        return "\n".join(lines)

    def __repr__(self) -> str:
        where = f'quiz("{self.chapter}")'
        return (
            f"{len(self.questions)} questions on chapter {self.chapter}, each with a few answers to choose from. "
            f'Without buttons: print({where}) shows them, and {where}.answer(1, "a") tries an answer.'
        )


def quiz(chapter: str) -> Quiz:
    """The questions at the end of a chapter, as in quiz("03")."""
    if chapter not in quizzes():
        raise ValueError(f"there is no quiz {chapter!r}; there are {', '.join(quizzes())}")
    return Quiz(chapter, quizzes()[chapter])
