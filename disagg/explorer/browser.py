"""What the page's worker calls. Texts go in and out as JSON; the worker runs one `advance` after the other."""

import json

from disagg.explorer.settings import Settings
from disagg.explorer.twin import Twin, shown
from disagg.plan.errors import DisaggError
from disagg.trace.results import Run
from disagg.twin.replay import in_lines


class Desk:
    """One run at a time: a new `begin` drops what was under way; the last answer stays until there is another."""

    def __init__(self) -> None:
        self._twin: Twin | None = None
        self._run: Run | None = None

    def begin(self, given: str) -> str:
        """Settings as JSON of names and texts; returns why they are refused, or nothing."""
        try:
            self._twin = Twin(Settings.parse(json.loads(given)))
        except DisaggError as error:
            return str(error)
        return ""

    def advance(self, actions: int) -> bool:
        return self._twin.advance(actions)

    def answer(self) -> tuple[str, bytes]:
        """Once nothing is left to happen: JSON of what is said, and the columns of what is drawn."""
        self._run = self._twin.run()
        said, columns = shown(self._run)
        return json.dumps(said), columns

    def log(self) -> bytes:
        """The event log of the last answer."""
        return in_lines(self._run.log) if self._run else b""
