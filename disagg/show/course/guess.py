"""Predict first: a slider takes the guess before the cell runs, and the answer is drawn on top of the guess."""

import ipywidgets

from disagg.show.picture import COLOURS, INK, Picture, font_size, new_figure, plain_axes
from disagg.show.widgets import no_math


class Guess:
    """A question with a slider; `compare(answer)` shows guess and answer on one axis."""

    def __init__(self, question: str, low: float, high: float, unit: str):
        self.question, self.unit = question, unit
        whole = high - low >= 20
        kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        self.slider = kind(
            value=round((low + high) / 2) if whole else (low + high) / 2,
            min=low, max=high, step=1 if whole else (high - low) / 100, description="my guess",
            layout=ipywidgets.Layout(width="520px"),
        )  # fmt: skip
        self.panel = ipywidgets.VBox([ipywidgets.Label(no_math(f"{question} ({unit})")), self.slider])

    @property
    def value(self) -> float:
        return self.slider.value

    def compare(self, answer: float, *, times: bool = True, projector: bool = False) -> Picture:
        """Guess and answer as two bars. `times=False` keeps numbers out of the sentence, for checked cells."""
        size = font_size(projector)
        figure = new_figure(0.11 * size)
        axes = figure.add_axes((0.13, 0.42, 0.8, 0.5))
        plain_axes(axes, size)
        axes.barh([1], [self.value], height=0.55, color="none", edgecolor=INK, hatch="///")
        axes.barh([0], [answer], height=0.55, color=COLOURS["prefill"])
        for row, value in ((1, self.value), (0, answer)):
            axes.text(value, row, f"  {value:.3g}", va="center", fontsize=size, color=INK)
        axes.set_yticks([1, 0], ["guess", "answer"])
        axes.set_xlim(min(0, answer, self.value), 1.15 * max(self.value, answer, 1e-9))
        axes.set_xlabel(self.unit, fontsize=size, color=INK)
        words = f"{self.question} You guessed {self.value:.3g} {self.unit}; the answer is {answer:.3g} {self.unit}."
        return Picture(figure, words, words if times else f"{self.question} Guess and answer stand side by side.")

    def close(self):
        for widget in (self.slider, *self.panel.children, self.panel):
            widget.close()

    def __repr__(self) -> str:
        return f"{self.question} A slider from {self.slider.min:g} to {self.slider.max:g} {self.unit} takes your guess."

    def _repr_mimebundle_(self, include=None, exclude=None):
        """The slider, and a sentence that stands for it where no kernel runs."""
        return {**self.panel._repr_mimebundle_(), "text/plain": repr(self)}


def predict(question: str, low: float, high: float, unit: str) -> Guess:
    """Asks for a guess before the answer is measured."""
    return Guess(question, low, high, unit)
