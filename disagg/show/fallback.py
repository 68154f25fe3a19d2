"""An instrument where anywidget is missing: sliders, a sentence with the facts, and the views as pictures."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Protocol

import ipywidgets

from disagg.show.plots.curve_plot import curve_picture
from disagg.show.plots.flow_plot import flow_picture
from disagg.show.plots.picture import Picture
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.show.widgets import no_math, row
from disagg.trace.results import Run

SERVE = "Serve it for real"
STOP = "Stop serving"
NO_CANVAS = "Drawn as pictures, since anywidget is not installed (pip install anywidget): nothing here plays or steps."


class Turned(Protocol):
    """The instrument behind the sliders."""

    shown: Run

    def set(self, **changes: Any) -> None: ...
    def serve(self) -> None: ...
    def stop(self) -> None: ...


class Pictures:
    """The same without anywidget: sliders, a sentence with the facts, and the views as pictures."""

    def __init__(self, instrument: Turned, spec: dict[str, Any], said: dict[str, Any]) -> None:
        self._instrument = instrument
        wide = ipywidgets.Layout(width="290px")
        self.controls: dict[str, ipywidgets.Widget] = {}
        for one in spec["controls"]:
            options = [(text, value) for value, text in one["options"]] if "options" in one else one["values"]
            kind = ipywidgets.Dropdown if "options" in one else ipywidgets.SelectionSlider
            options = [option if isinstance(option, tuple) else (f"{option:g}", option) for option in options]
            control = kind(options=options, index=one["at"], description=one["label"], layout=wide)
            control.style.description_width = "initial"
            control.observe(lambda change: self._turned(), "value")
            self.controls[one["name"]] = control
        self.words, self.note = ipywidgets.HTML(), ipywidgets.HTML(f"<small>{escape(NO_CANVAS)}</small>")
        wide_image = ipywidgets.Layout(width="900px")
        self.images = {view: ipywidgets.Image(format="png", layout=wide_image) for view in spec["views"]}
        buttons = [ipywidgets.Button(description=name) for name in ("Reset", *spec.get("acts", ()))]
        buttons[0].on_click(lambda button: self._reset([one["at"] for one in spec["controls"]]))
        self.actor = buttons[-1] if "acts" in spec else None
        if self.actor is not None:
            self.actor.on_click(lambda button: self._guarded(self._act))
        title = ipywidgets.Label(no_math(spec["title"]))
        self.panel = ipywidgets.VBox(
            [title, row(*self.controls.values(), *buttons), self.words, *self.images.values(), self.note]
        )
        self.show(said)

    def _reset(self, places: list[int]) -> None:
        for control, place in zip(self.controls.values(), places, strict=True):
            control.index = place

    def _act(self) -> None:
        assert self.actor is not None, "it was pressed"
        self._instrument.serve() if self.actor.description == SERVE else self._instrument.stop()

    def _turned(self) -> None:
        self._guarded(lambda: self._instrument.set(**{name: control.value for name, control in self.controls.items()}))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # nothing else shows a callback's exception
            self.refuse(str(error))

    def show(self, said: dict[str, Any], columns: Sequence[bytes] = (), asked: int = 0) -> None:
        facts = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in said["facts"])
        rows = [f"{name}: {before} → {after}" for name, before, after in said.get("rows", ()) if before != after]
        lines = [*said.get("words", ()), *rows, *said.get("texts", ())]
        self.words.value = "<br>".join((escape(said["sentence"]), facts, *map(escape, lines)))
        if self.actor is not None:
            self.actor.description = said.get("act", SERVE)
        run = self._instrument.shown
        draws: dict[str, Callable[[], Picture]] = {
            "flow": lambda: flow_picture(run),
            "timeline": lambda: timeline_picture(run),
            "curve": lambda: curve_picture(said["curve"]),
        }
        for view, image in self.images.items():
            image.value = draws[view]().png(fast=True)

    def refuse(self, words: str, asked: int = 0) -> None:
        self.words.value = f"<b>{escape(words)}</b>"
