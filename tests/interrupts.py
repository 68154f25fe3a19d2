"""An interrupt as Jupyter sends it, from another thread."""

import signal
import threading
import time

AGAIN_S = 0.2  # a signal so soon after one that was taken is the same interrupt, sent twice

_taken_s = 0.0


def take(number, frame):
    """The main thread's handler."""
    global _taken_s
    if time.monotonic() - _taken_s > AGAIN_S:
        _taken_s = time.monotonic()
        signal.default_int_handler(number, frame)


def interrupt_main():
    """Interrupts the main thread, and returns once it knows.

    A signal that comes in the instant before the main thread waits for a lock is seen only after that wait, so it is
    sent until it was taken.
    """
    sent_s = time.monotonic()
    while _taken_s < sent_s:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)
