"""The one live widget: flow, timeline, curve and figures of a run with one playhead, under what can be turned."""

from collections.abc import Callable

import anywidget
import traitlets

from disagg.show.columns import look
from disagg.show.html_page import HERE, joined


class Canvas(anywidget.AnyWidget):
    """Shows answers of a scene (show/scene.py). `at_ms` is the playhead, `request` the highlighted one (None: all).
    `asked(id, settings, act)` hears what a reader turns or presses."""

    _esm = joined("canvas.js", "flow.js", "curve.js", "instrument.js")
    _css = (HERE / "instrument.css").read_text("utf-8")
    spec = traitlets.Dict().tag(sync=True)
    look: traitlets.List = traitlets.List().tag(sync=True)
    said = traitlets.Dict().tag(sync=True)
    columns: traitlets.List = traitlets.List().tag(sync=True)
    at_ms = traitlets.Float(0.0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)
    request = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(
        self, spec: dict, said: dict, columns: list[bytes], asked: Callable[..., object] | None = None
    ) -> None:
        super().__init__(spec=spec, look=look(), said=said, columns=columns)
        self.asked = asked
        self.on_msg(self._heard)

    def show(self, said: dict, columns: list[bytes], asked: int = 0) -> None:
        """An answer: to the question of this number, or by itself. It stays for views that open later."""
        with self.hold_sync():
            self.said, self.columns = {**said, "id": asked}, columns

    def refuse(self, words: str, asked: int = 0) -> None:
        self.send({"id": asked, "refusal": words})

    def play(self) -> None:
        """Moves the playhead; the visible part takes ten seconds."""
        self.playing = True

    def pause(self) -> None:
        self.playing = False

    def seek(self, ms: float) -> None:
        """Moves the playhead to a time since the run's start."""
        self.at_ms = float(ms)

    def _heard(self, widget: object, content: object, buffers: object) -> None:
        if self.asked is not None and isinstance(content, dict) and isinstance(content.get("id"), int):
            self.asked(content["id"], content.get("settings"), content.get("act"))
