"""Sliders and lists for the settings that `engine.retune` can change."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ipywidgets

from disagg.plan.policy import POLICIES
from disagg.run.engine import Engine
from disagg.show.widgets import SPEEDS, close_widgets, link_name
from disagg.trace.describe import POLICY_WORDS

BINS = ((), (64, 128), (64, 128, 256, 512, 1024))


class Dials:
    """A control for each setting. If the engine refuses a change, the error is raised and the control goes back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        config, wide = engine.config, ipywidgets.Layout(width="290px")
        self._choices: dict[str, tuple[list, Callable[[Any], str], str]] = {
            "link": (with_now(SPEEDS, config.link), link_name, "Speed of the emulated link"),
            "bins": (with_now(BINS, config.bins), bins_name, "Rows of like length share a step"),
            "policy": (list(POLICIES), POLICY_WORDS.__getitem__, "Who is served first"),
        }
        self.controls = {}
        for name, (values, words, tip) in self._choices.items():
            options = [(words(value), index) for index, value in enumerate(values)]  # None can't be an option's value
            now = values.index(getattr(config, name))
            look = dict(description=name, tooltip=tip, layout=wide)
            self.controls[name] = ipywidgets.Dropdown(options=options, value=now, **look)
        for name, tip in (
            ("decode_blocks", "Blocks of the decode pool that may be used; a request that needs more fails"),
            ("max_batch", "Most rows of a decode step"),
        ):
            look = dict(description=name, tooltip=tip, layout=wide, style={"description_width": "initial"})
            most = getattr(config, name)
            self.controls[name] = ipywidgets.IntSlider(value=most, min=1, max=most, continuous_update=False, **look)
        self.box = ipywidgets.HBox(list(self.controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))

    def connect(self, wish: Callable[[Callable], object]) -> None:
        """From here on a moved control requests its change."""
        for name, control in self.controls.items():
            control.observe(lambda change, name=name: wish(partial(self._retune, name)), "value")

    def _retune(self, name: str) -> None:
        now, asked = getattr(self._engine.config, name), self._asked(name)
        if asked == now:
            return
        try:
            self._engine.retune(**{name: asked})
        except Exception:
            self.controls[name].value = self._choices[name][0].index(now) if name in self._choices else now
            raise

    def _asked(self, name: str) -> Any:
        value = self.controls[name].value
        return self._choices[name][0][value] if name in self._choices else value

    def close(self) -> None:
        close_widgets(*self.controls.values(), self.box)


def with_now(values: Iterable, now: object) -> list:
    """The values; the current one first if it is not among them."""
    values = list(values)
    return values if now in values else [now, *values]


def bins_name(bins: tuple[int, ...]) -> str:
    return ", ".join(map(str, bins)) or "one for all"
