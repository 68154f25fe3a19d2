"""What is solved of the course, as a picture."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from disagg.course.catalogue import chapters, exercises, question_name, quizzes, solved
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture

WIDTH, SMALL = 6.0, 0.3  # of a row's exercises together, and of a question


def progress(projector: bool = False) -> Picture:
    """A row a chapter: a box an exercise, a small one a question, full and ticked where it is solved."""
    done, size = solved(), draw.font_size(projector)
    figure = draw.figure(0.0375 * size * len(chapters()) + 0.3, projector)
    left = 0.17 * size / figure.get_figwidth()
    axes = figure.add_axes((left, 0.02, 0.99 - left, 0.96))
    axes.set_axis_off()
    for row, chapter in enumerate(chapters()):
        axes.text(-0.05, -row, chapter, ha="right", va="center", fontsize=size, color=INK)
        names = [task.name for task in exercises().values() if task.chapter == chapter]
        for column, name in enumerate(names):
            width = WIDTH / len(names)
            _box(axes, column * width, row, width, name, name in done, size)
        for number in range(1, len(quizzes()[chapter[:2]]) + 1):
            right = question_name(chapter[:2], number) in done
            _box(axes, WIDTH + (number - 0.5) * SMALL, row, SMALL, str(number), right, size)
    axes.set_xlim(0, WIDTH + 5.5 * SMALL)
    axes.set_ylim(0.5 - len(chapters()), 0.5)
    finding = _in_words(done)
    return Picture(figure, finding, finding)


def _in_words(done: set[str]) -> str:
    names = [name for name in exercises() if name in done]
    questions = sum(map(len, quizzes().values()))
    which = ": " + ", ".join(names) if names else ""
    answered = f"{len(done) - len(names)} of {questions} questions answered"
    return f"{len(names)} of {len(exercises())} exercises solved{which}; {answered}."


def _box(axes: Axes, x: float, row: int, width: float, name: str, done: bool, size: float) -> None:
    face = COLOURS["decode"] if done else "none"
    axes.add_patch(Rectangle((x + 0.02, -row - 0.3), width - 0.04, 0.6, facecolor=face, edgecolor=INK, linewidth=1))
    words = f"✓{'' if len(name) == 1 else ' '}{name}" if done else name
    axes.text(x + width / 2, -row, words, ha="center", va="center", fontsize=0.8 * size, color=INK)
