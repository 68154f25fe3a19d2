"""One profile for all property tests: the same examples every time, and no verdict by the clock."""

import signal

from hypothesis import settings
from interrupts import take

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")

# A shell that starts the tests in the background leaves SIGINT ignored, and Python then raises no KeyboardInterrupt.
signal.signal(signal.SIGINT, take)
