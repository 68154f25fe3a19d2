"""What is solved of the course, as a picture."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from disagg.course.catalogue import chapters, exercises, piece_name, question_name, quizzes, solved
from disagg.course.piece_hints import HINTS
from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture

WIDTH, SMALL = 6.0, 0.3  # of a row's exercises together, and of a question


def progress() -> Picture:
    """A row a chapter: a box an exercise, a small one a question, full and ticked where it is solved; last, the pieces
    of my_disagg."""
    done, size = solved(), draw.FONT_PT
    rows = [*chapters(), "my_disagg"]
    figure = draw.blank(0.0375 * size * len(rows) + 0.3)
    left = 0.17 * size / figure.get_figwidth()
    axes = figure.add_axes((left, 0.02, 0.99 - left, 0.96))
    axes.set_axis_off()
    for row, chapter in enumerate(rows):
        axes.text(-0.05, -row, chapter, ha="right", va="center", fontsize=size, color=INK)
        names = [task.name for task in exercises().values() if task.chapter == chapter]
        _boxes(axes, row, [(name, name in done) for name in names], size)
        for number in range(1, len(quizzes().get(chapter[:2], ())) + 1):
            right = question_name(chapter[:2], number) in done
            _box(axes, WIDTH + (number - 0.5) * SMALL, row, SMALL, str(number), right, size)
    _boxes(axes, len(rows) - 1, [(name, piece_name(name) in done) for name in HINTS], size)
    axes.set_xlim(0, WIDTH + 5.5 * SMALL)
    axes.set_ylim(0.5 - len(rows), 0.5)
    finding = _in_words(done)
    return Picture(figure, finding, finding)


def _in_words(done: set[str]) -> str:
    names = [name for name in exercises() if name in done]
    pieces = [name for name in HINTS if piece_name(name) in done]
    questions = sum(map(len, quizzes().values()))
    which = ": " + ", ".join(names) if names else ""
    answered = f"{len(done) - len(names) - len(pieces)} of {questions} questions answered"
    built = f"{len(pieces)} of {len(HINTS)} pieces built"
    return f"{len(names)} of {len(exercises())} exercises solved{which}; {built}; {answered}."


def _boxes(axes: Axes, row: int, names: Sequence[tuple[str, bool]], size: float) -> None:
    for column, (name, done) in enumerate(names):
        _box(axes, column * WIDTH / len(names), row, WIDTH / len(names), name, done, size)


def _box(axes: Axes, x: float, row: int, width: float, name: str, done: bool, size: float) -> None:
    face = COLOURS["decode"] if done else "none"
    axes.add_patch(Rectangle((x + 0.02, -row - 0.3), width - 0.04, 0.6, facecolor=face, edgecolor=INK, linewidth=1))
    words = f"✓{'' if len(name) == 1 else ' '}{name}" if done else name
    axes.text(x + width / 2, -row, words, ha="center", va="center", fontsize=0.8 * size, color=INK)
