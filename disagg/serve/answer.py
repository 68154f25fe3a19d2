"""An open request's text on its way to one client: read off the engine's handle, cut at a stop text."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence

from disagg.run.handle import Handle
from disagg.trace.results import Result

FINISH = {"eos": "stop", "length": "length"}  # OpenAI's words; what is in neither has an error


class Stops:
    """Lets text through up to the first of some texts to be complete; what may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._waiting, self.met = stops, "", False

    def push(self, piece: str) -> str:
        """Text that may go out now; none after a stop was met."""
        if self.met:
            return ""
        text = self._waiting + piece
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.met, self._waiting = True, ""
            return text[: min(found)[1]]
        held = max((self._begun(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What waited, where no stop came of it."""
        rest, self._waiting = self._waiting, ""
        return rest

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How many of the text's last letters begin a stop."""
        return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)


class Answer:
    """Iterate it in the event loop that made it, again where that was cut short; `cancel` may be called anywhere."""

    def __init__(self, handle: Handle, stops: Sequence[str]) -> None:
        self._handle, self._stops = handle, Stops(stops)
        self._over = False
        self._loop, self._pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        # A handle is read by waiting: a thread each, which ends with its request.
        try:
            threading.Thread(target=self._read, name="disagg answer", daemon=True).start()
        except BaseException:  # there is no thread left, and nobody would end the request
            handle.cancel()
            raise

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server's loop has ended, and nobody waits for the text
            for piece in self._handle:
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
            self._handle.result()
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, None)

    async def __aiter__(self) -> AsyncIterator[str]:
        """Text as it comes, to the request's end; a stop text ends it."""
        while not self._over:
            piece = await self._pieces.get()
            self._over = piece is None
            if text := self._stops.push(piece or ""):
                yield text
            if self._stops.met:
                self.cancel()
        if rest := self._stops.flush():
            yield rest

    def cancel(self) -> None:
        self._handle.cancel()

    @property
    def result(self) -> Result:
        return self._handle.so_far

    @property
    def finish(self) -> str | None:
        """Why it ended, in OpenAI's words; None where it has no whole answer."""
        return "stop" if self._stops.met else FINISH.get(self.result.finish_reason)

    @property
    def usage(self) -> dict[str, int]:
        prompt, new = self.result.prompt_tokens, len(self.result.token_ids)
        return dict(prompt_tokens=prompt, completion_tokens=new, total_tokens=prompt + new)
