"""Draws and teaches: reads timelines and metrics, drives Engine, never touches a worker.

from disagg.show import watch, panel, replay
"""

import importlib

_WORDS = {"watch": "disagg.show.live", "panel": "disagg.show.player", "replay": "disagg.show.player"}


def __getattr__(name: str):
    """These need torch and ipywidgets, which are imported when one of them is first asked for."""
    if name in _WORDS:
        return getattr(importlib.import_module(_WORDS[name]), name)
    raise AttributeError(f"module 'disagg.show' has no attribute {name!r}")
