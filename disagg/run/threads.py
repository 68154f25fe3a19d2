"""Threads that can be waited for again after an interrupt."""

import threading


class Joinable(threading.Thread):
    """Before Python 3.13 an interrupted `join` took the thread for ended, and the next one returned at once."""

    def __init__(self, **how):
        super().__init__(**how, daemon=True)
        self._over = threading.Event()

    def run(self):
        try:
            super().run()
        finally:
            self._over.set()

    def join(self, timeout: float | None = None):
        """Returns when it has ended, or after the timeout; at once where it was never started."""
        if self.ident is not None and self._over.wait(timeout):
            super().join(timeout)
