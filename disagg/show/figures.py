"""The pictures in figures/: each is one function, and each can be made again on any machine."""

from pathlib import Path

from disagg.plan.config import Config
from disagg.plan.link import Link
from disagg.plan.request import Request
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
    from disagg.run.engine import Engine

    requests = [
        Request(question, max_new_tokens=new_tokens, arrival_s=0.2 * index) for index, question in enumerate(QUESTIONS)
    ]
    with Engine(Config.preset("streamed", model=model, link=Link.ratio(0.8))) as engine:
        engine.serve(requests[:1])  # the first pass of a process also pays for start-up
        return timeline_picture(engine.serve(requests))


FIGURES = {"first_run": first_run}


def make(name: str, folder: str | Path = "figures", **options) -> Path:
    """Draws figure `name` from a fresh run and writes FOLDER/NAME.png."""
    if name not in FIGURES:
        raise ValueError(f"figure {name!r} is unknown; known: {', '.join(FIGURES)}")
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    FIGURES[name](**options).save(path)
    return path
