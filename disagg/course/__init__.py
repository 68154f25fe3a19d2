"""What the notebooks need beside the workbench itself: exercises that check themselves, and guesses before answers,
and questions at a chapter's end.

from disagg.course import check, hint, predict, progress, quiz
"""

from disagg.imported_later import imported_later

_WORDS = {
    "check": "disagg.course.checking",
    "hint": "disagg.course.checking",
    "quiz": "disagg.course.quiz_panel",
    "progress": "disagg.course.how_far",
    "predict": "disagg.course.guess",
}
__all__ = [*_WORDS]
__getattr__ = imported_later(__name__, _WORDS)  # `predict` and `quiz` need ipywidgets, which the bug lab does without
