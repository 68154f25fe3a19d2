"""What the notebooks need beside the workbench itself: exercises that check themselves, and guesses before answers.

from disagg.show.course import check, predict, progress
"""

from disagg.show.course.exercise import check, progress
from disagg.show.course.guess import predict

__all__ = ["check", "predict", "progress"]
