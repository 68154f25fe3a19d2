"""An instrument: controls over a scene, and the run that follows from them, redrawn while a control moves.

instrument(scene) for a Scene of the course, or for a function that gives a run, as in
instrument(lambda rows: simulate(config, requests[:rows]), {"rows": Numbers("rows", 4, range(1, 9))})
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from disagg.plan.config import Config
from disagg.plan.controller import LIVE
from disagg.plan.errors import DisaggError
from disagg.plan.request import MOST as EVER
from disagg.run.clock import now_ns
from disagg.run.engine import Engine
from disagg.run.model.model import Model
from disagg.run.threads import Joinable
from disagg.show.fallback import SERVE, STOP, Pictures
from disagg.show.plots.flow_plot import flow_picture
from disagg.show.plots.summaries import sentence
from disagg.show.scene import VIEWS, Control, Menu, Scene, bracket
from disagg.show.serving import Serving, follow, text_lines
from disagg.show.widgets import InCell
from disagg.trace.results import Run

try:
    from disagg.show.canvas import Canvas
except ImportError:  # anywidget is missing: pictures take its place
    Canvas = None  # type: ignore[assignment,misc]  # the class is asked for with `is None`
    gc.freeze()  # figures are garbage in cycles: what the imports left isn't looked through with them, 0.3 s each time


class Instrument(InCell):
    """`run` is the run of the present `settings`, `shown` the one on the screen; `set` turns controls as a reader does;
    `real` is the last run of the real engine. DisaggError where a setting can't be."""

    def __init__(self, scene: Scene, engine: Engine | None = None, model: Model | None = None, **start: Any) -> None:
        self.scene, self.engine = scene, engine
        self.model = engine.model if engine is not None else model
        self.real: Run | None = None
        self.settings = scene.settings(start)
        self.run: Run = scene.run(**self.settings)
        self.shown = self.run
        self._answer = scene.answer(self.run, self.settings)
        self._work: Joinable | None = None
        self._live: Serving | None = None  # what the engine serves now
        self._stopped = False
        self._turned: list[tuple[int, str]] = []  # (when, what) was turned while it served
        spec = scene.as_json()
        spec["controls"] = [
            {**one, "at": _at(scene.controls[one["name"]], self.settings[one["name"]])} for one in spec["controls"]
        ]
        if self.model is not None and scene.world is not None:
            spec["acts"] = {SERVE: "the same requests on the engine, with the model; the views follow meanwhile"}
        self._face = self._make_face(spec)
        self.panel = self._face.panel if isinstance(self._face, Pictures) else self._face

    def _make_face(self, spec: dict[str, Any]) -> "Canvas | Pictures":
        if Canvas is None:
            return Pictures(self, spec, self._answer[0])
        return Canvas(spec, *self._answer, self._asked)

    # ---- what readers do -------------------------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Turns some controls."""
        self._turn({**self.settings, **changes})

    def reset(self) -> None:
        self._turn({})

    def serve(self) -> None:
        """Serves the present setting on the real engine, in a thread of its own."""
        if self.model is None or self.scene.world is None:
            raise DisaggError("this instrument has no model: give it one, as in instrument(scene, engine=engine)")
        if self._work is not None and self._work.is_alive():
            raise DisaggError("it is serving already; wait for the end of that run, or stop it")
        self._stopped, self._turned = False, []
        self._work = Joinable(target=self._serve, name="disagg instrument")
        self._work.start()

    def stop(self) -> None:
        """Cancels what is being served."""
        self._stopped = True
        if (live := self._live) is not None:
            live.stop()

    def wait(self) -> None:
        """Until what `serve` began is over."""
        if self._work is not None:
            self._work.join()

    def close(self) -> None:
        self.stop()
        self.wait()
        super().close()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _asked(self, number: int, settings: Mapping[str, object] | None, act: str | None) -> None:
        try:
            if act is None:
                self._turn(settings or {}, number)
            elif self._live is None:
                self.serve()
            else:
                self.stop()
        except Exception as error:  # nothing else shows a callback's exception
            self._face.refuse(_words(error), number)

    def _turn(self, given: Mapping[str, object], number: int = 0) -> None:
        settings = self.scene.settings(given)
        if (live := self._live) is not None:
            self._retune(live, settings)
            self.settings = settings
            return self._show(number)
        run = self.scene.run(**settings)
        self.settings, self.run, self.shown = settings, run, run
        self._answer = self.scene.answer(run, settings)
        return self._show(number)

    def _retune(self, live: Serving, settings: Mapping[str, Any]) -> None:
        """What is turned while the engine serves changes the engine."""
        assert self.scene.world is not None, "what is live was made of a world"
        before, after = self.scene.world(**self.settings), self.scene.world(**settings)
        if list(before.requests) != list(after.requests):
            raise DisaggError("these requests are being served: turn what makes them when that run is over, or stop it")
        live.engine.retune(**_changes(before.config, after.config))
        turned = [name for name in settings if settings[name] != self.settings[name]]
        words = (f"{self.scene.controls[name].label} {settings[name]}" for name in turned)
        self._turned.append((now_ns() - live.engine.recorder.timeline.start_ns, ", ".join(words)))

    def _show(self, number: int = 0) -> None:
        said, columns = self._answer
        self._face.show({**said, "act": STOP if self._live else SERVE}, columns, number)

    def _serve(self) -> None:
        """Shows what is there a few times a second, and at the end the run beside the simulated one."""
        assert self.model is not None and self.scene.world is not None, "serve checks both"
        model, refusal = self.model, ""
        try:
            world = self.scene.world(**self.settings)
            with self._lent(world.config) as engine:
                self._live = live = Serving(engine, list(world.requests))
                if self._stopped:
                    live.stop()
                follow(live, engine, lambda run: self.see(run, "On the real engine so far: ", model))
                self.real = live.run()
        except Exception as error:
            refusal = f"The engine could not serve it: {_words(error)}"
        self._live = None
        if refusal:
            self._show()  # the button serves again
            self._face.refuse(refusal)
        elif self.real is not None:
            self.see(self.real, "On the real engine: ", model)

    @contextmanager
    def _lent(self, config: Config) -> Iterator[Engine]:
        """The engine itself if what differs can change while it runs; else one of its own with the same weights."""
        assert self.model is not None, "serve checks it"
        config = config.replace(model=self.model.name)
        changes = _changes(self.engine.config, config) if self.engine is not None else {}
        if self.engine is not None and changes.keys() <= {*LIVE} and None not in changes.values():
            self.engine.retune(**changes)
            yield self.engine
        else:
            with Engine(config, model=self.model) as engine:
                yield engine

    def see(self, run: Run, words: str = "", model: Model | None = None) -> None:
        """Shows another run, such as one that is under way, with its answers; the playhead stands at its end."""
        said, columns = self.scene.answer(run, self.settings)
        end = run.timeline.end_ns - run.timeline.start_ns
        texts = text_lines(run.results, EVER, model.decode_text) if model else ()
        self.shown = run
        if rows := said["header"]["rows"]:
            said["brackets"] += [bracket(rows[0][0], at, at, what) for at, what in self._turned]
        self._answer = {**said, "sentence": words + said["sentence"], "at": end, "texts": texts}, columns
        self._show()

    def __repr__(self) -> str:
        turned = ", ".join(f"{c.label} {self.settings[name]}" for name, c in self.scene.controls.items())
        title = f"{self.scene.title}: {turned}. " if turned else ""
        return f"{title}{sentence(self.run, times=False)}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        """The widget; and where none can be shown, the system at an instant with the sentence."""
        found = self.panel._repr_mimebundle_() or {}
        data, metadata = found if isinstance(found, tuple) else (found, {})
        picture = flow_picture(self.run, part=self.scene.part)
        pictures, more = picture._repr_mimebundle_()
        return {**data, **pictures, "text/plain": repr(self)}, {**metadata, **more}


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, DisaggError) else f"{type(error).__name__}: {error}"


def _changes(before: Config, after: Config) -> dict[str, Any]:
    """The settings of `after` that are others."""
    found = {each.name: getattr(after, each.name) for each in fields(after)}
    return {name: value for name, value in found.items() if value != getattr(before, name)}


def _at(control: Control, value: object) -> int:
    """The place of a setting among those that can be chosen."""
    return list(control.options if isinstance(control, Menu) else control.values).index(value)


def instrument(
    scene: Scene | Callable[..., Run],
    controls: Mapping[str, Control] | None = None,
    views: Sequence[str] = VIEWS,
    engine: Engine | None = None,
    model: Model | None = None,
    **start: Any,
) -> Instrument:
    """Controls over a scene, or over a function of them that gives a run. With an engine, or a model for one, a button
    serves the setting on it. `start`: settings that differ from the scene's. ConfigError for one that can't be."""
    if not isinstance(scene, Scene):
        scene = Scene(scene.__name__.replace("_", " ").strip("<>"), controls or {}, scene, views=views)
    return Instrument(scene, engine, model, **start)


def flow(run: Run, part: str = "", views: Sequence[str] = ("flow", "timeline")) -> Instrument:
    """A run as it flows through the system, over its timeline, with one playhead."""
    return Instrument(Scene("", {}, lambda: run, part=part, views=views))
