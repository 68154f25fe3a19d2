"""A box to ask the model a question: the answer streams, and the bars of the timeline grow meanwhile.
Notebook: notebooks/00_start_here.ipynb.
"""

from html import escape
from typing import Any

import ipywidgets

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.run.engine import Engine
from disagg.run.threads import Joinable
from disagg.show.instruments import Instrument, flow
from disagg.show.serving import Serving, follow
from disagg.show.widgets import InCell, row
from disagg.trace.results import Run

QUESTION = "Why is the sky blue?"
LOADING = "The model is being loaded. A question may be asked already."
READY = "Type a question and press Ask, or Enter."


class Ask(InCell):
    """`engine` is the one that answers, once it is loaded; `last` is the run of the last question."""

    def __init__(self, config: Config, tokens: int) -> None:
        self._config, self._tokens, self._waiting, self._error = config, tokens, "", ""
        self._engine: Engine | None = None
        self.last: Run | None = None
        look: dict[str, Any] = {"layout": ipywidgets.Layout(width="420px"), "continuous_update": False}
        self.box = ipywidgets.Text(value=QUESTION, description="question", **look)
        self.button = ipywidgets.Button(description="Ask", button_style="primary", tooltip="Serve this question")
        self.answer = ipywidgets.HTML(f"<i>{LOADING}</i>")
        self.panel = ipywidgets.VBox([row(self.box, self.button), self.answer])
        self.button.on_click(lambda button: self.ask())
        self.box.observe(lambda change: self.ask(), "value")
        self._view: Instrument | None = None
        self._work = self._begin(self._load)

    @property
    def engine(self) -> Engine:
        while self._engine is None and self._work.is_alive():
            self._work.join(0.05)
        if self._engine is None:
            raise RuntimeError(f"the engine did not start: {self._error}")
        return self._engine

    def ask(self, question: str = "") -> None:
        """As the button does. A question that comes meanwhile takes its turn after the running one."""
        self._waiting = question or self.box.value
        if not self._work.is_alive():
            self._work = self._begin(self._serve)

    def wait(self) -> None:
        """Until nothing is asked any more."""
        self._work.join()

    def close(self) -> None:
        self.wait()
        if self._engine is not None:
            self._engine.close()
        super().close()

    def __repr__(self) -> str:
        return f"Ask the model: a box with a question and a button Ask; an answer has {self._tokens} tokens."

    def _begin(self, work: Any) -> Joinable:
        thread = Joinable(target=work, name="disagg ask")
        thread.start()
        return thread

    def _load(self) -> None:
        try:
            self._engine = Engine(self._config)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            self.answer.value = f"<b>{escape(self._error)}</b>"
            return
        self.answer.value = f"<i>{READY}</i>"
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            question, self._waiting = self._waiting, ""
            try:
                serving = Serving(self.engine, [Request(question, self._tokens)])
                follow(serving, self.engine, self._show)
                self.last = serving.run()
                self._show(self.last)
            except Exception as error:
                self.answer.value = f"<b>{escape(f'{type(error).__name__}: {error}')}</b>"

    def _show(self, run: Run) -> None:
        if not run.results:
            return
        result = run.results[0]
        words = result.text or self.engine.model.decode_text(result.token_ids)
        self.answer.value = f"<div style='font-size:1.15em;line-height:1.4'>{escape(words)}</div>"
        if self._view is None:
            self._view = flow(run)
            self.panel.children = (*self.panel.children, self._view.panel)
        else:
            self._view.see(run)


def ask(preset: str = "dynamic", tokens: int = 32, **config: Any) -> Ask:
    """A box for questions, with an engine of its own: `ask().engine`."""
    return Ask(Config.preset(preset, **config), tokens)
