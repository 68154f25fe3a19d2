"""One profile for all property tests: the same examples every time, and no verdict by the clock."""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")
