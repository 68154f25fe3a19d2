"""What the notebooks need beside the workbench itself: exercises that check themselves, and guesses before answers.

from disagg.course import check, predict, progress
"""

from disagg.imported_later import imported_later

_WORDS = {"check": "disagg.course.exercise", "progress": "disagg.course.exercise", "predict": "disagg.course.guess"}
__all__ = [*_WORDS]
__getattr__ = imported_later(__name__, _WORDS)  # `predict` needs ipywidgets, which the bug lab does without
