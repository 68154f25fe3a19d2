"""What the notebooks need beside the workbench itself: exercises that check themselves, and guesses before answers.

from disagg.course import check, predict, progress
"""

from disagg.course.exercise import check, progress
from disagg.course.guess import predict

__all__ = ["check", "predict", "progress"]
