"""A thread that waits for the ends of launched steps, so that the worker does not."""

import queue
from collections.abc import Callable

from disagg.plan.commands import Decode
from disagg.plan.errors import in_words
from disagg.plan.events import Stepped, WorkerDied
from disagg.run.reports import Post, carry_out
from disagg.run.threads import Joinable


class StepEnds:
    """The step ends of one worker, whose thread calls `put` and `close`."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._launched: queue.SimpleQueue[tuple[Decode, Callable[[], Stepped]] | None] = queue.SimpleQueue()
        self._thread = Joinable(target=self._run, name="disagg step ends")

    def put(self, command: Decode, finish: Callable[[], Stepped]) -> None:
        """`finish` waits for the step's tokens and returns its event; steps end in the order of their launches."""
        if self._thread.ident is None:
            self._thread.start()
        self._launched.put((command, finish))

    def close(self) -> None:
        """Returns when the last step has ended."""
        self._launched.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (launched := self._launched.get()) is not None:
            command, finish = launched
            try:
                self._post(carry_out(command, finish))
            except BaseException as error:
                self._post(WorkerDied(command.worker, in_words(error)))
                return
