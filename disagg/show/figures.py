"""The pictures in figures/: each is one function, and each can be made again on any machine.

`demo.png` is the ladder that `python -m disagg demo` climbs; the others are here.
"""

from collections.abc import Callable
from pathlib import Path

from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.plan.results import Run
from disagg.show.film import Film, film
from disagg.show.picture import Picture
from disagg.show.plots import timeline_picture

QUESTIONS = (
    "Why is the sky blue?",
    "Name three primary colours and say what you get when you mix them.",
    "What is the capital of France?",
    "Write a short poem about the sea, the wind and a small boat.",
    "Count from one to ten.",
    "What is a list in Python?",
    "List the days of the week.",
)


def first_run(model: str = "smollm2", new_tokens: int = 24) -> Picture:
    """Seven questions, 0.2 s apart, through preset `streamed` over a link about as fast as this machine computes."""
    return timeline_picture(_seven_questions(model, new_tokens)[0])


def demo_gif(model: str = "smollm2", new_tokens: int = 24) -> Film:
    """The same questions as a film: spans, queues and answers as they come, at half speed."""
    return film(*_seven_questions(model, new_tokens))


def _seven_questions(model: str, new_tokens: int) -> tuple[Run, Callable[[list[int]], str]]:
    """The run, and what turns its tokens into text."""
    from disagg.run.engine import Engine

    requests = [
        Request(question, max_new_tokens=new_tokens, arrival_s=0.2 * index) for index, question in enumerate(QUESTIONS)
    ]
    with Engine(Config.preset("streamed", model=model, link=Link.ratio(0.8))) as engine:
        engine.serve(requests[:1])  # the first pass of a process also pays for start-up
        return engine.serve(requests), engine.model.decode_text


#: How each is made, and its file's name.
FIGURES = {"first_run": (first_run, "first_run.png"), "demo_gif": (demo_gif, "demo.gif")}


def make(name: str, folder: str | Path = "figures", **options) -> Path:
    """Draws figure `name` from a fresh run and writes its file into the folder."""
    if name not in FIGURES:
        raise ValueError(f"figure {name!r} is unknown; known: {', '.join(FIGURES)}")
    draw, file = FIGURES[name]
    path = Path(folder) / file
    path.parent.mkdir(exist_ok=True)
    draw(**options).save(path)
    return path
