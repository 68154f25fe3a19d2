"""A run while it happens, in a notebook: `watch` shows it until it ends, `panel` has dials that turn meanwhile. Outside
a notebook `watch` prints its sentence and serves all the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from disagg.plan.config import Config
from disagg.plan.policy import POLICIES
from disagg.plan.request import Request, listed
from disagg.run.engine import Engine, job_of
from disagg.run.machine.notebook import shell, tell_interrupt
from disagg.show.instruments import Instrument, flow, instrument
from disagg.show.plots.summaries import plural
from disagg.show.scene import Control, Menu, Numbers, Scene, Setup
from disagg.show.serving import Followed, Open, Serving, follow
from disagg.show.widgets import SPEEDS, link_name
from disagg.trace.describe import POLICY_WORDS
from disagg.trace.results import Run
from disagg.twin.simulate import simulate

BINS = ((), (64, 128), (64, 128, 256, 512, 1024))


def watch(engine: Engine, requests: Iterable[Request] | None = None, updates_per_s: float = 4) -> Run:
    """Serves requests and shows them meanwhile; without requests, watches until none is open.

    An interrupt ends the requests it serves, as in `engine.serve`, and returns; those of `submit` go on.
    """
    asked = None if requests is None else listed(requests)
    screen = Screen(f"Live view of {'open requests' if asked is None else plural(len(asked), 'request')}.")
    interrupted = False
    serving: Followed = Open(engine) if asked is None else Serving(engine, asked)
    try:
        follow(serving, engine, lambda run: screen.show(run, engine), 1 / updates_per_s)
    except KeyboardInterrupt:
        serving.stop()
        interrupted = True
    run = serving.run()
    screen.show(run, engine)
    if interrupted:
        tell_interrupt(run)
    return run


class Screen:
    """One view that is kept up to date, with a text that stays; outside a notebook, that text once."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._view: Instrument | None = None
        self._shown = in_notebook()
        if not self._shown:
            print(words)

    def show(self, run: Run, engine: Engine) -> None:
        if not self._shown:
            return
        if self._view is None:
            from IPython.display import display

            self._view = flow(run)
            data, metadata = self._view._repr_mimebundle_()
            display({**data, "text/plain": self._words}, raw=True, metadata=metadata)
        self._view.see(run, model=engine.model)


def in_notebook() -> bool:
    """Whether a front end can show a widget; a terminal's IPython has no kernel."""
    return getattr(shell(), "kernel", None) is not None


def panel(engine: Engine, requests: Iterable[Request]) -> Instrument:
    """The requests simulated; a button serves them on this engine. What is turned meanwhile changes the engine."""
    asked, start = listed(requests), engine.config
    known = [replace(one, prompt=job_of(one, engine.model, start.seed).prompt) for one in asked]
    dials = Dials(start)

    def run(**turned: Any) -> Run:
        return simulate(dials.config(turned), known)

    def world(**turned: Any) -> Setup:
        return Setup(dials.config(turned), asked)

    scene = Scene(f"Live panel of {plural(len(asked), 'request')}", dials.controls, run, world=world)
    return instrument(scene, engine=engine)


class Dials:
    """A control for each setting that an engine can change while it serves."""

    def __init__(self, start: Config) -> None:
        self._start = start
        policies = {POLICY_WORDS[name]: name for name in POLICIES}
        speeds: tuple[Any, ...] = (start.link, *SPEEDS)
        self._values: dict[str, dict[str, Any]] = {
            "link": {link_name(speed): speed for speed in speeds},
            "bins": {bins_name(bins): bins for bins in (start.bins, *BINS)},
            "policy": policies if start.policy in POLICIES else {"its own": start.policy, **policies},
        }
        self.controls: dict[str, Control] = {
            name: Menu(name, self._words(name), {words: words for words in values})
            for name, values in self._values.items()
        }
        for name in ("decode_blocks", "max_batch"):
            most = getattr(start, name)
            self.controls[name] = Numbers(name, most, range(1, most + 1))

    def _words(self, name: str) -> str:
        """What the control says at the start."""
        now = getattr(self._start, name)
        return next(words for words, value in self._values[name].items() if value == now)

    def config(self, turned: Mapping[str, Any]) -> Config:
        """The settings that the controls say."""
        chosen = {name: self._values[name][value] if name in self._values else value for name, value in turned.items()}
        return self._start.replace(**chosen)


def bins_name(bins: tuple[int, ...]) -> str:
    return ", ".join(map(str, bins)) or "one for all"
