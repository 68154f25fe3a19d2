"""Threads and latches that can be waited for again after an interrupt."""

import contextlib
import queue
import threading
from collections import deque
from typing import Any


class Latch:
    """As threading.Event, but a thread that waits holds no lock that an interrupt of the main thread could leave
    locked, so `set` never waits."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: deque[queue.SimpleQueue] = deque()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.popleft().put(None)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Returns once it is set, or after the timeout; whether it is set."""
        mine: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting.append(mine)
        if not self._is_set:  # `set` finds this one waiting from here on
            with contextlib.suppress(queue.Empty):
                mine.get(timeout=timeout)
                return True
        with contextlib.suppress(ValueError):
            self._waiting.remove(mine)
        return self._is_set


class Joinable(threading.Thread):
    """Before Python 3.13 an interrupted `join` took the thread for ended, and the next one returned at once."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how, daemon=True)
        self._over = Latch()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._over.set()

    def join(self, timeout: float | None = None) -> None:
        """Returns when it has ended, or after the timeout; at once where it was never started."""
        if self.ident is not None and self._over.wait(timeout):
            super().join(timeout)
