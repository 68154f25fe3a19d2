"""The timeline as a live widget: zoom, hover, scrub and step, by mouse or by keys. Needs the extra `live`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from disagg.show.columns import SpanColumns, look
from disagg.show.plots.summaries import numbers_of, sentence
from disagg.trace.results import Run
from disagg.trace.spans import Span
from disagg.trace.timeline import Timeline

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError(
        'the canvas needs anywidget, which is not installed: pip install "disagg[live]". '
        "Everything else works without it; timeline_picture(run) draws the same timeline."
    ) from error


class TimelineCanvas(anywidget.AnyWidget):
    """Spans of a run or a timeline. `at_ms` is the playhead, `request` the highlighted one (None: all)."""

    _esm = Path(__file__).with_name("canvas.js").read_text("utf-8")
    look: traitlets.List = traitlets.List().tag(sync=True)
    header = traitlets.Dict().tag(sync=True)
    columns = traitlets.Bytes().tag(sync=True)
    at_ms = traitlets.Float(0.0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)
    request = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(self, shown: Run | Timeline) -> None:
        timeline = shown.timeline if isinstance(shown, Run) else shown
        numbers = numbers_of(shown) if isinstance(shown, Run) else {}
        self._spans = SpanColumns(timeline.start_ns, numbers)
        self._spans.add(timeline.spans)
        self._counts = f" {sentence(shown, times=False)}" if isinstance(shown, Run) and shown.results else ""
        header, columns = self._spans.chunk()
        super().__init__(look=look(), header=header, columns=columns)
        self.on_msg(self._asked)

    def extend(self, spans: Iterable[Span]) -> None:
        self._send_from(self._spans.add(spans))

    def play(self) -> None:
        """Moves the playhead; the visible part takes ten seconds."""
        self.playing = True

    def pause(self) -> None:
        self.playing = False

    def seek(self, ms: float) -> None:
        """Moves the playhead to a time since the run's start."""
        self.at_ms = float(ms)

    def _asked(self, widget: object, content: object, buffers: object) -> None:
        """A view that is new or missed a message reports how many spans it has."""
        have = content.get("have") if isinstance(content, dict) else None
        if isinstance(have, int) and 0 <= have < len(self._spans.spans):
            self._send_from(have)

    def _send_from(self, first: int) -> None:
        header, columns = self._spans.chunk(first)
        self.send(header, [columns])

    def __repr__(self) -> str:
        return f"Timeline to zoom, hover and step, rows: {', '.join(self._spans.rows.values())}.{self._counts}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The widget, and the sentence in its place without a kernel."""
        widget: Any = super()  # mypy knows its type only where anywidget is installed
        data, metadata = widget._repr_mimebundle_(**kwargs)
        return {**data, "text/plain": repr(self)}, metadata
