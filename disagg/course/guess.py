"""Predict first: a slider takes the guess before the cell runs, and the answer is drawn on top of the guess."""

import textwrap

import ipywidgets

from disagg.show.plots import draw
from disagg.show.plots.palette import COLOURS, INK
from disagg.show.plots.picture import Picture
from disagg.show.widgets import COLUMNS, InCell, no_math


class Guess(InCell):
    """A question with a slider; `compare(answer)` shows guess and answer on one axis."""

    def __init__(self, question: str, low: float, high: float, unit: str) -> None:
        if not low < high:
            raise ValueError(f"a guess needs room: low is {low} and high is {high}")
        self.question, self.unit = question, unit
        whole = high - low >= 20
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        middle, step = (round((low + high) / 2), 1) if whole else ((low + high) / 2, (high - low) / 100)
        look = dict(description="my guess", layout=ipywidgets.Layout(width="520px"))
        self.slider = kind(value=middle, min=low, max=high, step=step, **look)
        lines = textwrap.wrap(no_math(f"{question} ({unit})"), COLUMNS)  # a Label does not wrap
        self.panel = ipywidgets.VBox([*map(ipywidgets.Label, lines), self.slider])

    @property
    def value(self) -> float:
        return self.slider.value

    def compare(self, answer: float) -> Picture:
        """Guess and answer as two bars."""
        size = draw.FONT_PT
        figure = draw.blank(0.11 * size)
        left = 0.0975 * size / figure.get_figwidth()
        axes = figure.add_axes((left, 0.42, 0.93 - left, 0.5))
        draw.plain(axes, size)
        axes.barh([1], [self.value], height=0.55, color="none", edgecolor=INK, hatch="///")
        axes.barh([0], [answer], height=0.55, color=COLOURS["prefill"])
        for row, value in ((1, self.value), (0, answer)):
            axes.text(max(0, value), row, f"  {_plain(value)}", va="center", fontsize=size, color=INK)
        axes.set_yticks([1, 0], ["guess", "answer"])
        axes.set_xlim(min(0, answer, self.value), 1.15 * max(self.value, answer, 1e-9))
        axes.locator_params(axis="x", integer=isinstance(self.slider, ipywidgets.IntSlider))
        draw.names(axes, size, self.unit, parse_math=False)
        guess, right = f"{_plain(self.value)} {self.unit}", f"{_plain(answer)} {self.unit}"
        words = f"{self.question} You guessed {guess}; the answer is {right}."
        return Picture(figure, words, words)

    def __repr__(self) -> str:
        return f"{self.question} A slider from {self.slider.min:g} to {self.slider.max:g} {self.unit} takes your guess."


def predict(question: str, low: float, high: float, unit: str) -> Guess:
    """Asks for a guess before the answer is measured."""
    return Guess(question, low, high, unit)


def _plain(value: float) -> str:
    """Three digits, and never an exponent for a large number."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
