"""Three scenes of five minutes for a projector, each on a page of 1,280 × 720. Lesson plan: docs/teaching.md."""

from dataclasses import replace
from typing import Any

import ipywidgets

from disagg.course.scenes import SCENES
from disagg.show.instruments import Instrument
from disagg.show.widgets import InCell

#: The tab's title → its scene, and the settings at which the lesson begins.
LESSON: dict[str, tuple[str, dict[str, Any]]] = {
    "Hide the copy": ("03", {"x": 40}),
    "The CPU as buffer": ("04", {}),
    "Who shares a step": ("05", {}),
}


class Lesson(InCell):
    """A tab a scene; `scenes` are its instruments by title."""

    def __init__(self) -> None:
        self.scenes = {
            title: Instrument(replace(SCENES[name], views=("flow", "timeline")), **start)
            for title, (name, start) in LESSON.items()
        }
        panels = [scene.panel for scene in self.scenes.values()]
        self.panel = ipywidgets.Tab(children=panels, titles=tuple(self.scenes))

    def __repr__(self) -> str:
        return f"Three scenes, a tab each: {', '.join(self.scenes)}."


def lesson() -> Lesson:
    return Lesson()
