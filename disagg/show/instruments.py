"""An instrument: controls over a scene, and the run that follows from them, redrawn while a control moves.

instrument(scene) for a Scene of the course, or for a function that gives a run, as in
instrument(lambda rows: simulate(config, requests[:rows]), {"rows": Numbers("rows", 4, range(1, 9))})
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets

from disagg.plan.errors import DisaggError
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.threads import Joinable
from disagg.show.live import Serving
from disagg.show.plots.flow_plot import flow_picture
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import sentence
from disagg.show.plots.timeline_plot import timeline_picture
from disagg.show.scene import VIEWS, Control, Menu, Scene
from disagg.show.widgets import InCell, no_math, row
from disagg.trace.results import Result, Run
from disagg.trace.timeline import Timeline

try:
    from disagg.show.canvas import Canvas
except ImportError:  # anywidget is missing: pictures take its place
    Canvas = None  # type: ignore[assignment,misc]  # the class is asked for with `is None`

SERVE = "Serve it for real"
LIVE_S = 0.25  # between two looks at an engine that serves
NO_CANVAS = "Drawn as pictures, since anywidget is not installed (pip install anywidget): nothing here plays or steps."


class Instrument(InCell):
    """`run` is the run of the present `settings`; `set` turns controls as a reader does; `real` is the last run of the
    real engine. DisaggError where a setting can't be."""

    def __init__(self, scene: Scene, engine: Engine | None = None, **start: Any) -> None:
        self.scene, self.engine = scene, engine
        self.real: Run | None = None
        self.settings = scene.settings(start)
        self.run: Run = scene.run(**self.settings)
        self._serving: Joinable | None = None
        spec = scene.as_json()
        spec["controls"] = [
            {**one, "at": _at(scene.controls[one["name"]], self.settings[one["name"]])} for one in spec["controls"]
        ]
        if engine is not None and scene.world is not None:
            spec["acts"] = {SERVE: "the same requests on the engine, with the model; the views follow meanwhile"}
        self._face = self._make_face(spec)
        self.panel = self._face.panel if isinstance(self._face, Pictures) else self._face

    def _make_face(self, spec: dict[str, Any]) -> "Canvas | Pictures":
        if Canvas is None:
            return Pictures(self, spec)
        return Canvas(spec, *self.scene.answer(self.run, self.settings), self._asked)

    # ---- what readers do -------------------------------------------------------------------------------------------

    def set(self, **changes: Any) -> None:
        """Turns some controls."""
        self._turn({**self.settings, **changes})

    def reset(self) -> None:
        self._turn({})

    def serve(self) -> None:
        """Serves the present setting on the real engine, in a thread of its own."""
        if self.engine is None or self.scene.world is None:
            raise DisaggError("this instrument has no engine: give it one, as in instrument(scene, engine=engine)")
        if self._serving is not None and self._serving.is_alive():
            raise DisaggError("it is serving already; wait for the end of that run")
        self._serving = Joinable(target=self._serve, name="disagg instrument")
        self._serving.start()

    def wait(self) -> None:
        """Until what `serve` began is over."""
        if self._serving is not None:
            self._serving.join()

    def close(self) -> None:
        self.wait()
        super().close()

    # ---- answers ---------------------------------------------------------------------------------------------------

    def _asked(self, number: int, settings: Mapping[str, object] | None, act: str | None) -> None:
        try:
            self.serve() if act == SERVE else self._turn(settings or {}, number)
        except Exception as error:  # nothing else shows a callback's exception
            words = str(error) if isinstance(error, DisaggError) else f"{type(error).__name__}: {error}"
            self._face.refuse(words, number)

    def _turn(self, given: Mapping[str, object], number: int = 0) -> None:
        settings = self.scene.settings(given)
        run = self.scene.run(**settings)
        self.settings, self.run = settings, run
        self._face.show(*self.scene.answer(run, settings), number)

    def _serve(self) -> None:
        """Shows what is there a few times a second, and at the end the run beside the simulated one."""
        assert self.engine is not None and self.scene.world is not None, "serve checks both"
        world = self.scene.world(**self.settings)
        try:
            with Engine(world.config.replace(model=self.engine.config.model), model=self.engine.model) as engine:
                run = self.real = followed(
                    engine,
                    list(world.requests),
                    lambda run: self.see(run, "On the real engine so far: "),
                )
            self.see(run, "On the real engine: ")
        except Exception as error:
            self._face.refuse(f"The engine could not serve it: {type(error).__name__}: {error}")

    def see(self, run: Run, words: str = "") -> None:
        """Shows another run, such as one that is under way; the playhead stands at its end."""
        said, columns = self.scene.answer(run, self.settings)
        end = run.timeline.end_ns - run.timeline.start_ns
        self._face.show({**said, "sentence": words + said["sentence"], "at": end}, columns)

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


def followed(engine: Engine, requests: list[Request], show: Callable[[Run], object]) -> Run:
    """Serves requests, and shows the run so far a few times a second; raises what ended it."""
    serving = Serving(engine, requests)
    seen: dict[int, Result] = {}
    while not serving.wait(LIVE_S):
        seen |= {handle.so_far.request: handle.so_far for handle in engine.open_handles()}
        show(so_far(engine, seen))
    return serving.run()


def so_far(engine: Engine, seen: Mapping[int, Result]) -> Run:
    """The run that is under way, as it is now."""
    timeline = engine.recorder.timeline
    lists = {name: list(entries) for name, entries in timeline.records().items()}
    now = Timeline(lists["span"], timeline.start_ns, lists["mark"], lists["move"], timeline.devices, timeline.sizes)
    return Run(engine.config, [seen[number] for number in sorted(seen)], now)


def _at(control: Control, value: object) -> int:
    """The place of a setting among those that can be chosen."""
    return list(control.options if isinstance(control, Menu) else control.values).index(value)


class Pictures:
    """The same without anywidget: sliders, a sentence with the facts, and the views as pictures."""

    def __init__(self, instrument: Instrument, spec: dict[str, Any]) -> None:
        self._instrument, self._spec = instrument, spec
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
        views = [view for view in spec["views"] if view != "curve"]
        self.images = {view: ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="900px")) for view in views}
        buttons = []
        for name, act in (("Reset", instrument.reset), *([(SERVE, instrument.serve)] if "acts" in spec else [])):
            buttons.append(ipywidgets.Button(description=name))
            buttons[-1].on_click(lambda button, act=act: self._guarded(act))
        title = ipywidgets.Label(no_math(spec["title"]))
        self.panel = ipywidgets.VBox(
            [title, row(*self.controls.values(), *buttons), self.words, *self.images.values(), self.note]
        )
        self.show(*instrument.scene.answer(instrument.run, instrument.settings))

    def _turned(self) -> None:
        self._guarded(lambda: self._instrument.set(**{name: control.value for name, control in self.controls.items()}))

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # nothing else shows a callback's exception
            self.refuse(str(error))

    def show(self, said: dict[str, Any], columns: Sequence[bytes], asked: int = 0) -> None:
        facts = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in said["facts"])
        self.words.value = f"{escape(said['sentence'])}<br>{facts}"
        draws: dict[str, Callable[[Run], Picture]] = {"flow": flow_picture, "timeline": timeline_picture}
        for view, image in self.images.items():
            image.value = draws[view](self._instrument.run).png(fast=True)

    def refuse(self, words: str, asked: int = 0) -> None:
        self.words.value = f"<b>{escape(words)}</b>"


def instrument(
    scene: Scene | Callable[..., Run],
    controls: Mapping[str, Control] | None = None,
    views: Sequence[str] = VIEWS,
    engine: Engine | None = None,
    **start: Any,
) -> Instrument:
    """Controls over a scene, or over a function of them that gives a run. With an engine, a button serves the setting
    on it. `start` are settings that differ from the scene's. ConfigError for a setting that can't be."""
    if not isinstance(scene, Scene):
        scene = Scene(scene.__name__.replace("_", " ").strip("<>"), controls or {}, scene, views=views)
    return Instrument(scene, engine, **start)


def flow(run: Run, part: str = "", views: Sequence[str] = ("flow", "timeline")) -> Instrument:
    """A run as it flows through the system, over its timeline, with one playhead."""
    return Instrument(Scene("", {}, lambda: run, part=part, views=views))
