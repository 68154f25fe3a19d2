"""Draws runs from timelines and metrics, and drives an Engine; it never touches a worker.

from disagg.show import ask, flow, instrument, watch, panel, stepper
"""

from disagg.imported_later import imported_later

_WORDS = {  # no module has such a name: its import would replace the function
    "watch": "disagg.show.live",  # a run as it goes
    "panel": "disagg.show.live",  # the same with dials that change the engine
    "ask": "disagg.show.question",  # a question to the model, as it is answered
    "flow": "disagg.show.instruments",  # a run as it flows through the system
    "instrument": "disagg.show.instruments",  # controls over a scene
    "stepper": "disagg.show.stepping",  # the controller, one event at a time
}
__all__ = [*_WORDS]
__getattr__ = imported_later(__name__, _WORDS)  # they need torch and ipywidgets
