"""A scene: what can be turned, the run that follows from it, and what is said of that run. It runs in a browser too.

Scene("One link", {"link": Numbers("link, MB/s", 20, (2, 5, 10, 20, 50))}, lambda link: simulate(…)) is shown by
`instrument(scene)` in a notebook, and by a page of the site.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disagg.plan.checks import short
from disagg.plan.config import Config
from disagg.plan.errors import ConfigError
from disagg.plan.request import Request
from disagg.show.columns import SpanColumns, flow_columns
from disagg.show.plots.summaries import milliseconds, numbers_of, sentence
from disagg.trace.results import Run

VIEWS = ("flow", "timeline", "curve")  # of a run; the figures in words always stand there


@dataclass(frozen=True)
class Numbers:
    """A slider over numbers."""

    label: str
    default: float
    values: Sequence[float]

    def read(self, name: str, given: object) -> float:
        """The number that a text or a number names. ConfigError where it is not one of the values."""
        try:
            value = float(given)  # type: ignore[arg-type]  # what is no number says so
        except (TypeError, ValueError):
            value = None
        if value is None or isinstance(given, bool) or value not in self.values:
            raise ConfigError(f"{name} must be {_in_words(self.values)}; got {short(given)}")
        return int(value) if value == int(value) else value

    def as_json(self) -> dict[str, Any]:
        return {"label": self.label, "values": list(self.values), "at": list(self.values).index(self.default)}


@dataclass(frozen=True)
class Menu:
    """One of some names, each with its words."""

    label: str
    default: str
    options: Mapping[str, str]

    def read(self, name: str, given: object) -> str:
        if not isinstance(given, str) or given not in self.options:
            raise ConfigError(f"{name} {short(given)} is unknown; known: {', '.join(self.options)}")
        return given

    def as_json(self) -> dict[str, Any]:
        names = list(self.options)
        return {"label": self.label, "options": list(self.options.items()), "at": names.index(self.default)}


Control = Numbers | Menu


def _in_words(values: Sequence[float]) -> str:
    if isinstance(values, range):
        steps = "" if values.step == 1 else f" in steps of {values.step}"
        return f"a whole number from {values[0]} to {values[-1]}{steps}"
    return f"one of {', '.join(f'{value:g}' for value in values)}"


@dataclass(frozen=True)
class Curve:
    """Lines in a plane and the points that the run stands at. With `log` both axes are logarithmic. `handles` are
    controls that are dragged in the plane: name → where its line stands."""

    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    points: Mapping[str, tuple[float, float]]
    log: bool = False
    handles: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        lines = [[name, [list(point) for point in line]] for name, line in self.lines.items()]
        points = [[name, list(point)] for name, point in self.points.items()]
        return {
            "x": self.x,
            "y": self.y,
            "lines": lines,
            "points": points,
            "log": self.log,
            "handles": [*self.handles.items()],
        }


@dataclass(frozen=True)
class Notes:
    """Words and a table (what, before, after) beside a run, and where the playhead goes: ns since its start."""

    words: Sequence[str]
    rows: Sequence[tuple[str, str, str]]
    at_ns: int


@dataclass(frozen=True)
class Setup:
    """What a setting of a scene serves: `simulate` and a real engine take the same."""

    config: Config
    requests: Sequence[Request]


@dataclass(frozen=True)
class Scene:
    """`run(**settings)` gives the Run of a setting. `figures` are more facts on it, `curve` the plane that it is a
    point of; `world` gives what a real engine would serve; `part` is the part of the system to look at."""

    title: str
    controls: Mapping[str, Control]
    run: Callable[..., Run]
    figures: Callable[..., Sequence[tuple[str, str]]] | None = None
    curve: Callable[..., Curve] | None = None
    world: Callable[..., Setup] | None = None
    part: str = ""
    views: Sequence[str] = field(default=VIEWS)
    brackets: Callable[..., Sequence[dict[str, Any]]] | None = None  # in place of E and the second-token gap
    notes: Callable[..., Notes] | None = None

    def settings(self, given: Mapping[str, object] = {}) -> dict[str, Any]:
        """One value a control; what is left out is as at the start. ConfigError."""
        if unknown := [name for name in given if name not in self.controls]:
            raise ConfigError(f"setting {short(unknown[0])} is unknown; known: {', '.join(self.controls)}")
        return {name: control.read(name, given.get(name, control.default)) for name, control in self.controls.items()}

    def as_json(self) -> dict[str, Any]:
        """What instrument.js lays out."""
        controls = [{"name": name, **control.as_json()} for name, control in self.controls.items()]
        views = [view for view in self.views if view != "curve" or self.curve]
        return {"title": self.title, "controls": controls, "views": views, "part": self.part}

    def facts(self, run: Run, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [*facts(run), *(self.figures(run, **settings) if self.figures else ())]

    def answer(self, run: Run, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """What instrument.js shows of a run: plain values, and columns of spans, of the flow and of blocks."""
        header, columns = spans_of(run)
        flow, more = flow_columns(run)
        said: dict[str, Any] = {
            "sentence": sentence(run),
            "facts": self.facts(run, settings),
            "header": header,
            "flow": flow,
        }
        marked = self.brackets(run, **settings) if self.brackets else brackets(run)
        said |= {"brackets": marked, "settings": {name: _text(value) for name, value in settings.items()}}
        if self.curve:
            said["curve"] = self.curve(run, **settings).as_json()
        if self.notes:
            found = self.notes(run, **settings)
            said |= {"words": list(found.words), "rows": [list(row) for row in found.rows], "at": found.at_ns}
        return said, [columns, *more]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def spans_of(run: Run) -> tuple[dict[str, Any], bytes]:
    spans = SpanColumns(run.timeline.start_ns, numbers_of(run))
    spans.add(run.timeline.spans)
    return spans.chunk()


def facts(run: Run) -> list[tuple[str, str]]:
    """What a reader of answers feels, and what the hand-off leaves of it. Of several requests half and the worst."""
    metrics, overlap = run.metrics(), run.overlap()
    found = [("TTFT", _spread(metrics.ttft_s)), ("second-token gap", _spread(metrics.second_token_gap_s))]
    found += [("longest gap", milliseconds(max(gaps)))] if (gaps := [s for r in run.results for s in r.itl_s]) else []
    if overlap.transfer_s:
        hidden = "–" if overlap.share is None else f"{overlap.share:.0%}"
        found += [
            (
                "E, left after tokens 1" if len(run.results) > 1 else "E, left after token 1",
                milliseconds(overlap.exposed_s),
            ),
            ("H, hidden", hidden),
        ]
    return [*found, ("new tokens a second", f"{metrics.tokens_per_s:.0f}")]


def _spread(found: Any) -> str:
    if found.p50 is None or found.p99 is None:
        return "–"
    half, most = milliseconds(found.p50), milliseconds(found.p99)
    return half if half == most else f"{half}; worst {most}"


def brackets(run: Run, most: int = 3) -> list[dict[str, Any]]:
    """E and the second-token gap of a run's few requests, as stretches of the timeline with their words; ns since the
    run's start."""
    found, start_ns = [], run.timeline.start_ns
    for result in run.results if len(run.results) <= most else []:
        times, copies = result.token_times_ns, run.timeline.hand_off(result.request)
        if copies and times and (last := max(copies, key=lambda span: span.end_ns)).end_ns > times[0]:
            words = f"E {milliseconds((last.end_ns - times[0]) / 1e9)}"
            found.append(bracket(last.place, times[0] - start_ns, last.end_ns - start_ns, words))
        steps = (s for s in run.timeline.spans if s.kind == "decode" and result.request in s.requests)
        if len(times) > 1 and (step := next(steps, None)):
            words = f"gap {milliseconds((times[1] - times[0]) / 1e9)}"
            found.append(bracket(step.place, times[0] - start_ns, times[1] - start_ns, words))
    return found


def bracket(place: str, start: int, end: int, words: str) -> dict[str, Any]:
    """A stretch of a row of the timeline, in ns since the run's start, with its words."""
    return {"place": place, "start": start, "end": end, "words": words}
