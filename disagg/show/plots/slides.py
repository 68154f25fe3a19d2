"""A slider over numbered pictures, with Back and Step, a choice of what to follow, and the picture's sentence."""

from collections.abc import Callable, Sequence

import ipywidgets

from disagg.plan.errors import EngineError
from disagg.show.plots.picture import Picture
from disagg.show.widgets import PicturePanel, close_widgets


class Slides(PicturePanel):
    """`draw(number, choice)` gives the picture; `show()` shows what the controls say, `step(by)` moves the slider."""

    def __init__(
        self, title: str, count: int, draw: Callable[[int, int], Picture], unit: str, choices: Sequence[str] = ()
    ) -> None:
        if count < 1:
            raise EngineError(f"{title}: no {unit} was recorded to step through")
        self.title, self._draw, self._unit = title, draw, unit
        self.slider = ipywidgets.IntSlider(
            0, 0, count - 1, description=unit, continuous_update=False, layout=ipywidgets.Layout(width="480px")
        )
        self.back = ipywidgets.Button(description="Back", tooltip=f"To the {unit} before", layout={"width": "76px"})
        self.forth = ipywidgets.Button(description="Step", tooltip=f"To the next {unit}", layout={"width": "76px"})
        options = [(name, index) for index, name in enumerate(choices or ("all",))]
        self.choice = ipywidgets.Dropdown(options=options, value=0, description="follow")
        self._arrange(title, self.slider, self.back, self.forth, *([self.choice] if choices else []))
        self.back.on_click(lambda button: self.step(-1))
        self.forth.on_click(lambda button: self.step(1))
        for control in (self.slider, self.choice):
            control.observe(lambda change: self.show(), "value")
        self.show()

    def step(self, by: int) -> None:
        """Moves the slider, which draws; at its ends it stays, by itself."""
        self.slider.value += by

    def show(self) -> None:
        self.back.disabled, self.forth.disabled = self.slider.value == 0, self.slider.value == self.slider.max
        self._show(lambda: self._draw(self.slider.value, self.choice.value))

    def close(self) -> None:
        close_widgets(self.choice)
        super().close()

    def __repr__(self) -> str:
        following = f", following {self.choice.label}" if self.choice.label != "all" else ""
        return f"{self.title}: slider at {self._unit} {self.slider.value}{following}; buttons Back and Step."
