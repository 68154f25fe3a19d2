"""A broken invariant: the detector that found it, the request, the blocks, and the last log entries."""

from collections.abc import Iterable
from typing import Never, Protocol

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.trace.describe import command_in_words, event_in_words


class InvariantViolation(AssertionError):
    """Raised by a detector, under its name. `events` are the last entries of the log, in words."""

    def __init__(
        self,
        detector: str,
        what: str,
        request: int | None = None,
        blocks: Iterable[int] = (),
        events: Iterable[str] = (),
    ) -> None:
        self.detector, self.what, self.request = detector, what, request
        self.blocks, self.events = tuple(blocks), tuple(events)
        super().__init__("\n".join([self.summary, *(f"  {line}" for line in self.events)]))

    @property
    def summary(self) -> str:
        """One line: detector, what is wrong, request and blocks."""
        of = [f"request {self.request}"] if self.request is not None else []
        of += [f"blocks {', '.join(map(str, self.blocks))}"] if self.blocks else []
        return f"{self.detector}: {self.what}" + (f" ({'; '.join(of)})" if of else "")


class Report(Protocol):
    """Raises an InvariantViolation with the last entries of the log."""

    def __call__(self, detector: str, what: str, request: int | None = None, blocks: Iterable[int] = ()) -> Never: ...


def entry_in_words(now_ns: int, entry: ev.Event | cmd.Command) -> str:
    if isinstance(entry, ev.Event):
        return f"{now_ns / 1e6:.4f} ms: {event_in_words(entry)}"
    return f"    → {command_in_words(entry)}"
